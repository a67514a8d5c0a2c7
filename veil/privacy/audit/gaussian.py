"""Tighter audits of a mechanism that claims to be Gaussian: lower limits on mu, hence on epsilon.

What is tested is the claim "mu-GDP" (Dong, Roth and Su 2022, "Gaussian Differential Privacy"): no test tells a run with
one user from a run without better than N(0, 1) from N(mu, 1). That is what the accountant states of a job
(`veil.privacy.accountant`), so a limit above its mu refutes the job's epsilon.

Guarantee: under the claim, each limit exceeds mu with probability at most `significance`

- `one_run_mu`: whatever the scores are (Mahloujifar, Melis and Chaudhuri 2024, "Auditing f-Differential Privacy in One
  Run", arXiv 2410.22235);
- `regression_mu`: if the noise is normal; exact however much canaries resemble each other. It is the sharpest of the
  limits, and the one that sees a noise of 80% instead of 100%;
- `two_sample_mu`: the same for scores that are independent and normal with one variance, in and out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy import special, stats

from veil.privacy.audit.one_run import Bool, Float64, check_canaries, right_guesses, sides
from veil.privacy.gaussian import gaussian_epsilon

LARGEST_MU: Final = 1e4
_PRECISION: Final = 1e-3
_DEGENERATE: Final = 1e-6
_LARGEST_STATISTIC: Final = 30.0


def epsilon_of_mu(mu: float, delta: float) -> float:
    """Epsilon at `delta` of a mu-GDP mechanism; 0 for mu = 0."""
    return gaussian_epsilon(1.0 / mu, delta) if mu > 0 else 0.0


def rejects(canaries: int, guesses: int, right: int, mu: float, significance: float) -> bool:
    """Whether `right` of `guesses` right guesses refute mu-GDP.

    Let p_j be the probability of exactly j right guesses, r_i = sum over j >= i of (j/m) p_j and h_i the same sum of
    ((guesses - j)/m) p_j. Turning one canary's coin turns "guessed right, i right in all" into "guessed wrong, i - 1
    right in all", so mu-GDP and concavity give h_(i-1) >= Phi(Phi^-1(r_i) - mu). From a tail of `significance` at
    `right` downwards, this forces mass r_0 + h_0 = (guesses/m) P[anything]; beyond guesses/m it is a contradiction.
    """
    r = significance * right / canaries
    h = significance * (guesses - right) / canaries
    whole = guesses / canaries
    for i in range(right - 1, -1, -1):
        least = float(special.ndtr(special.ndtri(r) - mu))
        if least <= h:
            break  # h, and with it r, stays what it is from here on
        r += (i / (guesses - i)) * (least - h)
        h = least
        if r + h > whole:
            return True
    return r + h > whole


def one_run_mu(scores: Float64, included: Bool, significance: float) -> float:
    """Lower limit on mu from one run (or several, pooled); arguments as `one_run.epsilon_lower_bound`. 0 to 40."""
    check_canaries(scores, included, significance)
    choices = sides(len(scores))
    best, level = 0.0, significance / len(choices)
    for side in choices:
        right = right_guesses(scores, included, side)
        if not rejects(len(scores), 2 * side, right, best, level):
            continue
        low, high = best, 40.0
        while high - low > _PRECISION:
            middle = 0.5 * (low + high)
            if rejects(len(scores), 2 * side, right, middle, level):
                low = middle
            else:
                high = middle
        best = low
    return best


@dataclass(frozen=True, eq=False)
class Regression:
    """What the openings show of the canaries, turned so that the noise is white: y = rho h + N(0, 1) times a scale.

    With the canaries' Gram matrix G in units of the claimed noise and c = G (b - 1/2) + N(0, G) (the inner products of
    openings and canaries, `baseline.audit.mechanism`), y = G^(-1/2) c and h = G^(1/2) (b - 1/2).

    Attributes:
        observed: y, float64[k].
        response: h, float64[k], from the coins.
        largest: the largest mu among the canaries if noise and sums are as claimed: sqrt(max G_ii).
    """

    observed: Float64
    response: Float64
    largest: float

    @classmethod
    def of(cls, correlation: Float64, gram: Float64, included: Bool) -> Regression:
        """From c, G and the coins b. Directions in which the canaries do not differ are dropped."""
        values, vectors = np.linalg.eigh(gram)
        kept = values > _DEGENERATE * max(float(values[-1]), 0.0)
        root = np.sqrt(values[kept])
        turned = vectors[:, kept].T
        coins = included.astype(np.float64) - 0.5
        return cls(
            (turned @ correlation) / root, root * (turned @ coins), math.sqrt(max(float(gram.diagonal().max()), 0))
        )

    @classmethod
    def joined(cls, parts: Sequence[Regression]) -> Regression:
        """Independent runs as one."""
        return cls(
            np.concatenate([part.observed for part in parts]),
            np.concatenate([part.response for part in parts]),
            max(part.largest for part in parts),
        )


def regression_mu(regression: Regression, significance: float) -> float:
    """Lower confidence limit on the mu of the most visible canary; at least 0.

    rho = (what a canary really adds / what it should) / (real noise / claimed noise) is estimated by least squares; its
    t statistic is noncentral t with k - 1 degrees of freedom and noncentrality rho |h|, for any coins (Johnson, Kotz
    and Balakrishnan 1995, "Continuous Univariate Distributions 2", chapter 31). The limit is rho's times `largest`.
    Exact for one opening; over several it neglects that what canaries add later depends, through the public state, a
    little on the noise of earlier openings.
    """
    y, h = regression.observed, regression.response
    length = float(np.linalg.norm(h))
    freedom = len(y) - 1
    if freedom < 1 or length == 0:
        return 0.0
    slope = float(y @ h) / length**2
    if slope <= 0:
        return 0.0
    deviation = math.sqrt(float(np.square(y - slope * h).sum()) / freedom)
    if slope * regression.largest >= LARGEST_MU * deviation:
        return LARGEST_MU
    return _least_noncentrality(slope * length / deviation, freedom, significance) / length * regression.largest


def two_sample_mu(scores: Float64, included: Bool, significance: float) -> float:
    """Lower confidence limit on (mean in - mean out) / standard deviation of independent normal scores; at least 0.

    With a and b canaries in and out, t = d / sqrt(1/a + 1/b) is noncentral t with a + b - 2 degrees of freedom and
    noncentrality mu / sqrt(1/a + 1/b) (Hedges and Olkin 1985, "Statistical Methods for Meta-Analysis", chapter 5).
    """
    check_canaries(scores, included, significance)
    inside, outside = scores[included], scores[~included]
    if len(inside) < 2 or len(outside) < 2:
        return 0.0
    freedom = len(scores) - 2
    squares = float(np.square(inside - inside.mean()).sum() + np.square(outside - outside.mean()).sum())
    deviation = math.sqrt(squares / freedom)
    difference = float(inside.mean() - outside.mean())
    if difference >= LARGEST_MU * deviation:
        return LARGEST_MU if difference > 0 else 0.0
    spread = math.sqrt(1 / len(inside) + 1 / len(outside))
    return _least_noncentrality(difference / deviation / spread, freedom, significance) * spread


def _least_noncentrality(statistic: float, freedom: int, significance: float) -> float:
    """The noncentrality under which a t statistic is at its upper `significance` quantile; 0 if that is negative."""
    if float(stats.t.sf(statistic, freedom)) > significance:
        return 0.0
    # Large-sample law of t, for where the noncentral t is out of numerical reach.
    error = math.sqrt(1 + statistic**2 / (2 * freedom))
    approximate = max(0.0, statistic + float(special.ndtri(significance)) * error)
    if statistic > _LARGEST_STATISTIC:
        return approximate
    low, high = 0.0, statistic
    for _ in range(40):
        middle = 0.5 * (low + high)
        tail = float(stats.nct.sf(statistic, freedom, middle))
        if math.isnan(tail):
            return approximate
        if tail <= significance:
            low = middle
        else:
            high = middle
    return low
