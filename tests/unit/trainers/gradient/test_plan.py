"""The plan of a gradient job: within its budget by two accountants."""

from __future__ import annotations

from pathlib import Path

import pytest
from opacus.accountants import PRVAccountant, RDPAccountant

from tests.unit.trainers.gradient.conftest import write
from tests.unit.trainers.gradient.module_files import BILINEAR
from veil.errors import ConfigError
from veil.jobs.request import CatalogueFacts, JobRequest
from veil.privacy import accountant
from veil.recsys.catalogue import Catalogue
from veil.trainers import registry
from veil.trainers.gradient.plan import plan_gradient, rounds_of, settings, stage_factors


def planned(epsilon: float = 3.0, **overrides: float):  # type: ignore[no-untyped-def]
    return plan_gradient(
        epsilon=epsilon,
        delta=1e-5,
        noise_source="dealer",
        parties=3,
        module="net",
        module_sha256="sha256:" + "0" * 64,
        parameters=100,
        overrides={"noise_decay": 1.0, **overrides},
    )


@pytest.mark.parametrize(("epsilon", "sampling"), [(0.5, 1.0), (3.0, 0.3), (10.0, 1.0)])
def test_a_plan_costs_what_it_may_and_no_less(epsilon: float, sampling: float) -> None:
    _, releases = planned(epsilon, sampling=sampling, rounds=30)
    assert 0.99 * epsilon < accountant.epsilon(releases, 1e-5) <= epsilon


def test_opacus_accounts_the_same() -> None:
    """The rounds alone, by Opacus' own accountants: its numerical estimate within 2%, its Renyi bound above."""
    _, releases = planned(3.0, sampling=0.25, rounds=50)
    (multiplier,) = set(rounds_of(releases))
    ours = accountant.epsilon(releases[1:], 1e-5)
    prv, rdp = PRVAccountant(), RDPAccountant()
    for _ in range(50):
        prv.step(noise_multiplier=multiplier, sample_rate=0.25)
        rdp.step(noise_multiplier=multiplier, sample_rate=0.25)
    assert ours == pytest.approx(prv.get_epsilon(delta=1e-5), rel=0.02)
    assert ours < rdp.get_epsilon(delta=1e-5)


@pytest.mark.parametrize("decay", [2.0, 0.5])
def test_noise_that_changes_over_the_rounds_costs_the_same(decay: float) -> None:
    _, releases = planned(3.0, noise_decay=decay, rounds=8, sampling=1.0)
    noise = rounds_of(releases)
    assert noise[0] / noise[-1] == pytest.approx(decay, rel=1e-3)
    assert len({round(one, 3) for one in noise}) == 4
    assert sorted(noise, reverse=decay > 1) == noise
    assert 0.99 * 3.0 < accountant.epsilon(releases, 1e-5) <= 3.0


def test_stages_are_equal_runs_of_rounds() -> None:
    assert stage_factors(8, 8.0) == pytest.approx([8, 8, 4, 4, 2, 2, 1, 1])
    assert stage_factors(3, 8.0) == [1.0] * 3
    assert stage_factors(5, 1.0) == [1.0] * 5


def test_the_count_takes_its_small_share() -> None:
    _, releases = planned(3.0, sampling=1.0)
    assert releases[0].name == "users"
    assert releases[0].sampling == 1.0
    assert accountant.epsilon(releases[:1], 1e-5) < 0.3


def test_defaults_follow_the_budget_and_the_population() -> None:
    small, large = settings(3.0, 1_000), settings(3.0, 1_000_000)
    assert 0 < large.sampling <= small.sampling <= 1
    assert planned(3.0, sampling=1.0)[0] == planned(3.0, sampling=1.0, population=5000)[0]
    for wrong in (0.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="epsilon"):
            settings(wrong, 1000)


def test_overrides_reach_the_job() -> None:
    given = {"rounds": 7.0, "clip": 0.125, "sampling": 1.0, "rate": 0.5, "local_steps": 2.0, "module-size": 3.0}
    trainer, releases = planned(3.0, **given)
    assert (trainer.rounds, trainer.clip, trainer.sampling) == (7, 0.125, 1.0)
    assert {name: trainer.options[name] for name in ("rate", "local_steps", "module-size")} == {
        "rate": 0.5,
        "local_steps": 2.0,
        "module-size": 3.0,
    }
    assert len(releases) == 8


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("surprise", 1.0),
        ("rounds", 1001.0),
        ("rounds", 2.5),
        ("sampling", 0.0),
        ("sampling", 1.5),
        ("clip", -1.0),
        ("users_share", 1.0),
        ("noise_decay", 0.01),
        ("population", 0.0),
        ("rate", 0.0),
    ],
)
def test_overrides_that_cannot_be_met(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        planned(3.0, **{name: value})


def test_a_request_is_planned_with_the_operators_own_file(catalogue: Catalogue, tmp_path: Path) -> None:
    catalogue.save(tmp_path / "catalogue")
    document = {
        "name": "films",
        "parties": ("alpha", "beta"),
        "catalogue": {"path": tmp_path / "catalogue"},
        "privacy": {"epsilon": 3.0, "delta": 1e-5},
        "trainer": {
            "kind": "gradient",
            "module": "net",
            "module_file": write(tmp_path, BILINEAR),
            "rounds": 4.0,
            "sampling": 1.0,
            "noise_decay": 1.0,
        },
    }
    facts = CatalogueFacts(digest=catalogue.digest, items=catalogue.items, features=catalogue.features.shape[1])
    trainer, releases = registry.plan(JobRequest.model_validate(document), facts)
    assert (trainer.kind, trainer.module, trainer.parameters) == ("gradient", "net", 49)  # type: ignore[union-attr]
    assert len(releases) == 5
    del document["trainer"]["module_file"]  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="module_file"):
        registry.plan(JobRequest.model_validate(document), facts)
