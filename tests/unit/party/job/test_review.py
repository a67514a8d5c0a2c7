"""What a party refuses to sign: each step of docs/protocol.md, "Signing", has a job that fails exactly there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from baseline.evaluate import simulation_spec
from party.config import Approval, Users
from party.job.review import review
from veil import __version__
from veil.deidentify.pipeline import Pipeline
from veil.deidentify.source import RawUsers
from veil.errors import BudgetError, ConfigError, PolicyError, VeilError
from veil.identity.names import Identity, Role
from veil.jobs.spec import JobSpec, canonical, digest
from veil.privacy.ledger import Ledger
from veil.queries.plan import plan_queries
from veil.recsys import synthetic
from veil.recsys.catalogue import Catalogue
from veil.recsys.features import build_catalogue
from veil.recsys.pseudonyms import PseudonymKey

_ME = Identity("simulation", Role.PARTY, "party-1")
_RULES = Approval(mode="policy", max_epsilon_per_job=5.0)


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return build_catalogue(synthetic.generate(50, 320, seed=5).table)


@pytest.fixture
def job(catalogue: Catalogue) -> dict[str, Any]:
    spec = simulation_spec(catalogue, epsilon=3.0, delta=1e-5)
    document = spec.model_dump(mode="json", by_alias=True)
    document["versions"] = {"veil": __version__, "dp-accounting": metadata.version("dp-accounting")}
    return document


@pytest.fixture
def judge(catalogue: Catalogue, tmp_path: Path) -> Callable[..., Any]:
    ledger = Ledger(tmp_path / "ledger.sqlite", epsilon_limit=4.0, delta=1e-5)

    def ask(
        document: dict[str, Any],
        *,
        rules: Approval = _RULES,
        claimed: bytes | None = None,
        me: Identity = _ME,
        users: Users | None = None,
    ) -> Any:
        text = canonical(document)
        shown = digest(text) if claimed is None else claimed
        return review(text, shown, me=me, dealer="dealer", catalogue=catalogue, ledger=ledger, rules=rules, users=users)

    return ask


def test_a_sound_job_is_signed_with_its_recomputed_cost(job: dict[str, Any], judge: Callable[..., Any]) -> None:
    reviewed = judge(job)
    assert reviewed.digest == digest(canonical(job))
    assert isinstance(reviewed.spec, JobSpec)
    assert 2.9 < reviewed.epsilon <= 3.0


def _with(job: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    changed: dict[str, Any] = copy.deepcopy(job)
    *parents, last = path.split(".")
    place: Any = changed
    for part in parents:
        place = place[int(part)] if part.isdigit() else place[part]
    place[last] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value", "kind", "says"),
    [
        ("consortium", "other", ConfigError, "consortium"),
        ("parties", ["party-0", "party-2"], ConfigError, "does not name"),
        ("dealer", "main", PolicyError, "dealer"),
        ("versions", {"veil": "9.9.9"}, PolicyError, "9.9.9"),
        ("versions", {"veil": __version__, "dp-accounting": "0.0.1"}, PolicyError, "dp-accounting"),
        ("catalogue.digest", "sha256:" + "1" * 64, ConfigError, "catalogue"),
        # less sensitivity than the trainer has would be a false epsilon
        ("releases.0.sensitivity", 1000, ConfigError, "sensitivity"),
        ("releases.1.sensitivity", 1000, ConfigError, "sensitivity"),
        ("releases.1.shape", [320, 2], ConfigError, "shape"),
        ("releases.1.name", "extra", ConfigError, "release"),
        # less noise than the claimed epsilon needs
        ("releases.1.sigma", 1_000_000, PolicyError, "claims epsilon"),
        ("privacy.epsilon", 1.0, PolicyError, "claims epsilon"),
        # a larger clip than the sensitivity was computed for
        ("trainer.clip", 0.9, ConfigError, "sensitivity"),
    ],
)
def test_each_step_refuses(
    job: dict[str, Any], judge: Callable[..., Any], path: str, value: object, kind: type[VeilError], says: str
) -> None:
    with pytest.raises(kind) as refused:
        judge(_with(job, path, value))
    assert says in str(refused.value)


def test_another_digest_than_the_text_has(job: dict[str, Any], judge: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match="different texts to different parties"):
        judge(job, claimed=bytes(32))


def test_text_that_is_not_canonical(job: dict[str, Any], judge: Callable[..., Any], catalogue: Catalogue) -> None:
    with pytest.raises(ConfigError):
        judge({**job, "surprise": 1})


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        (Approval(max_epsilon_per_job=2.0), "epsilon"),
        (Approval(max_epsilon_per_job=5.0, min_parties=4), "parties"),
        (Approval(max_epsilon_per_job=5.0, noise_sources=("parties",)), "noise source"),
    ],
)
def test_the_party_has_rules_of_its_own(
    job: dict[str, Any], judge: Callable[..., Any], rules: Approval, says: str
) -> None:
    with pytest.raises(PolicyError, match=says):
        judge(job, rules=rules)


def test_a_budget_that_is_used_up(job: dict[str, Any], judge: Callable[..., Any], catalogue: Catalogue) -> None:
    big = simulation_spec(catalogue, epsilon=4.9, delta=1e-5).model_dump(mode="json", by_alias=True)
    big["versions"] = job["versions"]
    with pytest.raises(BudgetError):
        judge(big)


def _users(role: str, small_classes: str = "suppress", *, k: int = 2) -> Users:
    return Users.model_validate(
        {
            "source": "users.csv",
            "read": {"columns": {"user": "user"}},
            "attribute": [{"name": "age", "role": role, "steps": [{"values": ["young", "old"]}]}],
            "anonymity": {"k": k, "small_classes": small_classes},
        },
        strict=False,
    )


def test_hiding_small_classes_makes_an_answer_move_by_more_than_its_sensitivity() -> None:
    """Why questions by such attributes are refused: one user leaves, and all of the class are no longer counted."""

    def known(users: int) -> int:
        raw = RawUsers(
            pseudonyms=tuple(f"p{number}" for number in range(users)),
            distinct=(("young", "old"),),
            codes=np.array([[0]] * (users - 20) + [[1]] * 20, np.int32),
            rows_read=users,
            bad_reasons={},
            users_read=users,
        )
        prepared, _ = Pipeline(rules.attribute, rules.anonymity, key).run(raw)
        assert prepared is not None
        return int((prepared.column("age") == 0).sum())

    rules, key = _users("quasi-identifier", k=10), PseudonymKey(bytes(32))
    assert (known(30), known(29)) == (10, 0)


@pytest.mark.parametrize(
    ("users", "says"),
    [
        (_users("quasi-identifier"), "hidden or coarsened"),
        (_users("quasi-identifier", "generalise"), "hidden or coarsened"),
        (None, "expected one that this party keeps"),
        (_users("quasi-identifier", "stop"), None),
        (_users("sensitive"), None),
        (_users("insensitive"), None),
    ],
)
def test_only_attributes_of_the_users_own_row_are_counted(
    job: dict[str, Any], judge: Callable[..., Any], users: Users | None, says: str | None
) -> None:
    questions = [
        {"name": "by-age", "by": "attribute:age", "groups": ["young", "old"]},
        {"name": "all", "by": "nothing"},
    ]
    trainer, releases = plan_queries(questions, epsilon=3.0, delta=1e-5, items=1, categories=1)
    document = {
        **job,
        "trainer": trainer.model_dump(mode="json"),
        "releases": [one.model_dump(mode="json") for one in releases],
    }
    if says is None:
        assert judge(document, users=users).epsilon <= 3.0
        return
    with pytest.raises(PolicyError, match=says):
        judge(document, users=users)
