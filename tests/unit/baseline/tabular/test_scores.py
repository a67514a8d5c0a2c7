from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseline.tabular.scores import auc, log_loss
from veil.errors import InputError


@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=2, max_size=40))
def test_auc_is_the_share_of_ordered_pairs(rows: list[tuple[bool, int]]) -> None:
    labels = np.array([float(label) for label, _ in rows])
    scores = np.array([float(score) for _, score in rows])
    if labels.min() == labels.max():
        with pytest.raises(InputError):
            auc(labels, scores)
        return
    pairs = [(p > q) + 0.5 * (p == q) for p in scores[labels == 1] for q in scores[labels == 0]]
    assert auc(labels, scores) == pytest.approx(float(np.mean(pairs)))


def test_both_agree_with_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(4)
    labels, logits = (rng.random(500) < 0.3).astype(float), rng.normal(size=500).round(1)
    assert auc(labels, logits) == pytest.approx(metrics.roc_auc_score(labels, logits))
    assert log_loss(labels, logits) == pytest.approx(metrics.log_loss(labels, 1 / (1 + np.exp(-logits))))
    assert log_loss(labels, logits * 1e4) < np.inf
