"""A model on columns of two organisations with real processes and mutual TLS: trained, paid for, signed, refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cli import job_client
from cli.local import LocalConsortium
from tests.unit.trainers.columns import clicks
from veil.errors import ConfigError, PolicyError, VeilError
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.jobs.columns import PlainOpening
from veil.jobs.reports import steps
from veil.jobs.spec import JobSpec
from veil.privacy import accountant
from veil.privacy.ledger import Ledger
from veil.trainers.columns.publication import load_columns

pytestmark = pytest.mark.integration

NAMES = (clicks.BANK, clicks.SHOP)


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalConsortium]:
    """Two parties with their tables, a coordinator and a dealer."""
    root = tmp_path_factory.mktemp("columns")
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    paths = clicks.write_tables(root)
    with LocalConsortium(root, NAMES) as made:
        made.start_coordinator()
        made.start_dealer()
        for name in NAMES:
            made.start_columns_party(name, clicks.section(name, paths[name]), epsilon=20.0)
        yield made
    if before is None:
        del os.environ["OMP_NUM_THREADS"]
    else:
        os.environ["OMP_NUM_THREADS"] = before


def desk(consortium: LocalConsortium) -> job_client.Desk:
    credentials = Credentials.load(consortium.credentials(Role.OPERATOR))
    return job_client.Desk(consortium.address("coordinator"), credentials)


def planned(
    consortium: LocalConsortium, *, epsilon: float = 6.0, noise: str = "dealer", triples: str = "dealer", **changes: str
) -> JobSpec:
    """Through job.toml and a schema file, as an operator would."""
    schema = clicks.schema(label_party=changes.get("label_party", clicks.SHOP)).model_dump(mode="json")
    del schema["slots"]
    (consortium.root / "columns.json").write_text(json.dumps(schema))
    file = consortium.root / "job.toml"
    file.write_text(
        f'name = "clicks"\nparties = {list(NAMES)}\n[privacy]\nepsilon = {epsilon}\ndelta = 1e-5\nnoise = "{noise}"\n'
        f'[trainer]\nkind = "columns"\nschema_file = "columns.json"\ntriples = "{triples}"\nsteps = 5\n'
        f'[trainer.alignment]\nmode = "reveal"\nsizes = [150, 150]\nresult = {clicks.SLOTS}\n'
    )
    return job_client.plan_job(file, "trial")


def run(consortium: LocalConsortium, spec: JobSpec) -> str:
    job = job_client.submit_job(desk(consortium), spec)
    list(job_client.watch_job(desk(consortium), job.job_id))
    return str(job.job_id)


def veil(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from cli.main import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )


def spent(consortium: LocalConsortium) -> list[float]:
    return [Ledger.existing(consortium.root / f"party-{name}" / "ledger.sqlite").spent() for name in NAMES]


def test_two_parties_train_pay_sign_and_log(consortium: LocalConsortium) -> None:
    spec = planned(consortium)
    job = run(consortium, spec)

    # the same bytes at every party, signed by all
    folders = [consortium.root / f"party-{name}" / "models" / job for name in NAMES]
    assert {file.name for file in folders[0].iterdir()} == {
        *("job.json", "weights.safetensors", "columns.json", "manifest.json", "signatures.json"),
    }
    for file in folders[0].iterdir():
        assert (folders[1] / file.name).read_bytes() == file.read_bytes(), file.name
    authority = Credentials.load(consortium.credentials(Role.OPERATOR)).authority_pem
    model = load_columns(folders[1], authority, require_signers=[Identity("trial", Role.PARTY, name) for name in NAMES])
    assert model.weights.shape == spec.trainer.openings[0].shape  # type: ignore[union-attr]
    assert np.abs(model.weights).max() > 0

    # each ledger holds every release, the steps' too, and the manifest says what they cost
    cost = accountant.epsilon(spec.releases, 1e-5)
    assert json.loads((folders[0] / "manifest.json").read_bytes())["epsilon_micro"] == accountant.to_micro(cost)
    for name in NAMES:
        ledger = Ledger.existing(consortium.root / f"party-{name}" / "ledger.sqlite")
        assert [entry.release for entry in ledger.entries()] == list(spec.releases)
        assert ledger.spent() == pytest.approx(cost, rel=1e-9)
        log = consortium.processes[name].log.read_text()
        # what opened: the statistics of both, and the weights; no step
        assert all(f"opened statistics-{other} " in log for other in NAMES)
        assert f"opened weights [{model.weights.size}, 1] by post-processing of noised releases: sha256:" in log
        assert "opened step-" not in log
        assert "u42" not in log and "item-3" not in log
        kept = consortium.root / f"party-{name}" / "rows" / "columns.parquet"
        assert kept.stat().st_mode & 0o777 == 0o600

    # what it took, beside the forecast
    report = consortium.root / "party-bank" / "reports" / f"{job}.json"
    assert report.stat().st_mode & 0o777 == 0o600
    shown = veil("job", "report", report, "--bandwidth", "1Gbit", "--latency", "1ms")
    assert shown.returncode == 0, shown.stderr
    descend = next(line for line in shown.stdout.splitlines() if line.startswith("descend"))
    forecast, measured = descend.split()[1].split("/")
    assert forecast == measured == "20"

    # it predicts, for who holds all columns
    table = consortium.root / "rows.csv"
    table.write_text("user,income,region,item,visits\na,90,north,item-1,9\nb,5,south,item-1,1\n")
    predicted = veil(
        *("predict", "--model", folders[0], "--data", table, "--identifier", "user", "--authority"),
        consortium.credentials(Role.OPERATOR) / "authority.pem",
    )
    assert predicted.returncode == 0, predicted.stderr
    lines = predicted.stdout.splitlines()
    assert lines[0] == "identifier,probability"
    assert [line.split(",")[0] for line in lines[1:]] == ["a", "b"]
    assert all(0 < float(line.split(",")[1]) < 1 for line in lines[1:])

    # where the job says so the parties draw the noise and make all correlations themselves: no dealer is called
    assert job in consortium.processes["dealer"].log.read_text()
    again = run(consortium, planned(consortium, epsilon=2.0, noise="parties", triples="he"))
    assert again not in consortium.processes["dealer"].log.read_text()
    assert (consortium.root / "party-bank" / "models" / again / "manifest.json").exists()
    assert len(steps(spec)) == 2 + 1 + 2 + 5 + 1 + 1


def tampered(spec: JobSpec, **trainer: object) -> JobSpec:
    return spec.model_copy(update={"trainer": spec.trainer.model_copy(update=trainer)})


def test_what_a_party_does_not_give_or_believe_it_refuses(consortium: LocalConsortium) -> None:
    before = spent(consortium)
    sound = planned(consortium, epsilon=1.0)
    steps_noise = [
        one.model_copy(update={"sigma": one.sigma // 4}) if one.name.startswith("step") else one
        for one in sound.releases
    ]
    less = [
        one.model_copy(update={"sensitivity": one.sensitivity // 4, "sigma": one.sigma // 4})
        if one.name.startswith("step")
        else one
        for one in sound.releases
    ]
    opening = sound.trainer.openings[0]  # type: ignore[union-attr]
    other = json.loads(sound.trainer.columns)  # type: ignore[union-attr]
    other["parties"][0]["columns"][0]["name"] = "salary"
    unlisted = PlainOpening(name="gradient", shape=(3, 1))
    cases: list[tuple[JobSpec, type[VeilError], str]] = [
        (planned(consortium, epsilon=1.0, label_party=clicks.BANK), PolicyError, "label"),
        (tampered(sound, columns=json.dumps(other, sort_keys=True, separators=(",", ":"))), PolicyError, "salary"),
        (tampered(sound, openings=(opening, unlisted)), ConfigError, "openings"),
        (sound.model_copy(update={"releases": tuple(steps_noise)}), PolicyError, "claims epsilon"),
        (sound.model_copy(update={"releases": tuple(less)}), ConfigError, "sensitivity"),
    ]
    for spec, kind, says in cases:
        with pytest.raises(kind, match=says):
            run(consortium, spec)
    assert spent(consortium) == before
