from __future__ import annotations

import numpy as np
import pytest

from baseline.tabular import rates
from baseline.tabular.scores import auc
from veil.privacy.noise import keyed_source
from veil.tabular.plan import DescentOptions

PLACES = [slice(0, 4), slice(4, 10)]


def _table() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(8)
    first, second = rng.integers(0, 4, 4000), rng.integers(0, 6, 4000)
    one_hot = np.zeros((4000, 10))
    one_hot[np.arange(4000), first] = 1
    one_hot[np.arange(4000), 4 + second] = 1
    labels = (rng.random(4000) < 1 / (1 + np.exp(1.5 - first * 0.5 - (second == 2)))).astype(float)
    return one_hot, labels


def test_ratios_are_the_log_odds_of_categories() -> None:
    one_hot, labels = _table()
    found = rates.category_rates(one_hot, labels, PLACES, 0.0, None)
    assert found.rate == pytest.approx(labels.mean())
    for place in PLACES:
        share = one_hot[:, place].mean(axis=0)
        assert share @ found.ratios[place] == pytest.approx(0.0, abs=1e-9)
    means = [labels[one_hot[:, column] == 1].mean() for column in range(4)]
    odds = np.log(np.array(means) / (1 - np.array(means)))
    # pseudo-rows pull by a few per cent
    assert found.ratios[:4] - found.ratios[0] == pytest.approx(odds - odds[0], abs=0.08)
    rows = rates.encoded(one_hot, PLACES, found)
    assert np.linalg.norm(rows, axis=1).max() <= 1 + 1e-12


def test_one_row_moves_the_counts_by_at_most_the_root_of_the_columns() -> None:
    one_hot, labels = _table()
    moved = np.concatenate([one_hot[0] * labels[0], one_hot[0] * (1 - labels[0])])
    assert np.linalg.norm(moved) == pytest.approx(np.sqrt(len(PLACES)))


def test_descent_learns_and_noise_costs() -> None:
    one_hot, labels = _table()
    scores = {}
    for multiplier in (0.0, 3.0, 3000.0):
        source = keyed_source(bytes(16), b"tests/rates") if multiplier else None
        found = rates.category_rates(one_hot, labels, PLACES, multiplier, source)
        rows = rates.encoded(one_hot, PLACES, found)
        weights = rates.descent(rows, labels, found.rate, DescentOptions(10, 10.0), multiplier, source)
        scores[multiplier] = auc(labels, rows @ weights)
    assert scores[0.0] > 0.62
    assert abs(scores[3.0] - scores[0.0]) < 0.02
    assert scores[3000.0] < scores[0.0] - 0.02
