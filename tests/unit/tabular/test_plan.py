from __future__ import annotations

import pytest

from veil.errors import ConfigError
from veil.privacy.accountant import epsilon
from veil.tabular.plan import DescentOptions, charged_release, default_descent, plan_releases
from veil.tabular.schema import TabularSchema


@pytest.mark.parametrize("budget", [1.0, 3.0, 8.0])
def test_a_plan_costs_its_budget_and_hardly_less(schema: TabularSchema, budget: float) -> None:
    releases = plan_releases(schema, epsilon=budget, delta=1e-5, steps=20, parameters=15, statistics_share=0.04)
    assert [release.name for release in releases[:3]] == ["statistics-bank", "statistics-shop", "step-0000"]
    assert len(releases) == 22
    spent = epsilon(releases, 1e-5)
    assert 0.998 * budget < spent <= budget
    charged = charged_release(releases[2:], "weights", (15,))
    assert spent <= epsilon((*releases[:2], charged), 1e-5) <= budget * 1.0001


def test_refuses_what_does_not_add_up(schema: TabularSchema) -> None:
    plan = plan_releases(schema, epsilon=1.0, delta=1e-5, steps=2, parameters=15, statistics_share=0.1)
    with pytest.raises(ConfigError, match="expected equal ones"):
        charged_release(plan, "weights", (15,))
    for steps, share in ((0, 0.1), (10_000, 0.1), (2, 0.0), (2, 1.0)):
        with pytest.raises(ConfigError):
            plan_releases(schema, epsilon=1.0, delta=1e-5, steps=steps, parameters=15, statistics_share=share)
    with pytest.raises(ConfigError, match="at least one"):
        charged_release((), "weights", (15,))
    # Noise of 1 / sqrt(4) rounds to none; noise of 1 would cost less than the four steps do.
    four = tuple(release.model_copy(update={"sigma": 1}) for release in plan[2:] * 2)
    with pytest.raises(ConfigError, match=r"expected at least sqrt\(steps\)"):
        charged_release(four, "weights", (15,))


def test_more_rows_and_more_budget_let_weights_travel_further() -> None:
    rates = [default_descent(budget, 1e-5, 8192).learning_rate for budget in (0.1, 1.0, 2.0, 8.0)]
    assert rates == sorted(rates) and rates[1] == pytest.approx(15, rel=0.05)
    assert default_descent(1.0, 1e-5, 1000).learning_rate < rates[1]
    assert default_descent(None, 1e-5, 8192).steps > default_descent(8.0, 1e-5, 8192).steps
    for wrong in ({"steps": 0}, {"learning_rate": 0.0}, {"momentum": 1.0}):
        with pytest.raises(ConfigError):
            DescentOptions(**{"steps": 1, "learning_rate": 1.0, **wrong})  # type: ignore[arg-type]
    with pytest.raises(ConfigError):
        default_descent(1.0, 1e-5, 0)
