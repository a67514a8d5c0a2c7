"""Joint training with real processes and real mutual TLS: the whole way, refusals, and a party that dies."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cli import job_client
from cli.local import PartySite
from tests.integration.conftest import PARTIES, Trial
from veil.errors import BudgetError, ConfigError, PeerError, StateError
from veil.identity.credentials import Credentials
from veil.identity.names import Role
from veil.jobs.spec import JobSpec
from veil.privacy import accountant
from veil.privacy.ledger import Ledger
from veil.recsys.artifact import load_model
from veil.recsys.metrics import evaluate

pytestmark = pytest.mark.integration


def _run(trial: Trial, spec: JobSpec) -> tuple[str, list[str]]:
    """The job's identifier and the lines that its watcher saw; raises the error that ended it."""
    job = job_client.submit_job(trial.desk, spec)
    return job.job_id, [event.line for event in job_client.watch_job(trial.desk, job.job_id)]


def _spent(trial: Trial, party: str) -> tuple[float, list[str]]:
    ledger = Ledger(trial.state(party) / "ledger.sqlite", epsilon_limit=6.0, delta=1e-5)
    return ledger.spent(), [entry.release.name for entry in ledger.entries()]


def _opened(log: str) -> list[tuple[str, str]]:
    """(release, digest) of everything that a party's log says has opened."""
    return re.findall(r"opened (\S+) \[.*\] by rounded-gaussian: (sha256:[0-9a-f]{64})", log)


def test_three_parties_train_publish_and_pay(make_trial: Callable[[], Trial]) -> None:
    trial = make_trial()
    trial.start()
    spec = trial.plan(epsilon=4.0)
    job_id, lines = _run(trial, spec)
    assert "every party holds the same model" in lines[-1]

    # every party published the same bytes, signed by all
    authority = Credentials.load(trial.consortium.credentials(Role.OPERATOR)).authority_pem
    folders = [trial.state(party) / "models" / job_id for party in PARTIES]
    models = [load_model(folder, authority) for folder in folders]
    assert len({model.digest for model in models}) == 1
    assert models[0].manifest.parties == list(PARTIES)
    for file in sorted(folders[0].iterdir()):
        assert all((folder / file.name).read_bytes() == file.read_bytes() for folder in folders), file.name

    # what opened is the same everywhere, and is what the job lists, each once
    opened = [_opened(trial.log(party)) for party in PARTIES]
    assert opened[0] == opened[1] == opened[2]
    assert [name for name, _ in opened[0]] == [release.name for release in spec.releases]

    # each ledger holds each release, and the epsilon printed is what dp-accounting gives for them
    expected = accountant.epsilon(spec.releases, 1e-5)
    for party in PARTIES:
        spent, names = _spent(trial, party)
        assert spent == pytest.approx(expected, rel=1e-9)
        assert names == [release.name for release in spec.releases]
    assert models[0].manifest.epsilon_micro == accountant.to_micro(expected)

    # the model is of use: better than scoring all items alike
    model = models[0].model
    vectors = model.user_vectors(trial.dataset.train)
    assert evaluate(lambda users: model.scores(vectors[users]), trial.dataset).hr_at_10 > 0.15

    # no raw user id has left the raw files: not in stores, logs, models or the coordinator
    for path in trial.root.rglob("*"):
        if path.is_file() and "raw" not in path.parts and "certs" not in path.parts:
            assert b"alpha-1" not in path.read_bytes(), path

    # as much again is more than the 6 that each party allows over all jobs: refused at the parties, nothing spent
    with pytest.raises(BudgetError) as refused:
        _run(trial, trial.plan(epsilon=5.5))
    assert "budget" in str(refused.value).lower() or "epsilon" in str(refused.value)
    assert all(_spent(trial, party)[0] == pytest.approx(expected, rel=1e-9) for party in PARTIES)


def test_noise_by_the_parties_and_a_person_who_approves_over_gloo(make_trial: Callable[[], Trial]) -> None:
    trial = make_trial()
    trial.consortium.start_coordinator()
    trial.consortium.start_dealer()
    gloo = {"plane": "gloo", "gloo_host": "127.0.0.1"}
    for name in ("alpha", "beta"):
        trial.start_party(name, mesh=gloo)
    trial.start_party("gamma", mesh=gloo, approval={"mode": "manual", "max_epsilon_per_job": 6.0})
    spec = trial.plan(epsilon=4.0, noise="parties")
    job = job_client.submit_job(trial.desk, spec)
    options = [
        *("--party", trial.consortium.address("gamma"), "--name", "gamma"),
        *("--credentials", str(trial.consortium.credentials(Role.OPERATOR, "gamma"))),
    ]

    def veil(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", "from cli.main import main; main()", "party", *arguments, *options],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    deadline = time.monotonic() + 60
    while job.job_id not in (waiting := veil("pending")):
        assert time.monotonic() < deadline, waiting
    assert spec.text() in waiting
    veil("approve", job.job_id, "--digest", job.digest.hex())
    lines = [event.line for event in job_client.watch_job(trial.desk, job.job_id)]
    assert "every party holds the same model" in lines[-1]
    status = veil("status")
    assert "2 releases" in status and "waiting    nothing" in status
    for party in PARTIES:
        assert trial.log(party).count("data plane gloo: no encryption, no authentication of peers") == 1


def test_a_party_that_dies_in_a_round_ends_the_job_and_is_named(make_trial: Callable[[], Trial]) -> None:
    trial = make_trial()
    trial.start()
    gamma = trial.consortium.processes["gamma"]
    spec = trial.plan(epsilon=4.0)
    job = job_client.submit_job(trial.desk, spec)
    with pytest.raises(PeerError) as failed:
        for event in job_client.watch_job(trial.desk, job.job_id):
            if "started at" in event.line:
                # gamma's daemon stands still before it can relay a share, and then dies
                os.kill(gamma.popen.pid, signal.SIGSTOP)
                time.sleep(4)
                gamma.kill()
    assert failed.value.culprits == ("gamma",)

    # nothing opened anywhere without gamma's share, no model was written, and no ledger says less than what opened
    for party in ("alpha", "beta"):
        assert _opened(trial.log(party)) == []
        assert not list(trial.state(party).glob("models/*"))
        _, names = _spent(trial, party)
        assert set(names) <= {release.name for release in spec.releases}
        assert trial.consortium.processes[party].alive
    # and the survivors are ready for the next job
    trial.start_party("gamma")
    _, lines = _run(trial, trial.plan(epsilon=1.0))
    assert "every party holds the same model" in lines[-1]


def test_a_party_killed_in_mid_round_leaves_ledgers_that_cover_what_opened(make_trial: Callable[[], Trial]) -> None:
    trial = make_trial()
    trial.start()
    gamma = trial.consortium.processes["gamma"]
    spec = trial.plan(epsilon=4.0, rounds=16)
    job = job_client.submit_job(trial.desk, spec)
    with pytest.raises(PeerError) as failed:
        for event in job_client.watch_job(trial.desk, job.job_id):
            if event.party == "gamma" and event.progress.step == "round-2":
                gamma.kill()
    assert failed.value.culprits == ("gamma",)
    releases = [release.name for release in spec.releases]
    for party in PARTIES:
        opened = [name for name, _ in _opened(trial.log(party))]
        _, paid = _spent(trial, party)
        # rounds had opened, not all of them, and nothing that this party's ledger does not hold
        assert releases[:3] == opened[:3] and len(opened) < len(releases)
        assert opened == paid[: len(opened)]
        assert not list(trial.state(party).glob("models/*"))
    # everybody who saw an opening saw the same one
    logs = [_opened(trial.log(party)) for party in PARTIES]
    shortest = min(map(len, logs))
    assert logs[0][:shortest] == logs[1][:shortest] == logs[2][:shortest]


def test_a_party_with_another_catalogue_disagrees_and_is_named(make_trial: Callable[[], Trial], tmp_path: Path) -> None:
    trial = make_trial()
    trial.start("alpha", "gamma")
    other = trial.catalogue.features.copy()
    other[0, 0] += np.float32(0.5)
    type(trial.catalogue)(
        trial.catalogue.table, other, trial.catalogue.blocks, trial.catalogue.encoder, trial.catalogue.phrasing
    ).save(tmp_path / "other-catalogue")
    trial.start_party("beta", catalogue=str(tmp_path / "other-catalogue"))
    with pytest.raises(ConfigError, match="catalogue") as refused:
        _run(trial, trial.plan())
    assert "expected" in str(refused.value)
    record = job_client.list_jobs(trial.desk)[0]
    assert list(record.failure.culprits) == ["beta"]
    assert all(_spent(trial, party) == (0.0, []) for party in ("alpha", "gamma"))


def test_malformed_rows_stop_the_party_with_their_lines(make_trial: Callable[[], Trial]) -> None:
    trial = make_trial()
    site = trial.sites["alpha"]
    lines = site.source.read_text().splitlines()
    lines[3] = "only-one-field"
    lines[7] = lines[7].rsplit(",", 1)[0] + ",yesterday"
    site.source.write_text("\n".join(lines) + "\n")
    trial.consortium.start_coordinator()
    with pytest.raises(StateError, match="alpha ended before it listened") as stopped:
        trial.start_party("alpha")
    message = str(stopped.value)
    assert "4" in message and "8" in message
    assert "yesterday" not in message and "only-one-field" not in message
    assert not (trial.state("alpha") / "rows" / "rows.safetensors").exists()

    # the same rows, skipped and counted, when the configuration says so
    trial.sites["alpha"] = PartySite("alpha", site.source, {**site.read, "on_bad_row": "skip"}, epsilon=6.0)
    trial.start_party("alpha")
    assert "2 bad" in trial.log("alpha")
