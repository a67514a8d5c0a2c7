"""Plans: within the budget, by shares, for both mechanisms and for both together."""

from __future__ import annotations

import math
from typing import Any

import pytest

from veil.errors import ConfigError
from veil.jobs.spec import Release
from veil.privacy import accountant
from veil.queries.plan import plan_queries
from veil.queries.question import UNIT, from_text

COUNT: dict[str, Any] = {"name": "count", "by": "nothing"}
HISTOGRAM: dict[str, Any] = {"name": "histogram", "by": "category", "groups_per_user": 3}


def plan(*questions: dict[str, Any], epsilon: float = 1.0) -> tuple[Release, ...]:
    trainer, releases = plan_queries(questions, epsilon=epsilon, delta=1e-6, items=24, categories=5)
    assert [from_text(text).name for text in trainer.questions] == [release.name for release in releases]
    assert accountant.epsilon(releases, 1e-6) <= epsilon
    return releases


@pytest.mark.parametrize("epsilon", [0.01, 0.7, 1.0, 30.0])
def test_one_laplace_question_has_noise_of_sensitivity_over_epsilon(epsilon: float) -> None:
    (release,) = plan(HISTOGRAM, epsilon=epsilon)
    assert release.mechanism == "discrete-laplace"
    assert release.sensitivity == 3 * UNIT
    assert release.sigma / release.sensitivity == pytest.approx(1 / epsilon, rel=1e-4)


def test_one_gaussian_question_has_the_accountants_noise() -> None:
    (release,) = plan({**HISTOGRAM, "mechanism": "gaussian"})
    assert release.mechanism == "rounded-gaussian"
    assert release.sigma / release.sensitivity == pytest.approx(accountant.noise_multiplier(1.0, 1e-6), rel=1e-3)


def test_shares_are_relative() -> None:
    count, histogram = plan({**COUNT, "share": 3}, HISTOGRAM)
    costs = [release.sensitivity / release.sigma for release in (count, histogram)]
    assert costs[0] / costs[1] == pytest.approx(3, rel=1e-3)
    again = plan({**COUNT, "share": 0.75}, {**HISTOGRAM, "share": 0.25})
    assert [release.sigma for release in again] == pytest.approx([count.sigma, histogram.sigma], rel=1e-4)


@pytest.mark.parametrize("epsilon", [0.2, 2.0])
def test_both_mechanisms_together_use_the_budget(epsilon: float) -> None:
    gaussian = {"mechanism": "gaussian", "share": 2}
    releases = plan(COUNT, {**HISTOGRAM, **gaussian}, {**HISTOGRAM, "name": "more", **gaussian}, epsilon=epsilon)
    assert accountant.epsilon(releases, 1e-6) > 0.97 * epsilon
    assert releases[1].sigma == pytest.approx(releases[2].sigma, rel=1e-6)


def test_many_questions_cost_less_than_their_sum() -> None:
    questions = [{**COUNT, "name": f"count-{number}"} for number in range(60)]
    releases = plan(*questions, epsilon=2.0)
    assert sum(release.sensitivity / release.sigma for release in releases) > 2.5
    assert accountant.epsilon(releases, 1e-6) > 0.97 * 2.0


@pytest.mark.parametrize(
    ("questions", "complaint"),
    [
        ([], "0 questions"),
        ([{**COUNT, "name": f"q{number}"} for number in range(65)], "65 questions"),
        ([{**COUNT, "share": 0}], "share"),
        ([{**COUNT, "share": math.inf}], "share"),
        ([{**COUNT, "share": -(10**400)}], "share"),
        ([{**COUNT, "share": "much"}], "share"),
        ([{**COUNT, "share": True}], "share"),
        ([{**COUNT, "colour": 1}], "colour"),
        ([{**COUNT, "only_items": [f"item-{number}" for number in range(1000)]}], "characters of text"),
    ],
)
def test_plans_that_cannot_be_made_are_refused(questions: list[dict[str, Any]], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        plan(*questions)


def test_noise_beyond_the_grid_is_refused() -> None:
    huge = {"name": "q", "by": "nothing", "measure": "interactions", "interactions_per_group": 1_000_000}
    with pytest.raises(ConfigError, match="grid steps"):
        plan(huge, epsilon=1e-6)
