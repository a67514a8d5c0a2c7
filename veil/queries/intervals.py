"""How far the noise can move an answer: standard deviations and intervals of sums of draws.

Guarantee: `half_width` covers the noise with the stated probability, up to one grid step. It says nothing of what the
bounds on users cut off (`veil.queries.counting`).

A sum of n Laplace draws of scale 1 is the difference of two Gamma(n, 1) variables G and H, hence

    P(sum > t) = E P(G > t + H) = E sum_{j<n} e^-(t + H) (t + H)^j / j!
               = e^-t sum_{j<n} sum_{i<=j} t^(j-i) / (i! (j-i)!) (n+i-1)! / (n-1)! / 2^(n+i),

the tail of a Gamma variable with integer shape, expanded by E[e^-H H^i] = (n+i-1)! / ((n-1)! 2^(n+i)).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import special

from veil.errors import ConfigError
from veil.jobs.spec import JobSpec, Mechanism, Release
from veil.privacy import sources
from veil.queries.question import UNIT


@dataclass(frozen=True)
class NoiseOn:
    """The noise on each value of an answer, in counts: `scale` of one draw, and of all `draws` together the rest."""

    scale: float
    draws: int
    sd: float
    interval_95: float

    @classmethod
    def release(cls, spec: JobSpec, release: Release) -> NoiseOn:
        """What lies on a release's total, by who draws it (`veil.privacy.sources`)."""
        noise, parties = spec.privacy.noise, len(spec.parties)
        drawn = release if noise.source == "dealer" else sources.party_release(release, noise, parties)
        scale, draws = drawn.sigma / UNIT, sources.draws(noise, parties)
        return cls(
            scale=scale,
            draws=draws,
            sd=standard_deviation(release.mechanism, scale, draws),
            interval_95=half_width(release.mechanism, scale, draws),
        )


def standard_deviation(mechanism: Mechanism, sigma: float, draws: int) -> float:
    """Of the sum of `draws` draws, in the unit of sigma: sigma sqrt(n), or for a Laplace scale sigma sqrt(2 n)."""
    return sigma * math.sqrt(draws * (2 if mechanism == "discrete-laplace" else 1))


def half_width(mechanism: Mechanism, sigma: float, draws: int, confidence: float = 0.95) -> float:
    """t such that a sum of `draws` draws lies in [-t, t] with probability `confidence`; in the unit of sigma."""
    if not (draws >= 1 and sigma > 0 and 0 < confidence < 1):
        raise ConfigError(f"got {draws} draws of {sigma} at {confidence}, expected positive numbers, below 1 at last")
    outside = (1 - confidence) / 2
    if mechanism == "rounded-gaussian":
        return sigma * math.sqrt(draws) * float(-special.ndtri(outside))
    if mechanism != "discrete-laplace":
        raise ConfigError(f"got mechanism {mechanism!r}, expected one with an interval")
    low, high = 0.0, 1.0
    while laplace_tail(high, draws) > outside:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if laplace_tail(middle, draws) > outside else (low, middle)
    return sigma * high


def laplace_tail(t: float, draws: int) -> float:
    """P(X > t) for X a sum of `draws` Laplace variables of scale 1, t >= 0."""
    total = 0.0
    for j in range(draws):
        for i in range(j + 1):
            chance = math.comb(draws + i - 1, i) / 2 ** (draws + i)
            total += chance * t ** (j - i) / math.factorial(j - i)
    return math.exp(-t) * total
