"""What a set of releases costs, and how much noise a budget asks for.

Guarantee: all the releases together, also when what later ones sum is chosen from what earlier ones showed, are
(`epsilon(releases, delta)`, delta)-differentially private. The number is never below the exact one. Where all are
Gaussian on all users it exceeds it by less than 0.1% (`veil.privacy.gaussian`); how others are counted, and why that is
an upper bound, says `veil.privacy.composition`. Noise that is calibrated here costs at most its budget by that count.

What may be chosen: a job lists mechanism, sensitivity, noise and sampling of every release before the first one opens.
Over several jobs these could depend on earlier openings. For Gaussians on all users that is covered: mu^2 adds then
too (Koskela, Tobaben and Honkela 2023, "Individual Privacy Accounting with Gaussian Differential Privacy"). With others
among them the number holds for any choice from, and any order of, one fixed list of releases that cost together what
is stated (each is post-processing of its dominating pair, so all of them are of the list's). It is not proven where
what earlier openings showed decides between lists neither of which is a part of the other (Rogers, Roth, Ullman and
Vadhan 2016, "Privacy Odometers and Filters"; arXiv 2602.06756 on where such sums fail).

Neighbouring relation: add or remove one user. Noise source `parties`: a release states the noise that is left when the
colluding parties have subtracted theirs (`veil.privacy.sources`), which is what counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Final

from veil.errors import ConfigError
from veil.jobs.spec import Release
from veil.privacy.composition import MULTIPLIER_BITS, Composition, rounded, squared_mu
from veil.privacy.gaussian import (
    MU_BITS,
    check_delta,
    epsilon_of_multiplier,
    epsilon_of_squared_mu,
    gaussian_delta,
    gaussian_epsilon,
)

__all__ = [
    "Composition",
    "epsilon",
    "epsilon_of_squared_mu",
    "gaussian_delta",
    "gaussian_epsilon",
    "laplace_scale",
    "multipliers",
    "noise_multiplier",
    "sampled_multiplier",
    "sigma_steps",
    "squared_mu",
    "to_micro",
]

_CALIBRATION: Final = 1e-4  # relative, of `sampled_multiplier`
_BRACKET: Final = 1.2


def epsilon(releases: Sequence[Release], delta: float) -> float:
    """Epsilon of all the releases together at `delta`, add or remove one user; 0.0 for none.

    `delta` in (0, 1). Raises `ConfigError` when it is not. 1,000 sampled releases of one kind take below a second.
    """
    check_delta(delta)
    return Composition().plus(releases).epsilon(delta)


def noise_multiplier(epsilon: float, delta: float) -> float:
    """Least sigma / sensitivity, up to 0.1%, of one Gaussian mechanism that costs at most `epsilon` by this module.

    Raises `ConfigError` unless epsilon is in (0, 1000] and delta in (0, 1).
    """
    check_delta(delta)
    _check_epsilon(epsilon)
    lower, upper = 2.0**-20, 2.0**40
    while upper / lower > 1 + 1e-12:
        middle = math.sqrt(lower * upper)
        if gaussian_epsilon(middle, delta) <= epsilon:
            upper = middle
        else:
            lower = middle
    # The closed form starts, the accountant decides.
    while epsilon_of_multiplier(upper, delta) > epsilon:
        upper *= 1 + 1e-6
    return upper


def multipliers(epsilon: float, delta: float, fractions: Sequence[float]) -> list[float]:
    """Noise multipliers m_i = m / sqrt(f_i) of releases that share a budget: release i spends f_i of mu^2 = 1/m^2.

    `fractions` are positive and sum to at most 1. Releases with `sigma_steps(m_i, sensitivity_i)` cost together at most
    `epsilon` by `epsilon()`. Raises `ConfigError`.
    """
    if not fractions or any(not (math.isfinite(f) and f > 0) for f in fractions):
        raise ConfigError("got a budget fraction that is not positive, expected positive fractions")
    total = sum(Fraction(f) for f in fractions)
    if total > 1 + Fraction(1, 10**9):
        raise ConfigError(f"got budget fractions that sum to {float(total):.6f}, expected at most 1")
    # Up by 1e-9 for the fractions' own rounding and 1e-9 for the square root's.
    one = noise_multiplier(epsilon, delta) * (1 + 2e-9)
    return [one / math.sqrt(f) for f in fractions]


def sampled_multiplier(
    epsilon: float, delta: float, sampling: float, rounds: int, *, beside: Sequence[Release] = ()
) -> float:
    """Least noise multiplier, up to 0.1%, of `rounds` equal releases on users sampled with probability `sampling`.

    Together with the releases `beside`, those with `sigma_steps(m, sensitivity)` cost at most `epsilon` by `epsilon()`.
    Raises `ConfigError` on arguments out of range, and when `beside` alone costs as much. Takes a few seconds.
    """
    check_delta(delta)
    _check_epsilon(epsilon)
    if not 0 < sampling <= 1:
        raise ConfigError(f"got sampling {sampling}, expected above 0 and at most 1")
    if not 1 <= rounds <= 1_000_000:
        raise ConfigError(f"got {rounds} rounds, expected 1 to 1,000,000")
    given = Composition().plus(beside)
    spent = given.epsilon(delta)
    if spent >= epsilon:
        raise ConfigError(f"got other releases that cost epsilon {spent:.4f}, expected less than {epsilon:g} in all")
    return _least_multiplier(epsilon, delta, sampling, rounds, given)


def _least_multiplier(epsilon: float, delta: float, sampling: float, rounds: int, given: Composition) -> float:
    # A little below the budget: two noises that differ in the last digit may differ by that much in what they cost.
    target = epsilon * (1 - 2e-5)

    def excess(multiplier: float) -> float:
        return given.plus_sampled(multiplier, sampling, rounds).epsilon(delta) - target

    # Many sampled rounds are nearly one Gaussian with mu^2 = rounds q^2 (e^(1/m^2) - 1) (Bu, Dong, Long and Su 2020,
    # "Deep Learning with Gaussian Differential Privacy"): where to begin.
    free = noise_multiplier(target, delta) ** -2 - given.squared_mu / 2.0**MU_BITS
    start = 1.0 / math.sqrt(math.log1p(max(free, 1e-6) / rounds / sampling**2))
    lower = upper = start
    over_lower = over_upper = excess(start)
    while over_upper > 0:
        lower, over_lower = upper, over_upper
        upper *= _BRACKET
        if upper > 2.0**40:
            raise ConfigError("got other releases that leave nothing of the budget, expected a smaller cost")
        over_upper = excess(upper)
    while over_lower <= 0:
        upper, over_upper = lower, over_lower
        lower /= _BRACKET
        over_lower = excess(lower)
    # Where a line between the ends would cross, and the middle, in turns: few evaluations, and sure to end.
    straight = True
    while upper / lower > 1 + _CALIBRATION:
        share = min(max(over_lower / (over_lower - over_upper), 0.02), 0.98) if straight else 0.5
        straight = not straight
        middle = lower * (upper / lower) ** share
        over = excess(middle)
        if over <= 0:
            upper, over_upper = middle, over
        else:
            lower, over_lower = middle, over
    return rounded(upper, MULTIPLIER_BITS, up=True)


def laplace_scale(epsilon: float, sensitivity: int) -> int:
    """Least scale of discrete Laplace noise, in grid steps, that is epsilon-DP for an L1 norm of `sensitivity` steps.

    Exactly ceil(sensitivity / epsilon). Raises `ConfigError` above 2^52.
    """
    _check_epsilon(epsilon)
    if sensitivity < 1:
        raise ConfigError(f"got sensitivity {sensitivity}, expected at least 1")
    return _checked_steps(math.ceil(sensitivity / Fraction(epsilon)))


def sigma_steps(multiplier: float, sensitivity: int) -> int:
    """The noise in grid steps: multiplier times sensitivity, rounded up exactly. Raises `ConfigError` above 2^52."""
    if not (math.isfinite(multiplier) and multiplier > 0 and sensitivity >= 1):
        raise ConfigError(f"got multiplier {multiplier} and sensitivity {sensitivity}, expected positive numbers")
    return _checked_steps(math.ceil(Fraction(multiplier) * sensitivity))


def to_micro(epsilon: float) -> int:
    """Epsilon in millionths, rounded up, exactly. Raises `ConfigError` unless it is finite and not negative."""
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise ConfigError(f"got epsilon {epsilon}, expected a finite number, at least 0")
    return math.ceil(Fraction(epsilon) * 1_000_000)


def _checked_steps(steps: int) -> int:
    if steps >= 2**52:
        raise ConfigError(f"got noise of {steps} grid steps, expected below 2^52", hint="choose fewer bits")
    return steps


def _check_epsilon(epsilon: float) -> None:
    if not 0 < epsilon <= 1000:
        raise ConfigError(f"got epsilon {epsilon}, expected above 0 and at most 1000")
