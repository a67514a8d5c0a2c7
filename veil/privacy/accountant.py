"""What a set of releases costs, and how much noise a budget asks for.

Guarantee: for releases that are each the Gaussian mechanism (rounded after the noise, see `veil.privacy.mechanism`),
also when later ones are chosen from what earlier ones showed, all of them together are (`epsilon(releases, delta)`,
delta)-differentially private. The number is never below the exact one; for delta from 1e-12 and epsilon up to 200 it
exceeds it by less than 0.1%, elsewhere by a few per cent.

How: the Gaussian mechanism with noise multiplier m = sigma / sensitivity is mu-GDP with mu = 1/m, and adaptive
composition of mu_i-GDP Gaussian mechanisms is exactly the one with mu^2 = sum mu_i^2 (Dong, Roth and Su 2022, "Gaussian
Differential Privacy", JRSS-B 84, corollary 3.3). That sum is taken in integers, rounded up, and the one Gaussian that
is left goes through the privacy loss distribution accountant of dp-accounting (Doroshenko et al. 2022, "Connect the
Dots"), which is pessimistic by construction. The closed form that it is tested against is theorem 8 of Balle and Wang
2018, "Improving the Gaussian Mechanism for Differential Privacy".

Neighbouring relation: add or remove one user. Noise source `parties`: releases state ONE party's draw, which is what
an adversary who knows all others still faces (`veil.privacy.mechanism.variance_factor`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Final

from scipy import special

from veil.errors import ConfigError
from veil.jobs.spec import Release

_MU_BITS: Final = 128
_RELATIVE_SLACK: Final = 1e-9  # over the closed form's own floating-point error
_DISCRETIZATION: Final = 1e-4  # of epsilon; the accountant's error falls with its square
_LARGEST_DISTRIBUTION: Final = 200.0


def squared_mu(release: Release) -> int:
    """(sensitivity / sigma)^2 of one release, in units of 2^-128, rounded up. Sums of it compose."""
    return -(-(release.sensitivity**2 << _MU_BITS) // release.sigma**2)


def epsilon(releases: Sequence[Release], delta: float) -> float:
    """Epsilon of all the releases together at `delta`, add or remove one user; 0.0 for none.

    `delta` in (0, 1). Raises `ConfigError` when it is not.
    """
    return epsilon_of_squared_mu(sum(squared_mu(release) for release in releases), delta)


def epsilon_of_squared_mu(total: int, delta: float) -> float:
    """As `epsilon`, from the sum of `squared_mu`: for a ledger that keeps the sum."""
    _check_delta(delta)
    if total < 0:
        raise ConfigError("got a negative sum of squared mu, expected at least 0")
    if total == 0:
        return 0.0
    # 1/mu from below: less noise than there is, so more epsilon.
    steps = math.isqrt((1 << (_MU_BITS + 128)) // total)
    return _epsilon_of_multiplier(math.nextafter(math.ldexp(float(steps), -64), 0.0), delta)


@lru_cache(maxsize=256)
def _epsilon_of_multiplier(multiplier: float, delta: float) -> float:
    exact = gaussian_epsilon(multiplier, delta)
    # Both are upper bounds; the larger one keeps the result at or above the exact value whatever the accountant's
    # rounding does. Beyond the limit its distribution would no longer fit in memory, and the bound is tight anyway.
    if exact == 0.0 or exact > _LARGEST_DISTRIBUTION:
        return exact
    return max(exact, _accounted(multiplier, delta, exact * _DISCRETIZATION))


def _accounted(multiplier: float, delta: float, discretization: float) -> float:
    """Epsilon of one Gaussian by the privacy loss distribution accountant."""
    # Here and not above: it takes a second to import, and most programs never account.
    from dp_accounting import GaussianDpEvent, NeighboringRelation
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=discretization)
    return float(accountant.compose(GaussianDpEvent(multiplier)).get_epsilon(delta))


def gaussian_delta(multiplier: float, epsilon: float) -> float:
    """Exact delta of the Gaussian mechanism (Balle and Wang 2018, theorem 8), up to floating point.

    Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu), mu = 1/multiplier; taken in logarithms.
    """
    first = float(special.log_ndtr(0.5 / multiplier - epsilon * multiplier))
    second = epsilon + float(special.log_ndtr(-0.5 / multiplier - epsilon * multiplier))
    return math.exp(first) * -math.expm1(min(0.0, second - first))


def gaussian_epsilon(multiplier: float, delta: float) -> float:
    """Least epsilon of one Gaussian mechanism at `delta`, from above: closed form, solved by bisection.

    Above 200 it returns mu^2/2 + mu Phi^-1(1 - delta), which drops the closed form's second term: an upper bound.
    """
    _check_delta(delta)
    if not (math.isfinite(multiplier) and multiplier > 0):
        raise ConfigError(f"got a noise multiplier of {multiplier}, expected a positive number")
    mu = 1.0 / multiplier
    upper = (0.5 * mu * mu - mu * float(special.ndtri(delta))) * (1 + _RELATIVE_SLACK)
    if upper > _LARGEST_DISTRIBUTION:
        return upper
    if gaussian_delta(multiplier, 0.0) <= delta:
        return 0.0
    lower, upper = 0.0, max(upper, 0.0)
    for _ in range(200):
        middle = 0.5 * (lower + upper)
        if not lower < middle < upper:
            break
        if gaussian_delta(multiplier, middle) <= delta * (1 - _RELATIVE_SLACK):
            upper = middle
        else:
            lower = middle
    return upper


def noise_multiplier(epsilon: float, delta: float) -> float:
    """Least sigma / sensitivity, up to 0.1%, of one Gaussian mechanism that costs at most `epsilon` by this module.

    Raises `ConfigError` unless epsilon is in (0, 1000] and delta in (0, 1).
    """
    _check_delta(delta)
    if not 0 < epsilon <= 1000:
        raise ConfigError(f"got epsilon {epsilon}, expected above 0 and at most 1000")
    lower, upper = 2.0**-20, 2.0**40
    while upper / lower > 1 + 1e-12:
        middle = math.sqrt(lower * upper)
        if gaussian_epsilon(middle, delta) <= epsilon:
            upper = middle
        else:
            lower = middle
    # The closed form starts, the accountant decides.
    while _epsilon_of_multiplier(upper, delta) > epsilon:
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


def sigma_steps(multiplier: float, sensitivity: int) -> int:
    """The noise in grid steps: multiplier times sensitivity, rounded up exactly. Raises `ConfigError` above 2^52."""
    if not (math.isfinite(multiplier) and multiplier > 0 and sensitivity >= 1):
        raise ConfigError(f"got multiplier {multiplier} and sensitivity {sensitivity}, expected positive numbers")
    steps = math.ceil(Fraction(multiplier) * sensitivity)
    if steps >= 2**52:
        raise ConfigError(f"got noise of {steps} grid steps, expected below 2^52", hint="choose fewer bits")
    return steps


def to_micro(epsilon: float) -> int:
    """Epsilon in millionths, rounded up, exactly. Raises `ConfigError` unless it is finite and not negative."""
    if not (math.isfinite(epsilon) and epsilon >= 0):
        raise ConfigError(f"got epsilon {epsilon}, expected a finite number, at least 0")
    return math.ceil(Fraction(epsilon) * 1_000_000)


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ConfigError(f"got delta {delta}, expected above 0 and below 1")
