"""What a party refuses to sign of a job on columns: a case for each thing that it can recompute or does not give."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from party.config import Approval, Columns
from party.job.review import Reviewed, review
from party.rows.columns import prepare
from tests.unit.trainers.columns.clicks import BANK, SHOP, job, section, write_tables
from veil.errors import ConfigError, DataError, PolicyError, VeilError
from veil.identity.names import Identity, Role
from veil.jobs.spec import JobSpec, canonical, digest
from veil.privacy.ledger import Ledger

_RULES = Approval(mode="policy", max_epsilon_per_job=10.0)
Judge = Callable[..., Reviewed]


@pytest.fixture(scope="module")
def spec() -> JobSpec:
    return job()


@pytest.fixture
def judge(tmp_path: Path) -> Judge:
    paths = write_tables(tmp_path)
    held = {}
    for party in (BANK, SHOP):
        (tmp_path / party).mkdir()
        held[party] = prepare(Columns.model_validate(section(party, paths[party])), tmp_path / party)
    ledger = Ledger(tmp_path / "ledger.sqlite", epsilon_limit=20.0, delta=1e-5)

    def ask(document: dict[str, Any], party: str = SHOP, *, gives: bool = True, **more: bool) -> Reviewed:
        text = canonical(document)
        return review(
            text,
            digest(text),
            me=Identity("trial", Role.PARTY, party),
            dealer="main",
            catalogue=None,
            ledger=ledger,
            rules=_RULES,
            columns=held[party] if gives else None,
            **more,
        )

    return ask


def document_of(spec: JobSpec) -> dict[str, Any]:
    return dict(json.loads(spec.text()))


def test_a_sound_job_is_signed_by_both(spec: JobSpec, judge: Judge) -> None:
    for party in (BANK, SHOP):
        assert 7.9 < judge(document_of(spec), party).epsilon <= 8.0


def change_columns(document: dict[str, Any], change: Callable[[Any], object]) -> dict[str, Any]:
    columns = json.loads(document["trainer"]["columns"])
    change(columns)
    document["trainer"]["columns"] = canonical(columns)
    return document


def change_steps(document: dict[str, Any], **factors: int) -> dict[str, Any]:
    for release in document["releases"]:
        if release["name"].startswith("step"):
            for name, divisor in factors.items():
                release[name] //= divisor
    return document


def put(document: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    *parents, last = path.split(".")
    place: Any = document
    for part in parents:
        place = place[int(part)] if part.isdigit() else place[part]
    place[int(last) if last.isdigit() else last] = value
    return document


CASES: list[tuple[str, Callable[[dict[str, Any]], dict[str, Any]], type[VeilError], str]] = [
    (SHOP, lambda d: change_steps(d, sigma=4), PolicyError, "claims epsilon"),
    (SHOP, lambda d: change_steps(d, sigma=4, sensitivity=4), ConfigError, "sensitivity"),
    (BANK, lambda d: put(d, "releases.0.sensitivity", 10), ConfigError, "sensitivity"),
    (SHOP, lambda d: put(d, "releases", d["releases"][:-1]), ConfigError, "releases"),
    (SHOP, lambda d: put(d, "trainer.descent.steps", 7), ConfigError, "releases"),
    # more waves, or larger ones, make a larger residual possible, hence a larger sensitivity
    (SHOP, lambda d: put(d, "trainer.descent.sigmoid.constant", 2**25), ConfigError, "sensitivity"),
    (SHOP, lambda d: put(d, "trainer.descent.precision_bits", 12), ConfigError, "sensitivity"),
    (SHOP, lambda d: put(d, "trainer.triples", "he"), ConfigError, "triples"),
    (SHOP, lambda d: put(d, "trainer.alignment.result", 100), ConfigError, "slots"),
    (SHOP, lambda d: put(d, "trainer.alignment.sizes", [150, 150, 150]), ConfigError, "alignment"),
    (SHOP, lambda d: put(d, "trainer.alignment.sizes", [150, 130]), DataError, "more rows"),
    (
        SHOP,
        lambda d: put(d, "trainer.openings", [*d["trainer"]["openings"], {"name": "gradient", "shape": [9, 1]}]),
        ConfigError,
        "openings",
    ),
    (SHOP, lambda d: put(d, "trainer.openings.0.shape", [9, 2]), ConfigError, "openings"),
    # classes that weigh more than the sensitivity says
    (SHOP, lambda d: change_columns(d, lambda c: c["label"].update(positive_weight=8.0)), ConfigError, "sensitivity"),
    (SHOP, lambda d: change_columns(d, lambda c: c["parties"].reverse()), ConfigError, "in order"),
    (BANK, lambda d: change_columns(d, lambda c: c["parties"][0].update(identifier="id")), PolicyError, "identifier"),
    (BANK, lambda d: change_columns(d, lambda c: c["parties"][0]["columns"][0].update(name="x")), PolicyError, "'x'"),
    (SHOP, lambda d: change_columns(d, lambda c: c["label"].update(name="clicked")), PolicyError, "label"),
    (SHOP, lambda d: put(d, "trainer.columns", d["trainer"]["columns"] + " "), ConfigError, "canonical"),
    (SHOP, lambda d: put(d, "trainer.columns", "{}"), ConfigError, "columns"),
    (SHOP, lambda d: change_columns(d, lambda c: c["label"].update(positive="yes")), DataError, "neither outcome"),
]


@pytest.mark.parametrize(("party", "change", "kind", "says"), CASES)
def test_each_is_refused(
    spec: JobSpec,
    judge: Judge,
    party: str,
    change: Callable[[dict[str, Any]], dict[str, Any]],
    kind: type[VeilError],
    says: str,
) -> None:
    with pytest.raises(kind, match=says):
        judge(change(document_of(spec)), party)


@pytest.mark.parametrize(("party", "change", "kind", "says"), CASES)
def test_before_consent_everything_but_rows_is_looked_at(
    spec: JobSpec,
    judge: Judge,
    party: str,
    change: Callable[[dict[str, Any]], dict[str, Any]],
    kind: type[VeilError],
    says: str,
) -> None:
    """A refusal for rows, asked for again and again, would find out what they are."""
    document = change(document_of(spec))
    if kind is DataError:
        assert judge(document, party, consented=False).digest == digest(canonical(document))
        return
    with pytest.raises(kind, match=says):
        judge(document, party, consented=False)


def test_another_label_holder_is_refused_by_who_does_not_give_labels(judge: Judge) -> None:
    with pytest.raises(PolicyError, match="label 'bought' at bank"):
        judge(document_of(job(label_party=BANK)), BANK)


def test_a_party_without_columns_signs_no_such_job(spec: JobSpec, judge: Judge) -> None:
    with pytest.raises(PolicyError, match="on columns"):
        judge(document_of(spec), gives=False)


def test_a_catalogue_is_for_other_trainers(spec: JobSpec, judge: Judge) -> None:
    catalogue = {"digest": "sha256:" + "0" * 64, "items": 3, "features": 2}
    with pytest.raises(ConfigError, match="catalogue"):
        judge(put(document_of(spec), "catalogue", catalogue))
