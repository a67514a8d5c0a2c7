"""Lower bound on epsilon from one run with many canaries, each of which took part by a fair coin.

Guarantee: if the mechanism is (epsilon, delta)-differentially private under adding or removing one user, and the coins
are fair, independent and unknown to whoever made the scores, `epsilon_lower_bound` exceeds epsilon with probability at
most `significance`. Nothing is assumed of the scores: any function of what the mechanism showed and of what the
auditor knew will do; a bad one makes the bound weak, never wrong.

Source: Steinke, Nasr and Jagielski 2023, "Privacy Auditing with One (1) Training Run" (arXiv 2305.08846), theorem 5.2.
Letters: m canaries, r guesses, v of them right. Under the hypothesis,

    P[V >= v] <= beta + 2 m delta alpha,        W binomial(r, 1 / (1 + e^-epsilon)),
    beta = P[W >= v],   alpha = max over i = 1 .. v of P[v > W >= v - i] / i.

Several independent runs count as one with all their canaries: together they are one mechanism on disjoint data, as
private as each. The second summand grows with m, though, so that pooling stops paying at about m = 1 / (100 delta).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import special

from veil.errors import InputError

Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

LARGEST_EPSILON = 50.0
"""Bounds end here."""
_SIDES = (64, 32, 16, 8, 4, 2)
_LEAST_SIDE = 4


def p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Bound on the probability of `right` or more right guesses under (epsilon, delta); in [0, 1]. Theorem 5.2."""
    if not 0 <= right <= guesses <= canaries:
        raise InputError(f"got {right} right of {guesses} guesses on {canaries} canaries, expected an order 0 <= .. <=")
    if not (epsilon >= 0 and 0 <= delta <= 1):
        raise InputError(f"got epsilon {epsilon} and delta {delta}, expected at least 0 and within [0, 1]")
    chance = float(special.expit(epsilon))
    beta = float(_binomial_tail(np.array([right]), guesses, chance)[0])
    if delta == 0 or right == 0:
        return min(1.0, beta)
    step = np.arange(1, right + 1)
    alpha = float(np.max((_binomial_tail(right - step, guesses, chance) - beta) / step))
    return min(1.0, beta + 2 * canaries * delta * max(alpha, 0.0))


def right_guesses(scores: Float64, included: Bool, side: int) -> int:
    """How many guesses are right when the `side` highest scores are called in and the `side` lowest out."""
    order = np.argsort(-scores, kind="stable")
    return int(included[order[:side]].sum()) + int((~included[order[len(order) - side :]]).sum())


def sides(canaries: int) -> list[int]:
    """Guesses a side that an audit tries: fixed by the number of canaries, so that Bonferroni covers the choice."""
    return sorted({canaries // part for part in _SIDES if canaries // part >= _LEAST_SIDE}) or [max(1, canaries // 2)]


def epsilon_lower_bound(scores: Float64, included: Bool, delta: float, significance: float) -> float:
    """Lower bound on epsilon at `delta`, right with probability at least 1 - significance; 0 to 50.

    scores: float64[m], larger where the auditor believes that the canary took part. included: bool[m], the coins.
    Each number of guesses of `sides` is tried at significance / len(sides); the best one counts.
    """
    check_canaries(scores, included, significance)
    choices = sides(len(scores))
    best = 0.0
    for side in choices:
        right = right_guesses(scores, included, side)
        level = significance / len(choices)
        low, high = best, LARGEST_EPSILON
        if p_value(len(scores), 2 * side, right, low, delta) > level:
            continue
        # The p-value rises with epsilon; `low` stays on the rejected side.
        while high - low > 1e-4:
            middle = 0.5 * (low + high)
            if p_value(len(scores), 2 * side, right, middle, delta) <= level:
                low = middle
            else:
                high = middle
        best = low
    return best


def check_canaries(scores: Float64, included: Bool, significance: float) -> None:
    """Raises `InputError` unless there is a finite score and a coin for each of at least two canaries."""
    if scores.ndim != 1 or scores.shape != included.shape or len(scores) < 2 or included.dtype != np.bool_:
        raise InputError(f"got scores {scores.shape} and coins {included.dtype}{included.shape}, expected one a canary")
    if not np.isfinite(scores).all():
        raise InputError("got scores that are not finite, expected finite numbers")
    if not 0 < significance < 1:
        raise InputError(f"got significance {significance}, expected above 0 and below 1")


def _binomial_tail(least: npt.NDArray[np.int64], trials: int, chance: float) -> Float64:
    """P[W >= least] for each entry, W binomial(trials, chance)."""
    k = np.maximum(least, 1).astype(np.float64)
    # Regularised incomplete beta function: exact for whole numbers, and fast for many.
    tail = special.betainc(k, trials - k + 1.0, chance)
    return np.where(least <= 0, 1.0, tail).astype(np.float64)
