"""The Gaussian mechanism on all users: its exact privacy, and the sum in which such mechanisms compose.

Guarantee: `squared_mu` and everything made of it is rounded toward more epsilon; `epsilon_of_squared_mu` is never below
the exact value, and for delta from 1e-12 and epsilon up to 200 it exceeds it by less than 0.1%.

How: with noise multiplier m = sigma / sensitivity the mechanism is mu-GDP, mu = 1/m, and adaptive composition of
mu_i-GDP Gaussian mechanisms is exactly the one with mu^2 = sum mu_i^2 (Dong, Roth and Su 2022, "Gaussian Differential
Privacy", JRSS-B 84, corollary 3.3). That sum is taken in integers, and the one Gaussian that is left goes through the
privacy loss distribution accountant of dp-accounting (Doroshenko et al. 2022, "Connect the Dots"), which is pessimistic
by construction; the result is kept at or above theorem 8 of Balle and Wang 2018, "Improving the Gaussian Mechanism for
Differential Privacy".
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final

from scipy import special

from veil.errors import ConfigError

MU_BITS: Final = 128
LARGEST_DISTRIBUTION: Final = 200.0
"""Epsilon above which closed bounds take over from privacy loss distributions, which would no longer fit in memory."""
_RELATIVE_SLACK: Final = 1e-9  # over the closed form's own floating-point error
_DISCRETIZATION: Final = 1e-4  # of epsilon; the accountant's error falls with its square
# Of mu, at least: an epsilon next to 0 would ask for billions of points. The error is below 1e-10 mu then.
_LEAST_DISCRETIZATION: Final = 2.0**-16


def squared_mu_of(sensitivity: int, sigma: int) -> int:
    """(sensitivity / sigma)^2 in units of 2^-128, rounded up. Sums of it compose."""
    return -(-(sensitivity**2 << MU_BITS) // sigma**2)


def multiplier_of_squared_mu(total: int) -> float:
    """The noise multiplier 1/mu of a positive sum of `squared_mu_of`, rounded down: less noise than there is."""
    steps = math.isqrt((1 << (MU_BITS + 128)) // total)
    return math.nextafter(math.ldexp(float(steps), -64), 0.0)


def epsilon_of_squared_mu(total: int, delta: float) -> float:
    """Epsilon of Gaussian mechanisms whose `squared_mu_of` sum to `total`, from above. Raises `ConfigError`."""
    check_delta(delta)
    if total < 0:
        raise ConfigError("got a negative sum of squared mu, expected at least 0")
    return epsilon_of_multiplier(multiplier_of_squared_mu(total), delta) if total else 0.0


@lru_cache(maxsize=256)
def epsilon_of_multiplier(multiplier: float, delta: float) -> float:
    """Epsilon of one Gaussian mechanism, from above."""
    exact = gaussian_epsilon(multiplier, delta)
    # Both are upper bounds; the larger one keeps the result at or above the exact value whatever the accountant's
    # rounding does. Beyond the limit its distribution would no longer fit in memory, and the bound is tight anyway.
    if exact == 0.0 or exact > LARGEST_DISTRIBUTION:
        return exact
    step = max(exact * _DISCRETIZATION, _LEAST_DISCRETIZATION / multiplier)
    return max(exact, _accounted(multiplier, delta, step))


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
    check_delta(delta)
    if not (math.isfinite(multiplier) and multiplier > 0):
        raise ConfigError(f"got a noise multiplier of {multiplier}, expected a positive number")
    mu = 1.0 / multiplier
    upper = (0.5 * mu * mu - mu * float(special.ndtri(delta))) * (1 + _RELATIVE_SLACK)
    if upper > LARGEST_DISTRIBUTION:
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


def check_delta(delta: float) -> None:
    """Raises `ConfigError` unless delta is in (0, 1)."""
    if not 0 < delta < 1:
        raise ConfigError(f"got delta {delta}, expected above 0 and below 1")
