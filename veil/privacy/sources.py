"""Who draws the noise of a release, how much each, and how much lies on the opened total.

Guarantee: whoever knows the draws of `colluding` parties, their rows and the opened total still faces at least the
noise that the release states and the accounting counts.

With n parties of which t collude, n - t honest draws remain. Each party therefore draws

    s = ceil(sigma / sqrt(n - t))        so that (n - t) s^2 >= sigma^2

and the total carries n s^2, about n / (n - t) times the variance of one full draw: 1 for t = 0, n for t = n - 1, which
is the default. For t = n - 1 the honest party's draw is a full one, and the argument of docs/privacy.md holds as it
stands.

For smaller t the honest noise is a sum of k = n - t rounded draws, which is no rounded draw. It is within statistical
distance 2^-1000 an entry of round(S + sqrt(k) s Z + U), U a sum of k - 1 uniforms on [-1/2, 1/2] that are independent
of the data, hence of post-processing of the Gaussian mechanism with noise sqrt(k) s >= sigma. Why: the masses of a
rounded draw are the function (normal density of s) * (box of width 1) at the integers; convolving those at the integers
differs from convolving the functions by the aliases of their Fourier transforms, by Poisson summation less than
exp(-pi^2 s^2) an alias, and s is at least 2^10 here. The distance adds less than 2^-900 to delta.

A discrete Laplace draw has no such sum: each party draws a full one, whatever t.
"""

from __future__ import annotations

import math
from typing import Final

from veil.errors import ConfigError
from veil.jobs.spec import JobSpec, Noise, Release

_LEAST_PART: Final = 2**10


def colluding(noise: Noise, parties: int) -> int:
    """How many parties may pool their draws: what the job says, n - 1 by default. Raises `ConfigError`."""
    if noise.source == "dealer":
        return parties - 1
    t = parties - 1 if noise.colluding is None else noise.colluding
    if not 0 <= t < parties:
        raise ConfigError(f"got {t} colluding parties of {parties}, expected 0 to {parties - 1}")
    return t


def party_release(release: Release, noise: Noise, parties: int) -> Release:
    """What one party draws for a release when the parties draw: the release with that party's sigma."""
    honest = parties - colluding(noise, parties)
    if honest == 1 or release.mechanism != "rounded-gaussian":
        return release
    # Least s with honest * s^2 >= sigma^2, in integers.
    part = math.isqrt((release.sigma**2 - 1) // honest) + 1
    if part < _LEAST_PART:
        raise ConfigError(
            f"got a draw of {part} grid steps for {release.name}, expected at least {_LEAST_PART} where parties share "
            "the noise",
            hint="let colluding be all other parties, or choose a finer grid",
        )
    return release.model_copy(update={"sigma": part})


def draws(noise: Noise, parties: int) -> int:
    """How many draws lie on an opened total: 1 for the source `dealer`, one a party for `parties`."""
    return 1 if noise.source == "dealer" else parties


def total_sd(spec: JobSpec, release: Release) -> float:
    """Standard deviation of the noise on each entry of an opened total, in grid steps (rounding left out)."""
    noise, parties = spec.privacy.noise, len(spec.parties)
    sigma = float(release.sigma if noise.source == "dealer" else party_release(release, noise, parties).sigma)
    if release.mechanism == "discrete-laplace":
        # Variance 2 q / (1 - q)^2 with q = e^(-1/b), that is 1 / (2 sinh(1 / 2b)^2).
        sigma = 1.0 / (math.sqrt(2.0) * math.sinh(0.5 / sigma))
    return sigma * math.sqrt(draws(noise, parties))
