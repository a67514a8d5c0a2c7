"""What `veil score-rows` says of its numbers holds for the numbers that it writes."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from cli.score_rows import _facts, _upward, _write
from he_inference.client import RowScores


def scored(errors: float, whole: bool) -> RowScores:
    scores = np.array([[0.1234567, -3.0], [2.0000004, 0.0]])
    parties = ("bank", "shop") if whole else ("bank",)
    return RowScores(
        ("a", "b"), ("one", "two"), scores, np.full((2, 2), errors), parties, whole, True, 4, 400, 40, 0.1, 1.0
    )


@pytest.mark.parametrize("bound", [1.249e-4, 1.25e-4, 0.0999, 0.996, 1.0, 3e-7, 2.001e-5, 0.0])
def test_a_printed_bound_is_never_below_the_bound(bound: float) -> None:
    assert bound <= float(_upward(bound)) <= 1.1 * bound
    assert len(_upward(bound)) <= 7


@pytest.mark.parametrize("whole", [True, False])
def test_the_stated_bound_covers_the_digits_that_are_written(whole: bool, tmp_path: Path) -> None:
    found = scored(0.0, whole)
    _write(found, "", tmp_path / "out.csv")
    rows = list(csv.reader((tmp_path / "out.csv").read_text().splitlines()))[1:]
    written = np.array([float(row[2]) for row in rows]).reshape(2, 2)
    stated = float(_facts(found).split(" within ")[1].split(" of ")[0])
    truth = found.probabilities if whole else found.scores
    assert 0 < np.abs(written - truth).max() <= stated
