"""From a budget to the releases of a joint model on split columns, and to the steps of its noised descent.

Guarantee: the releases of `plan_releases` cost together at most the budget by `veil.privacy.accountant`, each step's
noised gradient counted as if it were opened. Defaults were chosen on the train and dev rows of two advertising samples
without paying privacy for it (`baseline.tabular`); they are public numbers and depend on nobody's rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from veil.errors import ConfigError
from veil.jobs.spec import Release
from veil.privacy.accountant import multipliers, noise_multiplier, sigma_steps
from veil.tabular.mechanism import Family, gradient_sensitivity
from veil.tabular.schema import TabularSchema
from veil.tabular.statistics import statistics_release

STATISTICS_SHARE: Final = 0.04
"""Part of mu^2 for the statistics of all parties together: the means of one-hot columns need little."""

PRIVATE_STEPS: Final = 20
PLAIN_STEPS: Final = 50
MOST_STEPS: Final = 900
_RATE_PER_SIGNAL: Final = 0.007
_MOST_RATE: Final = 40.0
_MOMENTUM: Final = 0.5


@dataclass(frozen=True)
class DescentOptions:
    """steps: full-batch. learning_rate: on the mean gradient. momentum: in [0, 1)."""

    steps: int
    learning_rate: float
    momentum: float = _MOMENTUM

    def __post_init__(self) -> None:
        """Raises `ConfigError` on values out of range."""
        if not (1 <= self.steps <= 10_000 and 0 < self.learning_rate <= 1e4 and 0 <= self.momentum < 1):
            raise ConfigError(
                f"got {self.steps} steps, learning rate {self.learning_rate}, momentum {self.momentum},"
                " expected 1 to 10,000, (0, 10,000] and [0, 1)"
            )


def default_descent(epsilon: float | None, delta: float, rows: int) -> DescentOptions:
    """Steps that suit a budget and a public number of rows; None: no noise.

    The distance that weights travel, steps times rate / (1 - momentum), is what regularises: it grows with the rows a
    unit of noise stands against, rows / (sigma / sensitivity). The cap keeps steps stable where no direction has more
    than 0.3 of the variance of the rows: rate * 0.25 * 0.3 < 2 (1 + momentum). Raises `ConfigError`.
    """
    if epsilon is None:
        return DescentOptions(PLAIN_STEPS, _MOST_RATE)
    if rows < 1:
        raise ConfigError(f"got {rows} rows, expected at least 1")
    rate = _RATE_PER_SIGNAL * rows / noise_multiplier(epsilon, delta)
    return DescentOptions(PRIVATE_STEPS, min(_MOST_RATE, max(2.0**-10, rate)))


def plan_releases(
    schema: TabularSchema,
    *,
    epsilon: float,
    delta: float,
    steps: int,
    parameters: int,
    statistics_share: float = STATISTICS_SHARE,
    family: Family = "linear",
    slope: float = 1.0,
) -> tuple[Release, ...]:
    """Every release of a job that costs at most `epsilon`: each party's statistics, then one for each step.

    parameters: numbers in the gradient. Raises `ConfigError`.
    """
    if not 1 <= steps <= MOST_STEPS:
        raise ConfigError(f"got {steps} steps, expected 1 to {MOST_STEPS}")
    if not 0 < statistics_share < 1:
        raise ConfigError(f"got a statistics_share of {statistics_share}, expected above 0 and below 1")
    parties = [party.party for party in schema.parties]
    shares = [statistics_share / len(parties)] * len(parties) + [(1 - statistics_share) / steps] * steps
    found = multipliers(epsilon, delta, shares)
    own = [statistics_release(schema, party, m) for party, m in zip(parties, found, strict=False)]
    bound = gradient_sensitivity(schema, family, slope=slope)
    sigma = sigma_steps(found[-1], bound)
    each = [
        Release(name=f"step-{step:04d}", shape=(parameters,), sensitivity=bound, sigma=sigma) for step in range(steps)
    ]
    return (*own, *each)


def charged_release(steps: tuple[Release, ...], name: str, shape: tuple[int, ...]) -> Release:
    """One release that costs at least as much as equal `steps` together: what a ledger and a job's list may carry.

    T mechanisms of sensitivity S and noise sigma have mu^2 = T S^2 / sigma^2, that of one with noise sigma / sqrt(T)
    (rounded down, hence dearer). Raises `ConfigError` unless all steps are equal Gaussians on all users, and when less
    than one grid step of noise is left, which no release can have.
    """
    if not steps:
        raise ConfigError("got no steps, expected at least one")
    first = steps[0]
    alike = (first.sensitivity, first.sigma, "rounded-gaussian", 1.0)
    if any((one.sensitivity, one.sigma, one.mechanism, one.sampling) != alike for one in steps):
        raise ConfigError("got steps that differ in sensitivity, noise or sampling, expected equal ones")
    sigma = math.isqrt(first.sigma**2 // len(steps))
    if sigma == 0:
        raise ConfigError(f"got {len(steps)} steps of noise {first.sigma}, expected at least sqrt(steps)")
    return Release(name=name, shape=shape, sensitivity=first.sensitivity, sigma=sigma)
