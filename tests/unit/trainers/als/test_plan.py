"""The plan for private ALS: within the budget, one documented function of epsilon."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veil.errors import ConfigError
from veil.jobs.spec import AlsTrainer, Release
from veil.privacy.accountant import epsilon as accounted
from veil.privacy.mechanism import check_headroom
from veil.recsys import postprocess
from veil.trainers.als import plan
from veil.trainers.als.algorithm import MIXING_NOISE, MIXING_OPTIONS
from veil.trainers.als.plan import plan_als
from veil.trainers.als.statistics import item_gram_sensitivity, round_sensitivity, triangle_size
from veil.trainers.linear import count_sensitivity


def planned(
    epsilon: float = 3.0, *, items: int = 3706, features: int = 193, **overrides: float
) -> tuple[AlsTrainer, tuple[Release, ...]]:
    return plan_als(epsilon=epsilon, delta=1e-5, items=items, features=features, overrides=overrides)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0, 10.0, 50.0])
@pytest.mark.parametrize("item_gram", [0.0, 1.0])
def test_a_plan_costs_what_it_may_and_no_less(epsilon: float, item_gram: float) -> None:
    _, releases = planned(epsilon, item_gram=item_gram)
    assert 0.995 * epsilon < accounted(releases, 1e-5) <= epsilon


def test_sensitivities_are_the_mechanisms() -> None:
    _, releases = planned(10.0, rounds=2)
    assert [release.sensitivity for release in releases] == [count_sensitivity(), *[round_sensitivity()] * 2]
    assert [release.shape for release in releases] == [(3706,), (3706 + 48, 48), (3706 + 48, 48)]
    # sqrt(2^32 + 2^28) is a little below 67553
    assert (count_sensitivity(), round_sensitivity()) == (2**20, 67553 * 2**16)
    _, releases = planned(10.0, rounds=1, item_gram=1.0, dimensions=4)
    assert [release.name for release in releases] == ["counts", "item-gram-1", "round-1"]
    assert releases[1].shape == (3706, 10)
    assert releases[1].sensitivity == item_gram_sensitivity() == 2**12 * 5 * 2**20


def test_sums_of_a_hundred_million_users_fit() -> None:
    for item_gram in (0.0, 1.0):
        _, releases = planned(0.05, item_gram=item_gram)
        for release in releases:
            check_headroom(
                sensitivity=release.sensitivity,
                sigma=release.sigma,
                users=100_000_000,
                noise_source="parties",
                parties=16,
            )


def test_the_budget_is_split_as_documented() -> None:
    chosen = plan.settings(1.0, 3706, 193)
    assert chosen.counts_share == 0.6
    assert plan.settings(0.2, 3706, 193) == chosen
    assert plan.settings(50.0, 3706, 193) == plan.settings(5.0, 3706, 193)
    # a geometric mean of epsilons is half-way
    assert plan.settings(5.0**0.5, 3706, 193).counts_share == pytest.approx(0.4)
    assert chosen.fractions[1:] == pytest.approx([0.4 / 6] * 6)
    of_items = plan.settings(5.0, 3706, 193, item_gram=True)
    assert of_items.fractions == pytest.approx([0.2, *[0.8 / 9, 0.8 * 2 / 9] * 3])


def test_options_are_those_of_the_algorithm() -> None:
    trainer, _ = planned(3.0)
    assert set(trainer.options) == MIXING_OPTIONS
    assert trainer.gram == "global"
    assert planned(3.0, item_gram=1.0)[0].gram == "item"
    trainer, _ = planned(3.0, **{"mix-content": 0.5})
    assert [trainer.options[f"mix-{level}-content"] for level in range(1, len(MIXING_NOISE) + 1)] == [0.5] * 4
    assert len(trainer.options) == len(postprocess.TERMS) * len(MIXING_NOISE)


@given(
    epsilon=st.floats(0.05, 100), items=st.integers(3, 10_000), features=st.integers(0, 600), item_gram=st.booleans()
)
@settings(max_examples=200, deadline=None)
def test_settings_always_fit(epsilon: float, items: int, features: int, item_gram: bool) -> None:
    chosen = plan.settings(epsilon, items, features, item_gram=item_gram)
    assert 1 <= chosen.dimensions <= max(1, items - 2)
    assert chosen.dimensions + chosen.content_dimensions + 3 <= 128
    assert sum(chosen.fractions) == pytest.approx(1.0)
    assert min(chosen.fractions) > 0
    assert triangle_size(chosen.dimensions) * items <= 2**26 or not item_gram


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"dimension": 3}, "unknown settings dimension"),
        ({"clip": 0.2}, "unknown settings clip"),
        ({"mix-love": 1.0}, "love"),
        ({"dimensions": 0}, "whole number"),
        ({"dimensions": 3.5}, "whole number"),
        ({"rounds": 0}, "whole number"),
        ({"rounds": 17}, "at most 16"),
        ({"counts_share": 1.0}, "counts_share"),
        ({"popularity_power": -0.1}, "popularity_power"),
        ({"dimensions": 100, "content_dimensions": 100}, "at most 128"),
        ({"item_gram": 0.5}, "item_gram"),
        ({"dimensions": float("nan")}, "whole number"),
    ],
)
def test_bad_overrides_are_refused(overrides: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        planned(3.0, **overrides)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("inf"), float("nan"), 1e9])
def test_bad_budgets_are_refused(epsilon: float) -> None:
    with pytest.raises(ConfigError):
        planned(epsilon)
