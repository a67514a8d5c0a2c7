"""The plan: within the budget, one documented function of epsilon."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veil.errors import ConfigError
from veil.privacy.accountant import epsilon as accounted
from veil.recsys import postprocess
from veil.trainers.subspace import plan
from veil.trainers.subspace.algorithm import round_sensitivity
from veil.trainers.subspace.counts import counts_sensitivity
from veil.trainers.subspace.options import LIMIT, OPTIONS, mixing_at
from veil.trainers.subspace.plan import plan_subspace


def planned(epsilon: float = 3.0, *, items: int = 3706, features: int = 193, parties: int = 3, **overrides: float):  # type: ignore[no-untyped-def]
    return plan_subspace(
        epsilon=epsilon,
        delta=1e-5,
        noise_source="dealer",
        parties=parties,
        items=items,
        features=features,
        overrides=overrides,
    )


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0, 10.0, 50.0])
@pytest.mark.parametrize("features", [0, 30, 193])
def test_a_plan_costs_what_it_may_and_no_less(epsilon: float, features: int) -> None:
    _, releases = planned(epsilon, features=features)
    assert 0.995 * epsilon < accounted(releases, 1e-5) <= epsilon


def test_sensitivities_are_the_mechanisms() -> None:
    trainer, releases = planned(10.0)
    assert [release.sensitivity for release in releases] == [counts_sensitivity(), *[round_sensitivity(0.2)] * 2]
    assert [release.shape for release in releases] == [(3707,), (3706, 48), (3706, 48)]
    assert (counts_sensitivity(), round_sensitivity(0.2)) == (1_056_737, 2**16 * 13107)
    assert trainer.clip == 0.2


def test_defaults_at_the_anchors() -> None:
    assert plan.settings(1.0, 3706, 193).counts_share == 0.5
    assert plan.settings(0.2, 3706, 193) == plan.settings(1.0, 3706, 193)
    assert [plan.settings(e, 3706, 193).dimensions for e in (1.0, 5.0, 10.0)] == [32, 48, 48]
    assert [plan.settings(e, 3706, 193).rounds for e in (1.0, 3.0, 5.0, 10.0)] == [1, 1, 2, 2]
    assert plan.settings(3.0, 3706, 0).rounds == 3
    assert plan.settings(3.0, 3706, 0).content_dimensions == 0
    # a geometric mean of epsilons is half-way between the settings
    assert plan.settings(5.0**0.5, 3706, 193).counts_share == pytest.approx(0.31)


def test_options_are_all_of_them() -> None:
    trainer, _ = planned(3.0)
    assert set(trainer.options) == OPTIONS
    trainer, _ = planned(3.0, **{"mix-content": 0.5})
    content = {value for name, value in trainer.options.items() if name.endswith("-content")}
    assert content == {0.5}
    assert planned(3.0, noise_ratio_limit=0.0)[0].options[LIMIT] == 0.0


def test_mixing_follows_the_noise_ratio() -> None:
    options = planned(3.0)[0].options
    weak, strong = options["noise-ratio-weak"], options["noise-ratio-strong"]
    for collaborative, prefix in ((True, "mix-"), (False, "mix-floor-")):
        assert mixing_at(options, 10 * weak, collaborative=collaborative)["content"] == options[f"{prefix}weak-content"]
        found = mixing_at(options, strong / 10, collaborative=collaborative)
        assert found["content"] == options[f"{prefix}strong-content"]
        assert set(found) == set(postprocess.TERMS) - (set() if collaborative else {"collaborative"})
        between = mixing_at(options, (weak * strong) ** 0.5, collaborative=collaborative)
        ends = (options[f"{prefix}weak-taste-log"] + options[f"{prefix}strong-taste-log"]) / 2
        assert between["taste-log"] == pytest.approx(ends)


@given(epsilon=st.floats(0.05, 100), items=st.integers(3, 10_000), features=st.integers(0, 600))
@settings(max_examples=200, deadline=None)
def test_settings_always_fit(epsilon: float, items: int, features: int) -> None:
    chosen = plan.settings(epsilon, items, features)
    assert 1 <= chosen.dimensions <= max(1, items - 2)
    assert chosen.dimensions + chosen.content_dimensions + 3 <= 128
    assert sum(chosen.fractions) == pytest.approx(1.0)
    assert min(chosen.fractions) > 0
    assert len(chosen.fractions) == chosen.rounds + 1


def test_more_budget_means_less_noise() -> None:
    sigmas = [planned(epsilon, rounds=1)[1][1].sigma for epsilon in (0.5, 1.0, 3.0, 10.0)]
    assert sigmas == sorted(sigmas, reverse=True)


def test_who_draws_does_not_change_one_draw() -> None:
    plans = [
        plan_subspace(epsilon=3.0, delta=1e-5, noise_source=source, parties=5, items=100, features=40)  # type: ignore[arg-type]
        for source in ("dealer", "parties")
    ]
    assert plans[0] == plans[1]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"dimension": 3}, "unknown settings dimension"),
        ({"mix-love": 1.0}, "love"),
        ({"dimensions": 0}, "whole number"),
        ({"dimensions": 3.5}, "whole number"),
        ({"rounds": -1}, "whole number"),
        ({"rounds": 17}, "at most 16"),
        ({"clip": 0.0}, "clip"),
        ({"clip": 1.5}, "clip"),
        ({"counts_share": 1.0}, "counts_share"),
        ({"popularity_power": -0.1}, "popularity_power"),
        ({"dimensions": 100, "content_dimensions": 100}, "at most 128"),
        ({"dimensions": float("nan")}, "whole number"),
        ({"clip": float("nan")}, "clip"),
        ({"noise_ratio_limit": -1.0}, "noise_ratio_limit"),
        ({"noise_ratio_limit": float("inf")}, "noise_ratio_limit"),
    ],
)
def test_bad_overrides_are_refused(overrides: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        planned(3.0, **overrides)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("inf"), float("nan"), 1e9])
def test_bad_budgets_are_refused(epsilon: float) -> None:
    with pytest.raises(ConfigError):
        planned(epsilon)


def test_an_unknown_noise_source_is_refused() -> None:
    with pytest.raises(ConfigError, match="noise source"):
        plan_subspace(epsilon=3.0, delta=1e-5, noise_source="sky", parties=3, items=9, features=0)  # type: ignore[arg-type]
