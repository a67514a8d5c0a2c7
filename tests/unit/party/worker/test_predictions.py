"""A predictions job at every party: what it refuses to sign, what the recipient finds, how much is told in a day."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from cli.job_client import plan_job
from party.config import Approval, Columns, PartyConfig, Predictions
from party.job.dealing import needs_dealer
from party.job.report import Measured
from party.job.review import Reviewed, review
from party.job.run import JobRun
from party.rows import prediction_rows
from party.rows.prediction_rows import DAY_S, HeldPredictions, PredictionRecord, published_model
from party.worker.predictions import PredictionRun, PredictionSeat, Scored, load
from party.worker.publish import sign
from tests.unit.mpc.engine.test_sources import watched
from tests.unit.mpc.engine.together import dealer_of
from tests.unit.trainers.columns import clicks
from tests.unit.trainers.columns.clicks import BANK, SHOP
from veil import __version__
from veil.errors import ArtifactError, ConfigError, DataError, InputError, PolicyError, StateError, VeilError
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.identity.trial import make_consortium
from veil.jobs import signing
from veil.jobs.predictions import PredictionsTrainer
from veil.jobs.reports import steps
from veil.jobs.spec import JobSpec, canonical, digest
from veil.mpc.communicator import TensorCommunicator
from veil.mpc.grpc_mesh import MeshServicer
from veil.mpc.loopback import loopback
from veil.privacy.ledger import Ledger
from veil.recsys.manifest import FileEntry, sign_manifest
from veil.recsys.signed import check_job, manifest_bytes, parse_manifest, save_directory
from veil.tabular.reading import read_party
from veil.trainers.columns.prediction_plan import forecast_predictions
from veil.trainers.columns.publication import ColumnsModel, ColumnsPublication
from veil.trainers.columns.speeds import Link, Speeds
from veil.trainers.columns.terms import ColumnsTerms

PARTIES = (BANK, SHOP)
KINDS = ("logistic", "perceptron", "towers")


class Site:
    """Both organisations on one machine: signed models of each kind, and their new rows."""

    def __init__(self, root: Path) -> None:
        self.root = root
        members = make_consortium(root / "certs", "trial", list(PARTIES))
        self.credentials = {name: Credentials.load(members[Identity("trial", Role.PARTY, name)]) for name in PARTIES}
        self.authority = self.credentials[BANK].authority_pem
        self.models = root / "models"
        self.paths = clicks.write_tables(root, seed=8)
        self.made = {kind: self._publish(kind) for kind in KINDS}

    def _publish(self, kind: str) -> ColumnsModel:
        spec = clicks.job(model=kind)
        terms, generator = ColumnsTerms.of(spec), np.random.default_rng(3)
        width = terms.layout.columns
        made = ColumnsModel(
            terms.schema,
            generator.normal(size=(width, terms.outputs)),
            generator.uniform(0, 0.5, width),
            np.full(width, 0.4),
            -0.7,
            terms.trainer.hidden,
        )
        publication = ColumnsPublication(made)
        files = publication.files(spec)
        manifest = publication.manifest(spec, files, created_s=int(time.time()))
        signatures = [sign_manifest(manifest, n, one.certificate_pem, one.sign) for n, one in self.credentials.items()]
        save_directory(self.models / kind, files, manifest, signatures)
        return made

    def section(self, party: str, **changes: Any) -> Predictions:
        told = {BANK: (SHOP,), SHOP: ()}
        return Predictions.model_validate({"source": self.paths[party], "recipients": told[party], **changes})

    def job(self, kind: str = "logistic", *, mode: str = "reveal", triples: str = "dealer", **more: Any) -> JobSpec:
        """Through job.toml, as an operator would."""
        result = more.get("result", clicks.SLOTS if mode == "reveal" else 300)
        file = self.root / f"job-{os.urandom(4).hex()}.toml"
        file.write_text(
            f'name = "score"\nparties = {list(PARTIES)}\n[trainer]\nkind = "predictions"\ntriples = "{triples}"\n'
            f'published = "models/{kind}"\nrecipient = "{more.get("recipient", SHOP)}"\nbits = {more.get("bits", 16)}\n'
            f'[trainer.alignment]\nmode = "{mode}"\nsizes = {more.get("sizes", [150, 150])}\nresult = {result}\n'
        )
        return plan_job(file, "trial")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("predictions"))


Judge = Callable[..., Reviewed]


@pytest.fixture
def judge(site: Site, tmp_path: Path) -> Judge:
    ledger = Ledger(tmp_path / "ledger.sqlite", epsilon_limit=1.0, delta=1e-5)

    def ask(job: JobSpec | dict[str, Any], party: str = BANK, **more: Any) -> Reviewed:
        text = job.text() if isinstance(job, JobSpec) else canonical(job)
        columns = Columns.model_validate({**clicks.section(party, site.paths[party]), **more.get("columns", {})})
        section = site.section(party, **more.get("section", {}))
        record = PredictionRecord(tmp_path / f"{party}.sqlite", rows_a_day=section.rows_a_day)
        held = HeldPredictions(section, columns, more.get("models", site.models), site.authority, record)
        return review(
            text,
            digest(text),
            me=Identity("trial", Role.PARTY, party),
            dealer="main",
            catalogue=None,
            ledger=ledger,
            rules=Approval.model_validate({"mode": "policy", "max_epsilon_per_job": 1.0, **more.get("rules", {})}),
            predictions=None if more.get("without") else held,
            consented=more.get("consented", True),
        )

    return ask


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_job_is_signed_by_both_and_costs_nothing(site: Site, judge: Judge, kind: str) -> None:
    spec = site.job(kind)
    assert {judge(spec, party).epsilon for party in PARTIES} == {0.0}


CASES: list[tuple[dict[str, Any], dict[str, Any], type[VeilError], str]] = [
    ({}, {"without": True}, PolicyError, "lets no row be scored"),
    ({}, {"section": {"recipients": ()}}, PolicyError, "recipient that it lists"),
    ({"recipient": BANK}, {"party": SHOP}, PolicyError, "recipient that it lists"),
    ({}, {"section": {"rows_a_day": clicks.SLOTS - 1}}, PolicyError, "within 24 hours"),
    ({}, {"models": Path("/nowhere")}, PolicyError, "published here"),
    ({}, {"columns": {"use": ("income",)}}, PolicyError, "'region'"),
    ({}, {"columns": {"identifier": "number"}}, PolicyError, "identifier"),
    ({}, {"rules": {"parties": ("bank", "club")}}, PolicyError, "got a job with shop"),
    ({}, {"rules": {"min_parties": 3}}, PolicyError, "at least 3"),
    ({"sizes": [140, 150]}, {}, DataError, "more rows"),
    ({"bits": 17}, {}, PolicyError, "at most 16"),
    ({"bits": 9}, {"section": {"most_bits": 8}}, PolicyError, "at most 8"),
]


@pytest.mark.parametrize(("job", "party", "kind", "says"), CASES)
def test_each_is_refused(
    site: Site, judge: Judge, job: dict[str, Any], party: dict[str, Any], kind: type[VeilError], says: str
) -> None:
    with pytest.raises(kind, match=says):
        judge(site.job(**job), **party)
    if kind is DataError:  # a refusal for rows tells something of rows: not before consent
        assert judge(site.job(**job), **party, consented=False).epsilon == 0


def changed(spec: JobSpec, **trainer: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(spec.text())
    document["trainer"] |= trainer
    return document


def test_a_job_that_does_not_fit_the_model_is_refused(site: Site, judge: Judge) -> None:
    spec = site.job("perceptron")
    others: dict[str, list[dict[str, Any]]] = {
        "hidden": [{"hidden": None}, {"hidden": {**json.loads(spec.text())["trainer"]["hidden"], "units": 7}}],
        "published here": [{"model": "sha256:" + "0" * 64}],
    }
    for says, changes in others.items():
        for change in changes:
            with pytest.raises(VeilError, match=says):
                judge(changed(spec, **change))
    document = json.loads(spec.text())
    document["parties"] = [SHOP, BANK]
    with pytest.raises(VeilError):
        judge(document)
    document["parties"] = [*PARTIES, "club"]
    document["trainer"]["alignment"]["sizes"].append(150)
    with pytest.raises(ArtifactError, match="no signature"):
        judge(document)


def test_a_copy_of_the_model_that_was_altered_is_refused(site: Site, judge: Judge, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "copy"
    folder.mkdir(parents=True)
    for file in (site.models / "logistic").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    assert judge(site.job(), models=folder.parent).epsilon == 0
    weights = folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    with pytest.raises(ArtifactError, match="altered"):
        judge(site.job(), models=folder.parent)


def test_finer_scores_are_told_where_a_party_allows_it_and_to_itself(site: Site, judge: Judge) -> None:
    assert judge(site.job(bits=24), section={"most_bits": 24}).epsilon == 0
    assert judge(site.job(bits=24), SHOP).epsilon == 0


def test_a_model_that_is_exchanged_while_it_is_looked_up_is_refused(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one that all have signed: nothing but the digest tells them apart."""
    models, spec = tmp_path / "models", site.job()
    assert isinstance(spec.trainer, PredictionsTrainer)
    shutil.copytree(site.models / "logistic", models / "model")
    assert published_model(models, spec, site.authority).hidden is None
    digest_of = prediction_rows._digest

    def then_exchanged(manifest: Path) -> str:
        found = digest_of(manifest)
        shutil.rmtree(models / "model")
        shutil.copytree(site.models / "towers", models / "model")
        return found

    monkeypatch.setattr(prediction_rows, "_digest", then_exchanged)
    with pytest.raises(ArtifactError, match="got a model of manifest"):
        published_model(models, spec, site.authority)


def test_a_manifest_that_cannot_be_read_is_not_the_one(site: Site, tmp_path: Path) -> None:
    """Links that lead in a circle, a name too long to follow: the job is answered, not dropped."""
    models = tmp_path / "models"
    shutil.copytree(site.models / "logistic", models / "good")
    (models / "circle").mkdir()
    (models / "circle" / "manifest.json").symlink_to("manifest.json")
    (models / "far").mkdir()
    (models / "far" / "manifest.json").symlink_to("x" * 300)
    assert published_model(models, site.job(), site.authority).hidden is None


def test_scores_do_not_replace_others_and_a_full_disk_is_told(tmp_path: Path) -> None:
    scored = Scored(("ann", "bea"), np.array([0.25, 0.5]))
    file = tmp_path / "predictions" / "job.csv"
    scored.write(file)
    assert file.read_text() == "identifier,probability\nann,0.250000\nbea,0.500000\n"
    with pytest.raises(StateError, match="exists"):
        Scored(("eve",), np.array([0.75])).write(file)
    assert "eve" not in file.read_text()
    (tmp_path / "taken").write_text("a file where the folder should be")
    with pytest.raises(StateError, match=r"predictions/job\.csv: .*, expected a folder"):
        scored.write(tmp_path / "taken" / "job.csv")


def test_rows_are_counted_over_a_day_and_a_restart_and_a_job_runs_once(tmp_path: Path) -> None:
    now = [1000.0]
    path = tmp_path / "record.sqlite"

    def record() -> PredictionRecord:
        return PredictionRecord(path, rows_a_day=100, clock=lambda: now[0])

    first = record()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first.record(b"a" * 32, 60)
    with pytest.raises(PolicyError, match="60 within 24 hours"):
        record().check(b"b" * 32, 41)
    with pytest.raises(PolicyError):
        first.record(b"b" * 32, 41)
    record().check(b"b" * 32, 40)  # looking counts nothing
    record().record(b"b" * 32, 40)
    first.record(b"c" * 32, 0)  # its own users: no limit
    with pytest.raises(StateError, match="run here before"):
        record().check(b"c" * 32, 0)
    now[0] = 1000.0 - 50  # a clock set back forgets nothing
    with pytest.raises(PolicyError):
        record().check(b"d" * 32, 1)
    now[0] = 1000.0 + DAY_S + 1
    record().record(b"d" * 32, 100)
    with pytest.raises(StateError, match="run here before"):  # a job is once for ever
        record().record(b"a" * 32, 1)
    path.unlink()
    with pytest.raises(StateError, match="expected the record"):
        first.check(b"e" * 32, 1)
    path.write_bytes(b"no database at all, but long enough to be taken for one" * 40)
    with pytest.raises(StateError, match="cannot be used"):
        record()


def test_a_run_counts_its_rows_before_it_meets_anybody_and_only_once(site: Site, tmp_path: Path) -> None:
    spec = site.job()
    path = tmp_path / "record.sqlite"
    record = PredictionRecord(path, rows_a_day=clicks.SLOTS)

    def failure_of(spec: JobSpec, job_id: str) -> VeilError:
        found: list[VeilError] = []
        over = threading.Event()
        own = digest(spec.text())

        def failed(error: VeilError) -> None:
            found.append(error)
            over.set()

        JobRun(
            job_id=job_id,
            reviewed=Reviewed(spec, own, 0.0),
            approvals=[signing.approve(site.credentials[party], own) for party in PARTIES],
            addresses={},
            config=cast(PartyConfig, None),  # not looked at so early
            credentials=site.credentials[BANK],
            rows=tmp_path / "rows",
            ledger=Ledger(tmp_path / "ledger.sqlite", epsilon_limit=1.0, delta=1e-5),
            mesh=MeshServicer(),
            predecessors=[],
            on_progress=lambda progress: None,
            on_done=lambda outcome: None,
            on_failed=failed,
            predictions=record,
        ).start()
        assert over.wait(30)
        return found[0]

    assert "no address" in failure_of(spec, "a" * 32).message
    assert "run here before" in failure_of(spec, "b" * 32).message
    assert f"after {clicks.SLOTS} within 24 hours" in failure_of(site.job(), "c" * 32).message


def test_nothing_that_a_job_on_predictions_signs_is_a_model(site: Site, tmp_path: Path) -> None:
    """Neither does a daemon lend its key for one, nor is a directory read that says it came from such a job."""
    spec = site.job()
    shutil.copytree(site.models / "logistic", tmp_path / "model")
    raw = (tmp_path / "model" / "manifest.json").read_bytes()
    text = spec.text().encode()
    entry = FileEntry(sha256=hashlib.sha256(text).hexdigest(), size_bytes=len(text))
    (tmp_path / "model" / "job.json").write_bytes(text)
    true = parse_manifest(raw)
    changes: dict[str, Any] = {
        "files": {**true.files, "job.json": entry},
        "job_digest": f"sha256:{digest(spec.text()).hex()}",
    }
    forged = true.model_copy(update=changes)
    with pytest.raises(ArtifactError, match="expected one that publishes a model"):
        check_job(tmp_path / "model", forged)
    with pytest.raises(ArtifactError, match="it has no model"):
        sign(manifest_bytes(forged).decode(), spec, digest(spec.text()), site.credentials[BANK])


def test_a_record_that_another_process_writes_is_counted_whole(tmp_path: Path) -> None:
    """Threads with connections of their own stand for processes: exactly as many jobs fit as the limit says."""
    path, fitted = tmp_path / "record.sqlite", []

    def score(number: int) -> None:
        try:
            PredictionRecord(path, rows_a_day=50).record(bytes([number]) * 32, 10)
            fitted.append(number)
        except PolicyError:
            pass

    PredictionRecord(path, rows_a_day=50)
    threads = [threading.Thread(target=score, args=(number,)) for number in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fitted) == 5


def play(site: Site, spec: JobSpec, folder: Path) -> tuple[dict[str, Path], list[dict[str, Any]], list[list[str]]]:
    """The file of each party that has one, what each measured, and the steps that it finished."""
    seeds = [os.urandom(32) for _ in PARTIES]
    fetch, transports = dealer_of(seeds), loopback(len(PARTIES))
    measured: list[dict[str, Any]] = [{} for _ in PARTIES]
    done: list[list[str]] = [[] for _ in PARTIES]
    errors: list[BaseException] = []
    for party in PARTIES:
        (folder / party).mkdir()

    def take_part(rank: int) -> None:
        try:
            party = PARTIES[rank]
            section = site.section(party)
            model, table = load(spec, party, section, models=site.models, authority_pem=site.authority)
            seat = PredictionSeat(
                communicator=TensorCommunicator(transports[rank], PARTIES, timeout_s=60.0),
                job_digest=digest(spec.text()),
                seed=seeds[rank],
                fetch=fetch if rank == 0 else None,
                finished=done[rank].append,
                scratch=folder / party,
            )
            run = PredictionRun(spec, seat, model)
            scored = run.run(table)
            if scored is not None:
                scored.write(folder / party / "scores.csv")
            measured[rank] = run.phases.measured()
        except BaseException as error:  # noqa: BLE001 - raised again below, in the thread of the test
            errors.append(error)
            transports[rank].close()

    threads = [threading.Thread(target=take_part, args=(rank,)) for rank in range(len(PARTIES))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    files = {party: folder / party / "scores.csv" for party in PARTIES}
    return {party: file for party, file in files.items() if file.exists()}, measured, done


@pytest.mark.parametrize(
    ("kind", "mode", "triples", "recipient"),
    [
        ("logistic", "reveal", "dealer", SHOP),
        ("logistic", "hidden", "dealer", BANK),
        ("perceptron", "reveal", "dealer", BANK),
        ("towers", "hidden", "dealer", SHOP),
        ("logistic", "hidden", "he", SHOP),
    ],
)
def test_the_recipient_finds_the_scores_of_its_own_users(
    site: Site, tmp_path: Path, kind: str, mode: str, triples: str, recipient: str
) -> None:
    spec = site.job(kind, mode=mode, triples=triples, recipient=recipient)
    assert isinstance(spec.trainer, PredictionsTrainer)
    assert needs_dealer(spec) == (triples == "dealer" and (kind, mode) != ("logistic", "reveal"))
    files, measured, done = play(site, spec, tmp_path)
    assert list(files) == [recipient]
    assert stat.S_IMODE(files[recipient].stat().st_mode) == 0o600
    assert not list(tmp_path.glob("*/correlations-*"))

    model = site.made[kind]
    schema = model.schema.model_copy(update={"slots": 200})
    tables = {party: read_party(site.paths[party], schema, party, labelled=False) for party in PARTIES}
    parts = {party: model.part(table) for party, table in tables.items()}
    places = {party: {user: row for row, user in enumerate(table.identifiers)} for party, table in tables.items()}
    users = [
        user
        for user in tables[recipient].identifiers
        if mode == "hidden" or all(user in places[party] for party in PARTIES)
    ]
    absent = np.zeros(model.weights.shape[1])
    rows = [
        np.array([parts[party][places[party][user]] if user in places[party] else absent for user in users])
        for party in PARTIES
    ]
    expected = 0.5 * (1 + np.tanh(model.score(rows) / 2))
    found = [line.split(",") for line in files[recipient].read_text().splitlines()]
    assert found[0] == ["identifier", "probability"] and [line[0] for line in found[1:]] == users
    tolerance = 2e-5 if kind == "logistic" else 5e-4
    np.testing.assert_allclose([float(line[1]) for line in found[1:]], expected, atol=tolerance)
    assert np.ptp(expected) > 0.1

    # the steps that the coordinator expects, and what was forecast
    forecasts = forecast_predictions(spec, Link(1e9, 1e-3), Speeds(1e-4, 1e-9, 1e-8))
    for rank, one in enumerate(forecasts):
        assert ["load", "mesh", *done[rank], "publish"] == list(steps(spec))
        checked = Measured.model_validate(measured[rank])
        assert set(checked.seconds) == {phase.phase for phase in one.phases}
        for phase in one.phases:
            if phase.phase in ("prepare", "predict", "reveal"):
                counted = [row for row in checked.communication.peers if row.phase == phase.phase]
                rounds = sum(row.rounds for row in checked.communication.operations if row.phase == phase.phase)
                assert phase.rounds == rounds, phase.phase
                assert phase.sent_bytes == sum(row.bytes_sent for row in counted), phase.phase
                assert phase.received_bytes == sum(row.bytes_received for row in counted), phase.phase


def test_no_generator_but_the_cryptographic_one_is_touched(site: Site, tmp_path: Path) -> None:
    spec = site.job("towers", mode="hidden")
    for name in ("first", "second"):  # libraries that are imported at first use make generators of their own
        (tmp_path / name).mkdir()
    play(site, spec, tmp_path / "first")
    with watched():
        files, _, _ = play(site, spec, tmp_path / "second")
    assert len(files[SHOP].read_text().splitlines()) > 100


def test_rows_that_have_grown_since_the_review_stop_the_job_before_anything_is_sent(site: Site) -> None:
    with pytest.raises(DataError, match="expected at most the 130"):
        load(site.job(sizes=[150, 130]), SHOP, site.section(SHOP), models=site.models, authority_pem=site.authority)


def test_no_label_and_no_column_that_the_model_does_not_name_is_read(site: Site, tmp_path: Path) -> None:
    lines = site.paths[SHOP].read_text().splitlines()
    header = lines[0].split(",")
    keep = [at for at, name in enumerate(header) if name != "bought"]
    file = tmp_path / "rows.csv"
    rows = [[*(line.split(",")[at] for at in keep), "diary"] for line in lines]
    rows[0][-1] = "notes"
    file.write_text("\n".join(",".join(row) for row in rows) + "\n")
    section = site.section(SHOP, source=file)
    _, table = load(site.job(), SHOP, section, models=site.models, authority_pem=site.authority)
    assert table.labels is None or not (table.labels >= 0).any()
    assert [column.name for column in table.party.columns] == ["item", "visits"]


def test_without_the_section_or_without_columns_there_is_nothing_to_score(site: Site, tmp_path: Path) -> None:
    basics: dict[str, Any] = {
        "listen": "127.0.0.1:1",
        "advertise": "127.0.0.1:1",
        "credentials": tmp_path,
        "state": tmp_path,
        "coordinator": {"address": "127.0.0.1:2"},
        "dealer": {"address": "127.0.0.1:3"},
        "budget": {"epsilon": 1.0, "delta": 1e-5},
        "approval": {"max_epsilon_per_job": 1.0},
    }
    columns = clicks.section(BANK, site.paths[BANK])
    given = {"source": site.paths[BANK]}
    data = {
        "source": site.paths[BANK],
        "read": {"columns": {"user": "u", "item": "i"}},
        "pseudonym_key": tmp_path / "key",
    }
    with pytest.raises(ValueError, match=r"without \[columns\]"):
        PartyConfig.model_validate({**basics, "catalogue": tmp_path, "data": data, "predictions": given})
    without = PartyConfig.model_validate({**basics, "columns": columns})
    assert HeldPredictions.of(without, site.authority) is None
    held = HeldPredictions.of(
        PartyConfig.model_validate({**basics, "columns": columns, "predictions": given}), site.authority
    )
    assert held is not None and held.section.recipients == ()  # nobody, unless the operator says otherwise
    assert (tmp_path / "predictions.sqlite").exists()


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('recipient = "club"', "recipient"),
        ("bits = 3", "bits"),
        ("bits = 2.5", "bits"),
        ("steps = 3", "unknown settings steps"),
        ('published = "absent"', "published"),
        ("[privacy]\nepsilon = 1.0\ndelta = 1e-6\n[trainer.more]", "privacy|trainer"),
    ],
)
def test_a_request_that_cannot_be_met_says_what_is_wrong(site: Site, tmp_path: Path, line: str, says: str) -> None:
    key = line.split(" ")[0]
    settings = {"recipient": f'recipient = "{SHOP}"', "published": f'published = "{site.models}/logistic"'}
    settings[key] = line
    text = "\n".join(settings.values())
    alignment = f'[trainer.alignment]\nmode = "reveal"\nsizes = [150, 150]\nresult = {clicks.SLOTS}\n'
    file = tmp_path / "job.toml"
    file.write_text(f'name = "score"\nparties = {list(PARTIES)}\n[trainer]\nkind = "predictions"\n{text}\n{alignment}')
    with pytest.raises((ConfigError, InputError), match=says):
        plan_job(file, "trial")


def test_the_digest_of_a_model_is_that_of_its_manifest(site: Site) -> None:
    spec = site.job("towers")
    assert isinstance(spec.trainer, PredictionsTrainer) and spec.trainer.hidden is not None
    raw = (site.models / "towers" / "manifest.json").read_bytes()
    assert spec.trainer.model == f"sha256:{hashlib.sha256(raw).hexdigest()}"
    assert spec.versions["veil"] == __version__ and spec.versions["dp-accounting"] == metadata.version("dp-accounting")
