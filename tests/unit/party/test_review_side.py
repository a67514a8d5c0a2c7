"""What a party refuses to sign of a side job: a case for each thing that it can recompute or does not hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from party.config import Approval, Columns
from party.job.review import Reviewed, review
from party.rows.columns import prepare
from party.rows.identifiers import HeldIdentifiers
from tests.unit.trainers.side.shops import BANK, IDENTIFIERS, SHOP, World, catalogue, csv
from veil.errors import ConfigError, DataError, PolicyError, VeilError
from veil.identity.names import Identity, Role
from veil.jobs.spec import JobSpec, canonical, digest
from veil.privacy.ledger import Ledger

Judge = Callable[..., Reviewed]


@pytest.fixture(scope="module")
def spec() -> JobSpec:
    return World().spec(rounds=0)


@pytest.fixture
def judge(tmp_path: Path) -> Judge:
    source = tmp_path / "bank.csv"
    source.write_text(csv(BANK))
    section = {"source": source, "identifier": IDENTIFIERS[BANK], "use": ("region", "income"), "format": {}}
    held = prepare(Columns.model_validate(section), tmp_path)
    ledger = Ledger(tmp_path / "ledger.sqlite", epsilon_limit=20.0, delta=1e-5)

    def ask(document: dict[str, Any], party: str, **more: Any) -> Reviewed:
        text = canonical(document)
        given = {
            "catalogue": catalogue(),
            "columns": held if party == BANK else None,
            "identifiers": HeldIdentifiers(tmp_path / "ids", 150) if party == SHOP else None,
        }
        return review(
            text,
            digest(text),
            me=Identity("trial", Role.PARTY, party),
            dealer="main",
            ledger=ledger,
            rules=Approval(mode="policy", max_epsilon_per_job=10.0),
            **{**given, **more},
        )

    return ask


def document_of(spec: JobSpec) -> dict[str, Any]:
    return dict(json.loads(spec.text()))


def test_a_sound_job_is_signed_by_both(spec: JobSpec, judge: Judge) -> None:
    for party in (BANK, SHOP):
        assert 7.9 < judge(document_of(spec), party).epsilon <= 8.0


def test_what_a_party_does_not_hold_it_does_not_sign(spec: JobSpec, judge: Judge) -> None:
    cases: list[tuple[str, dict[str, Any], type[VeilError], str]] = [
        (SHOP, {"identifiers": None}, PolicyError, "none are kept"),
        (SHOP, {"identifiers": HeldIdentifiers(Path("ids"), 161)}, DataError, "more users than the 160"),
        (SHOP, {"catalogue": None}, PolicyError, "catalogue"),
        (BANK, {"columns": None}, PolicyError, "job on columns"),
        (BANK, {"catalogue": None}, PolicyError, "catalogue"),
    ]
    for party, given, kind, says in cases:
        with pytest.raises(kind, match=says):
            judge(document_of(spec), party, **given)
    # whether rows fit is not told before a person has decided
    judge(document_of(spec), SHOP, identifiers=HeldIdentifiers(Path("ids"), 161), consented=False)


def test_what_a_party_can_recompute_it_does_not_believe(spec: JobSpec, judge: Judge) -> None:
    def cheaper(document: dict[str, Any], name: str, **factors: int) -> dict[str, Any]:
        for release in document["releases"]:
            if release["name"] == name:
                release.update({key: release[key] // divisor for key, divisor in factors.items()})
        return document

    def columns(document: dict[str, Any], old: str, new: str) -> dict[str, Any]:
        document["trainer"]["columns"] = document["trainer"]["columns"].replace(old, new)
        return document

    def fewer(document: dict[str, Any]) -> dict[str, Any]:
        document["trainer"]["alignment"]["sizes"] = [160, 149]
        return columns({**document}, '"slots":150', '"slots":149') | {"trainer": document["trainer"]}

    cases: list[tuple[str, dict[str, Any], type[VeilError], str]] = [
        (SHOP, cheaper(document_of(spec), "outer-bank", sensitivity=4, sigma=4), ConfigError, "sensitivity"),
        (SHOP, cheaper(document_of(spec), "outer-bank", sigma=4), PolicyError, "claims epsilon"),
        (BANK, cheaper(document_of(spec), "moment-bank", sensitivity=2), ConfigError, "sensitivity"),
        (BANK, columns(document_of(spec), '"name":"income"', '"name":"salary"'), PolicyError, "salary"),
        (BANK, columns(document_of(spec), '"identifier":"customer"', '"identifier":"tax"'), PolicyError, "identifier"),
        (BANK, columns(document_of(spec), '"unknown":"other"', '"unknown":"refuse"'), ConfigError, "shape"),
        (BANK, fewer(document_of(spec)), ConfigError, "got a result"),
    ]
    for party, document, kind, says in cases:
        with pytest.raises(kind, match=says):
            judge(document, party)
