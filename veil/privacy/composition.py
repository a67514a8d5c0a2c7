"""Releases grouped by what they cost, and the least upper bound on what they cost together.

Guarantee: `Composition.epsilon` is never below the exact epsilon of everything in it, adaptively composed. How each
kind of release is counted, always as the least of what these bounds give:

- **rounded-gaussian, sampling 1**: exactly, by the integer sum of mu^2; all of them are one Gaussian
  (`veil.privacy.gaussian`).
- **rounded-gaussian, sampling q < 1**: as a Poisson-sampled Gaussian, whose two directions (a user comes, a user goes)
  are composed apart (`veil.privacy.loss_distribution`). It never costs more than on all users: hockey-stick divergences
  are jointly convex, and a sampled release is a mixture of the one that has the user and the one that has not.
- **discrete-laplace**: noise k on each entry has probability proportional to e^(-|k| / sigma), so moving the sum by an
  integer array of L1 norm at most `sensitivity` changes any probability by a factor of at most
  e^(sensitivity / sigma): pure epsilon (Dwork, McSherry, Nissim and Smith 2006; Ghosh, Roughgarden and Sundararajan
  2009), a rational number that is rounded up. Several compose as randomised responses, or by their plain sum.
- **Everything together**: privacy loss distributions, and beside them basic composition: the Gaussians, as if on all
  users, at all of delta, plus the sum of the pure ones. Both are upper bounds, so is the smaller one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from types import MappingProxyType
from typing import Final, assert_never

from veil.errors import ConfigError
from veil.jobs.spec import Release
from veil.privacy import loss_distribution
from veil.privacy.gaussian import (
    LARGEST_DISTRIBUTION,
    check_delta,
    epsilon_of_squared_mu,
    multiplier_of_squared_mu,
    squared_mu_of,
)
from veil.privacy.loss_distribution import LEAST_SAMPLED_MULTIPLIER, MOST_GROUPS, Pure, Sampled

MULTIPLIER_BITS: Final = 20  # of a sampled release's multiplier: equal ones on different grids become one group
_LEAST_SAMPLING: Final = 2.0**-40  # less counts as this: nearer to 0, the distributions are no longer numbers
_COARSER_BITS: Final = (MULTIPLIER_BITS, 8, 6, 5, 4, 3, 2, 1)  # where there are too many groups
_EMPTY: Final[Mapping[tuple[float, float], int]] = MappingProxyType({})
_EMPTY_PURE: Final[Mapping[Fraction, int]] = MappingProxyType({})


@dataclass(frozen=True)
class Composition:
    """Releases, grouped by what they cost: small however many there are. `plus` gives another one.

    Attributes:
        squared_mu: sum over the Gaussians on all users, in units of 2^-128, rounded up.
        sampled: number of Gaussians by (noise multiplier, sampling); the multiplier is rounded down to 20 bits, and
            sampling is at least 2^-40.
        pure: number of mechanisms by their exact epsilon.
    """

    squared_mu: int = 0
    sampled: Mapping[tuple[float, float], int] = field(default_factory=lambda: _EMPTY)
    pure: Mapping[Fraction, int] = field(default_factory=lambda: _EMPTY_PURE)

    def plus(self, releases: Iterable[Release], times: int = 1) -> Composition:
        """These and `releases`, each `times` times."""
        total, sampled, pure = self.squared_mu, dict(self.sampled), dict(self.pure)
        for release in releases:
            match release.mechanism:
                case "discrete-laplace":
                    cost = Fraction(release.sensitivity, release.sigma)
                    pure[cost] = pure.get(cost, 0) + times
                case "rounded-gaussian" if release.sampling < 1:
                    ratio = math.nextafter(float(Fraction(release.sigma, release.sensitivity)), 0.0)
                    key = _kind(ratio, release.sampling)
                    sampled[key] = sampled.get(key, 0) + times
                case "rounded-gaussian":
                    total += times * squared_mu(release)
                case unknown:  # a mechanism that nobody has said how to count must not be counted as another
                    assert_never(unknown)
        return Composition(total, sampled, pure)

    def plus_sampled(self, multiplier: float, sampling: float, count: int) -> Composition:
        """These and `count` Gaussians of that noise multiplier on users sampled with probability `sampling`."""
        if sampling == 1:
            total = self.squared_mu + count * squared_mu_of_multiplier(multiplier)
            return Composition(total, self.sampled, self.pure)
        key = _kind(multiplier, sampling)
        return Composition(self.squared_mu, {**self.sampled, key: self.sampled.get(key, 0) + count}, self.pure)

    @property
    def exact(self) -> bool:
        """Whether all are Gaussians on all users, which are counted exactly and at once."""
        return not self.sampled and not self.pure

    def covers(self, other: Composition) -> bool:
        """Whether `other` is a part of this, so that it costs no more."""
        return (
            other.squared_mu <= self.squared_mu
            and all(count <= self.sampled.get(key, 0) for key, count in other.sampled.items())
            and all(count <= self.pure.get(cost, 0) for cost, count in other.pure.items())
        )

    def epsilon(self, delta: float) -> float:
        """Epsilon of all together at `delta`, from above. Raises `ConfigError` unless delta is in (0, 1)."""
        if self.exact:
            return epsilon_of_squared_mu(self.squared_mu, delta)
        check_delta(delta)
        # In a fixed order: parties compare what comes out, and floating-point sums depend on it.
        return _composed(self.squared_mu, tuple(sorted(self.sampled.items())), tuple(sorted(self.pure.items())), delta)


def _kind(multiplier: float, sampling: float) -> tuple[float, float]:
    return rounded(multiplier, MULTIPLIER_BITS, up=False), max(sampling, _LEAST_SAMPLING)


def squared_mu(release: Release) -> int:
    """(sensitivity / sigma)^2 of a Gaussian release on all users, in units of 2^-128, rounded up. Sums of it compose.

    Raises `ConfigError` for any other release.
    """
    if release.mechanism != "rounded-gaussian" or release.sampling < 1:
        raise ConfigError(f"got a {release.mechanism} release with sampling {release.sampling:g}, expected a Gaussian")
    return squared_mu_of(release.sensitivity, release.sigma)


@lru_cache(maxsize=1024)
def _composed(
    total: int,
    sampled: tuple[tuple[tuple[float, float], int], ...],
    pure: tuple[tuple[Fraction, int], ...],
    delta: float,
) -> float:
    plain = sum((cost * count for cost, count in pure), Fraction(0))
    unsampled = total + sum(count * squared_mu_of_multiplier(multiplier) for (multiplier, _), count in sampled)
    basic = math.nextafter(epsilon_of_squared_mu(unsampled, delta) + _float_above(plain), math.inf)
    # Sampling is not credited where one opening alone could reveal everything about whom it takes.
    for (multiplier, _), count in sampled:
        if multiplier < LEAST_SAMPLED_MULTIPLIER:
            total += count * squared_mu_of_multiplier(multiplier)
    kept = [entry for entry in sampled if entry[0][0] >= LEAST_SAMPLED_MULTIPLIER]
    # What the Gaussians on all users cost alone is a lower bound: adding to a ledger never makes it cheaper than that.
    least = epsilon_of_squared_mu(total, delta)
    groups = _grouped(kept, pure)
    if groups is None or not any(groups) or least > LARGEST_DISTRIBUTION:
        return max(least, basic)
    one = multiplier_of_squared_mu(total) if total else None
    return max(least, min(basic, loss_distribution.composed_epsilon(one, *groups, delta)))


def _grouped(
    sampled: Sequence[tuple[tuple[float, float], int]], pure: Sequence[tuple[Fraction, int]]
) -> tuple[list[Sampled], list[Pure]] | None:
    """Few groups, each as costly as its costliest member; None when even coarse ones are too many."""
    for bits in _COARSER_BITS:
        exact = bits == MULTIPLIER_BITS
        many: dict[tuple[float, float], int] = {}
        for (multiplier, sampling), count in sampled:
            key = (
                rounded(multiplier, bits, up=False),
                sampling if exact else min(1.0, rounded(sampling, bits, up=True)),
            )
            many[key] = many.get(key, 0) + count
        costs: dict[float, int] = {}
        for cost, count in pure:
            upper = rounded(_float_above(cost), bits, up=True)
            costs[upper] = costs.get(upper, 0) + count
        if bits == _COARSER_BITS[-1] and len(many) + len(costs) > MOST_GROUPS:
            many = _by_multiplier(many)
        if len(many) + len(costs) <= MOST_GROUPS:
            return (
                [Sampled(multiplier, sampling, count) for (multiplier, sampling), count in sorted(many.items())],
                [Pure(cost, count) for cost, count in sorted(costs.items())],
            )
    return None


def _by_multiplier(many: Mapping[tuple[float, float], int]) -> dict[tuple[float, float], int]:
    """One group a multiplier, with the largest sampling of its members."""
    largest: dict[float, float] = {}
    counts: dict[float, int] = {}
    for (multiplier, sampling), count in many.items():
        largest[multiplier] = max(sampling, largest.get(multiplier, 0.0))
        counts[multiplier] = counts.get(multiplier, 0) + count
    return {(multiplier, largest[multiplier]): count for multiplier, count in counts.items()}


def squared_mu_of_multiplier(multiplier: float) -> int:
    ratio = Fraction(multiplier)
    return squared_mu_of(ratio.denominator, ratio.numerator)


def rounded(value: float, bits: int, *, up: bool) -> float:
    """A positive number with `bits` significant bits, toward zero or away from it."""
    mantissa, exponent = math.frexp(value)
    scaled = math.ldexp(mantissa, bits)
    return math.ldexp(float(math.ceil(scaled) if up else math.floor(scaled)), exponent - bits)


def _float_above(value: Fraction) -> float:
    found = float(value)
    return found if Fraction(found) >= value else math.nextafter(found, math.inf)
