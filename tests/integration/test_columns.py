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
from veil.tabular.reading import read_party
from veil.tabular.rows import take_rows
from veil.trainers.columns.publication import ColumnsModel, load_columns

pytestmark = pytest.mark.integration

NAMES = (clicks.BANK, clicks.SHOP)


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalConsortium]:
    """Two parties with their tables, a coordinator and a dealer."""
    root = tmp_path_factory.mktemp("columns")
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    paths = clicks.write_tables(root)
    (root / "new").mkdir()
    new = clicks.write_tables(root / "new", seed=8)
    # the shop may learn what its users are likely to do, the bank may not
    told = {clicks.BANK: [clicks.SHOP], clicks.SHOP: []}
    with LocalConsortium(root, NAMES) as made:
        made.start_coordinator()
        made.start_dealer()
        for name in NAMES:
            rules = {"source": str(new[name]), "recipients": told[name], "rows_a_day": clicks.SLOTS + 5}
            made.start_columns_party(name, clicks.section(name, paths[name]), epsilon=20.0, predictions=rules)
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


def predictions(consortium: LocalConsortium, job: str, recipient: str) -> Path:
    file = consortium.root / "predict.toml"
    file.write_text(
        f'name = "score"\nparties = {list(NAMES)}\n[trainer]\nkind = "predictions"\nrecipient = "{recipient}"\n'
        f'published = "party-bank/models/{job}"\n[trainer.alignment]\nmode = "reveal"\nsizes = [150, 150]\n'
        f"result = {clicks.SLOTS}\n"
    )
    return file


def check_scores_between_parties(consortium: LocalConsortium, job: str, model: ColumnsModel) -> None:
    """`veil predict --job` gives the shop, and nobody else, what the model says of rows held whole."""
    before = spent(consortium)
    at = ("--coordinator", consortium.address("coordinator"), "--credentials", consortium.credentials(Role.OPERATOR))
    scored = veil("predict", "--job", predictions(consortium, job, clicks.SHOP), *at)
    assert scored.returncode == 0, scored.stderr
    made = next(line.split()[1] for line in scored.stdout.splitlines() if line.startswith("job "))
    file = consortium.root / "party-shop" / "predictions" / f"{made}.csv"
    assert f"scores    at shop, in its state folder: predictions/{made}.csv" in scored.stdout
    assert file.stat().st_mode & 0o777 == 0o600 and file.parent.stat().st_mode & 0o777 == 0o700
    assert not (consortium.root / "party-bank" / "predictions").exists()
    schema = model.schema.model_copy(update={"slots": 200})
    tables = [read_party(consortium.root / "new" / f"{name}.csv", schema, name, labelled=False) for name in NAMES]
    places = [{user: row for row, user in enumerate(table.identifiers)} for table in tables]
    common = [user for user in tables[1].identifiers if user in places[0]]
    whole = [
        take_rows(one, np.array([place[user] for user in common])) for one, place in zip(tables, places, strict=True)
    ]
    rows = [line.split(",") for line in file.read_text().splitlines()]
    assert rows[0] == ["identifier", "probability"] and [row[0] for row in rows[1:]] == common
    np.testing.assert_allclose([float(row[1]) for row in rows[1:]], model.predict(whole), atol=2e-5)
    # nothing is paid, and every party's log says what opened and to whom
    assert spent(consortium) == before
    logs = {name: consortium.processes[name].log.read_text() for name in NAMES}
    for name in NAMES:  # without a digest of exact scores
        opening = f"opened scores [{clicks.SLOTS}] to shop alone by no mechanism: exact scores"
        assert f"{opening} of the recipient's own users\n" in logs[name]
    # a linear model takes no dealer
    assert made not in consortium.processes["dealer"].log.read_text()
    # the other way round the shop refuses
    with pytest.raises(PolicyError, match="expected a recipient that it lists"):
        run(consortium, job_client.plan_job(predictions(consortium, job, clicks.BANK), "trial"))
    # the bank's limit is one job of this size a day
    with pytest.raises(PolicyError, match="within 24 hours"):
        run(consortium, job_client.plan_job(predictions(consortium, job, clicks.SHOP), "trial"))


def test_two_parties_train_pay_sign_and_log(consortium: LocalConsortium) -> None:
    spec = planned(consortium)
    job = run(consortium, spec)

    # the same bytes at every party, signed by all
    folders = [consortium.root / f"party-{name}" / "models" / job for name in NAMES]
    assert {file.name for file in folders[0].iterdir()} == {
        *("job.json", "weights.safetensors", "client.safetensors", "columns.json", "manifest.json", "signatures.json"),
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

    # and for the shop, of new rows that lie with both
    check_scores_between_parties(consortium, job, model)

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
