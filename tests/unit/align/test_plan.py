"""Plans that cannot be carried out, and what an alignment does to a table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from veil.align.plan import MAX_IDS, MAX_ROWS, Alignment, AlignmentPlan
from veil.errors import ConfigError, InputError


@pytest.mark.parametrize(
    "change",
    [
        {"mode": "open"},
        {"sizes": (5,)},
        {"sizes": (5,) * 17},
        {"sizes": (5, 0)},
        {"sizes": (5, MAX_IDS + 1)},
        {"sizes": (5, True)},
        {"collector": 2},
        {"collector": -1},
        {"result": 0},
        {"result": 6},
        {"least": 4},
        {"least": -1},
        {"mode": "hidden", "result": 5},
        {"mode": "hidden", "result": MAX_ROWS + 1},
        {"mode": "hidden", "result": 20, "least": 1},
    ],
)
def test_impossible_plans_are_refused(change: dict[str, Any]) -> None:
    fine: dict[str, Any] = {"mode": "reveal", "sizes": (5, 9), "result": 3}
    AlignmentPlan(**fine)
    with pytest.raises(ConfigError):
        AlignmentPlan(**{**fine, **change})


def test_every_field_is_in_the_text() -> None:
    plans = [
        AlignmentPlan("reveal", (5, 9), 3),
        AlignmentPlan("hidden", (5, 9), 14),
        AlignmentPlan("reveal", (9, 5), 3),
        AlignmentPlan("reveal", (5, 9), 4),
        AlignmentPlan("reveal", (5, 9), 3, least=1),
        AlignmentPlan("reveal", (5, 9), 3, padded=False),
        AlignmentPlan("reveal", (5, 9), 3, collector=1),
    ]
    assert len({plan.text() for plan in plans}) == len(plans)


def test_take_fills_with_zeros() -> None:
    alignment = Alignment(np.array([2, -1, 0]))
    table = np.arange(1, 7).reshape(3, 2)
    assert alignment.take(table).tolist() == [[5, 6], [0, 0], [1, 2]]
    assert alignment.members.tolist() == [True, False, True] and len(alignment) == 3
    assert repr(alignment) == "Alignment(3 rows)"
    assert Alignment(np.array([-1, -1])).take(np.ones((0, 4))).tolist() == [[0.0] * 4] * 2
    with pytest.raises(InputError):
        alignment.take(table[:2])
