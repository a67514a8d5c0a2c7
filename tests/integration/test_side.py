"""A recommender and another organisation's columns with real processes and mutual TLS: trained, paid, signed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cli import job_client
from cli.local import LocalConsortium, PartySite
from party.job.report import read
from tests.unit.trainers.side.shops import BANK, IDENTIFIERS, SHOP, World, catalogue, csv, dataset, identifiers, table
from veil.errors import ConfigError
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.jobs.reports import steps
from veil.jobs.spec import JobSpec
from veil.privacy import accountant
from veil.privacy.ledger import Ledger
from veil.recsys.parties import write_party_csv
from veil.trainers.columns.speeds import Link, Speeds
from veil.trainers.side.forecast import forecast_side
from veil.trainers.side.publication import load_side

pytestmark = pytest.mark.integration

NAMES = (BANK, SHOP)


def desk(consortium: LocalConsortium) -> job_client.Desk:
    credentials = Credentials.load(consortium.credentials(Role.OPERATOR))
    return job_client.Desk(consortium.address("coordinator"), credentials)


def planned(root: Path, epsilon: float) -> JobSpec:
    """Through job.toml and a schema file, as an operator would."""
    schema = World(parties=NAMES).schema().model_dump(mode="json")
    del schema["slots"]
    (root / "side.json").write_text(json.dumps(schema))
    file = root / "job.toml"
    file.write_text(
        f'name = "side"\nparties = {list(NAMES)}\n[catalogue]\npath = "catalogue"\n'
        f"[privacy]\nepsilon = {epsilon}\ndelta = 1e-5\n"
        f'[trainer]\nkind = "side"\nitems = "{SHOP}"\nschema_file = "side.json"\nrounds = 1\ndimensions = 4\n'
        '[trainer.alignment]\nmode = "reveal"\nsizes = [160, 160]\nresult = 150\n'
    )
    return job_client.plan_job(file, "trial")


def run(consortium: LocalConsortium, spec: JobSpec) -> str:
    job = job_client.submit_job(desk(consortium), spec)
    list(job_client.watch_job(desk(consortium), job.job_id))
    return str(job.job_id)


def test_two_organisations_train_pay_sign_and_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    catalogue().save(tmp_path / "catalogue")
    interactions = tmp_path / "shop.csv"
    write_party_csv(interactions, dataset().train, catalogue().ids, user_ids=identifiers(SHOP))
    (tmp_path / "bank.csv").write_text(csv(BANK))
    columns = {"user": "user_id", "item": "item_id", "time": "time"}
    site = PartySite(SHOP, interactions, {"columns": columns}, align=True, epsilon=20.0)
    section = {"source": str(tmp_path / "bank.csv"), "identifier": IDENTIFIERS[BANK], "use": ["region", "income"]}
    with LocalConsortium(tmp_path, NAMES) as consortium:
        consortium.start_coordinator()
        consortium.start_dealer()
        consortium.start_columns_party(BANK, section, epsilon=20.0, catalogue=tmp_path / "catalogue")
        consortium.start_party(site, tmp_path / "catalogue")
        assert (tmp_path / f"party-{SHOP}" / "rows" / "identifiers.parquet").stat().st_mode & 0o777 == 0o600
        spec = planned(tmp_path, 6.0)

        # a job that claims less sensitivity than its outer product has
        outer = spec.release(f"outer-{BANK}")
        less = outer.model_copy(update={"sensitivity": outer.sensitivity // 4, "sigma": outer.sigma // 4})
        tampered = spec.model_copy(update={"releases": (*spec.releases[:-1], less)})
        with pytest.raises(ConfigError, match="sensitivity"):
            run(consortium, tampered)

        job = run(consortium, spec)
        logs = {name: consortium.processes[name].log.read_text() for name in NAMES}

    # the same bytes at every party, signed by all
    folders = [tmp_path / f"party-{name}" / "models" / job for name in NAMES]
    names = {file.name for file in folders[0].iterdir()}
    assert len(names) == 8
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    authority = Credentials.load(consortium.credentials(Role.OPERATOR)).authority_pem
    found = load_side(folders[0], authority, require_signers=[Identity("trial", Role.PARTY, name) for name in NAMES])
    model = found.model
    assert found.ids == catalogue().ids
    assert np.abs(model.factors).max() > 0
    rows = model.side_rows(table(BANK))
    vectors = model.user_vectors(dataset().train.rows(slice(0, 5)), {BANK: rows[:5]})
    assert np.abs(model.scores(vectors)).max() <= model.score_scale

    # each ledger holds every release; the log says what opened, and names nobody
    cost = accountant.epsilon(spec.releases, 1e-5)
    assert found.manifest.epsilon_micro == accountant.to_micro(cost)
    for name in NAMES:
        ledger = Ledger.existing(tmp_path / f"party-{name}" / "ledger.sqlite")
        assert [entry.release for entry in ledger.entries()] == list(spec.releases)
        assert all(f"opened {release.name} " in logs[name] for release in spec.releases)
        assert "person-" not in logs[name]
    # what it took is what was forecast
    for expected in forecast_side(spec, Link(1e9, 1e-3), Speeds(1e-4, 1e-9)):
        measured = read((tmp_path / f"party-{expected.party}" / "reports" / f"{job}.json").read_bytes())
        assert list(measured.measured.seconds) == [phase.phase for phase in expected.phases]
        for phase in expected.phases[1:]:
            rounds, sent, received = measured.totals(phase.phase)
            assert rounds == phase.rounds, phase.phase
            # (the features span fewer directions than the job has room for)
            for got, planned_bytes in ((sent, phase.sent_bytes), (received, phase.received_bytes)):
                assert 0.7 * planned_bytes <= got <= planned_bytes + 1500, phase.phase
    assert steps(spec)[2] == "align"
