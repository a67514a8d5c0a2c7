"""How good scores are: area under the ROC curve, and log loss.

AUC = P(score of a positive > score of a negative) + P(equal) / 2, by ranks: Mann and Whitney 1947; Fawcett 2006, "An
introduction to ROC analysis", section 7. Log loss: mean of log(1 + e^u) - y u over rows, u the logit.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import stats

from veil.errors import InputError

Float64 = npt.NDArray[np.float64]


def auc(labels: Float64, scores: Float64) -> float:
    """Area under the ROC curve in [0, 1]; ties count half. Raises `InputError` without both outcomes."""
    positive = int((labels == 1).sum())
    negative = len(labels) - positive
    if labels.shape != scores.shape or not positive or not negative:
        raise InputError(
            f"got {positive} positive and {negative} negative labels, expected some of each, and a score each"
        )
    ranks = stats.rankdata(scores)
    return float((ranks[labels == 1].sum() - positive * (positive + 1) / 2) / (positive * negative))


def log_loss(labels: Float64, logits: Float64) -> float:
    """Mean negative log likelihood, in nats."""
    return float(np.mean(np.logaddexp(0.0, logits) - labels * logits))
