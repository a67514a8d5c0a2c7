"""Category rates first, descent on them after: an alternative with one feature a column, measured beside the default.

Guarantee: two sums over rows, each with a public sensitivity (docstrings below); everything between them is
post-processing. Floating point: an estimate of utility, as `baseline.tabular.alternatives`.

(1) Noised counts of every category among positives P and negatives N of the label: one secret-shared product of each
    party's one-hot columns with the labels. (2) Each party replaces a category by its public log ratio

        z = log((P + a q) / (N + a (1 - q))) - log(q / (1 - q))        q the overall rate, a pseudo-rows

    centred on its mean over rows: "weight of evidence", Good 1950; as target encoding with shrinkage, Micci-Barreca
    2001, "A Preprocessing Scheme for High-Cardinality Categorical Attributes". (3) Noised descent on these columns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from baseline.tabular.alternatives import Float64, gaussian
from baseline.tabular.descent import sigmoid
from veil.privacy.noise import ByteSource
from veil.tabular.plan import DescentOptions

PSEUDO: Final = 20.0
PSEUDO_PER_SIGMA: Final = 0.5
COUNTS_SHARE: Final = 0.5


@dataclass(frozen=True, eq=False)
class Rates:
    """Public: the log ratio of every category less its column's mean, float64[width]; base rate; common scale."""

    ratios: Float64
    rate: float
    scale: float


def category_rates(
    one_hot: Float64, labels: Float64, places: Sequence[slice], multiplier: float, source: ByteSource | None
) -> Rates:
    """Step (1) and the public numbers of (2). places: each column's categories.

    Sensitivity sqrt(columns): a row adds 1 to one count of each column, all among its own outcome's counts.
    """
    deviation = multiplier * math.sqrt(len(places)) if source is not None else 0.0
    width = one_hot.shape[1]
    noise = np.zeros(2 * width) if source is None else gaussian(2 * width, deviation, source)
    positive = one_hot.T @ labels + noise[:width]
    negative = one_hot.T @ (1.0 - labels) + noise[width:]
    rate = float(np.clip(positive.sum() / (positive.sum() + negative.sum()), 1e-3, 1 - 1e-3))
    positive, negative = np.maximum(positive, 0.0), np.maximum(negative, 0.0)
    pseudo = PSEUDO + PSEUDO_PER_SIGMA * deviation
    ratios = np.log((positive + pseudo * rate) / (negative + pseudo * (1 - rate))) - math.log(rate / (1 - rate))
    spread = 0.0
    for place in places:
        share = (positive + negative)[place] / max(float((positive + negative)[place].sum()), 1.0)
        ratios[place] -= share @ ratios[place]
        spread += float(share @ np.square(ratios[place]))
    return Rates(ratios, rate, 1.0 / math.sqrt(max(spread, 1e-12)))


def encoded(one_hot: Float64, places: Sequence[slice], rates: Rates) -> Float64:
    """Step (2): float64[rows, columns], scaled to a mean squared norm of 1 and clipped to norm 1."""
    rows = np.stack([one_hot[:, place] @ rates.ratios[place] for place in places], axis=1) * rates.scale
    clipped: Float64 = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1.0)
    return clipped


def descent(
    rows: Float64,
    labels: Float64,
    rate: float,
    options: DescentOptions,
    multiplier: float,
    source: ByteSource | None,
) -> Float64:
    """Step (3), float64[columns]. Sensitivity of a step: 1 (residual and norm at most 1). multiplier: of one step."""
    weights = np.zeros(rows.shape[1])
    velocity = np.zeros_like(weights)
    bias = math.log(rate / (1.0 - rate))
    for _ in range(options.steps):
        gradient = rows.T @ (sigmoid(rows @ weights + bias) - labels)
        if source is not None:
            gradient = gradient + gaussian(weights.size, multiplier, source)
        velocity = options.momentum * velocity - options.learning_rate / len(rows) * gradient
        weights = weights + velocity
    return weights
