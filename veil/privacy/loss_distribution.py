"""What sampled Gaussian and pure mechanisms cost together: privacy loss distributions, composed numerically.

Guarantee: `composed_epsilon` is an upper bound. Every mechanism is replaced by a pair of distributions that dominates
it, dominating pairs compose, also adaptively (Zhu, Dong and Wang 2022, "Optimal Accounting of Differential Privacy via
Characteristic Function", arXiv 2106.08567), and each step below errs to the side of more loss:

- Gaussian, on all users: the pair N(mu, 1), N(0, 1).
- Gaussian, on users sampled with probability q: the pairs (1-q) N(0, 1) + q N(mu, 1) against N(0, 1) when a user goes,
  and N(0, 1) against that mixture when one comes (same source). Both directions are composed; the worse counts.
- An e-DP mechanism, whatever it is: randomised response with odds e^e (Kairouz, Oh and Viswanath 2015, "The
  Composition Theorem for Differential Privacy"); k of them are a binomial distribution of losses (2j - k) e.
- Onto the grid: Gaussians by dp-accounting's pessimistic "Connect the Dots" (Doroshenko et al. 2022). An atom of a
  binomial is split between its two neighbours on the grid so that its probability is kept under both distributions;
  who merges the two again has the original, therefore the split one tells at least as much.
- Tails that are cut count as infinite loss. Of delta, a share is kept back for what floating point loses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy import special

from veil.privacy.gaussian import LARGEST_DISTRIBUTION

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

LEAST_SAMPLED_MULTIPLIER: Final = 0.05
"""Below it one opening's loss spans hundreds: sampling is then not credited (callers count all users)."""
MOST_GROUPS: Final = 24
"""Distributions of different mechanisms that are composed at most; each costs up to a tenth of a second."""

_GRID_STEPS: Final = 8000  # in epsilon; the error falls with the square of the step
_ROUGH_POINTS: Final = 2**11
_LEAST_STEP: Final = 1e-6  # below it the masses of a grid no longer sum to 1 in floating point
_FINE_POINTS: Final = 2**16  # of one mechanism; all together take at most twice as many
_CUT_SHARE: Final = 1e-6  # of delta, that all cut tails together may have
# Errors of fast Fourier transforms: absolute, in probability; measured below a tenth of this (docs/privacy.md).
_ROUND_OFF: Final = 1e-12
_ROUND_OFF_EACH: Final = 1e-14
_ATOM_FLOOR: Final = 1e-18


@dataclass(frozen=True)
class Sampled:
    """`count` Gaussian mechanisms of this noise multiplier, each on users sampled with probability `sampling`."""

    multiplier: float
    sampling: float
    count: int


@dataclass(frozen=True)
class Pure:
    """`count` mechanisms, each of which is (`epsilon`, 0)-differentially private."""

    epsilon: float
    count: int


def composed_epsilon(multiplier: float | None, sampled: Sequence[Sampled], pure: Sequence[Pure], delta: float) -> float:
    """Epsilon at `delta` of one Gaussian on all users (None: there is none) and all the others, from above.

    Infinite where this way of counting has no answer: beyond epsilon 200, or at a delta so small that floating point
    spoils it (about 1e-11).
    """
    count = 1 + sum(one.count for one in sampled) + sum(one.count for one in pure)
    # Relative: the masses of one distribution sum to 1 only up to about 1e-12, that is 1e-9 after 1,000.
    usable = delta * (1 - 2 * _CUT_SHARE - 1e-9) - _ROUND_OFF - _ROUND_OFF_EACH * count
    if usable <= 0.5 * delta:
        return math.inf
    cut = delta * _CUT_SHARE / count
    gaussians = [one for one in ([] if multiplier is None else [Sampled(multiplier, 1.0, 1)]) + list(sampled)]
    widest = max([_span(one, cut) for one in gaussians] + [2 * one.epsilon for one in pure])
    rough_step = max(_LEAST_STEP, widest / _ROUGH_POINTS)
    rough = _on_grid(gaussians, pure, usable, cut, rough_step)
    if rough == 0.0 or rough > 2 * LARGEST_DISTRIBUTION:
        return 0.0 if rough == 0.0 else math.inf
    points = min(_FINE_POINTS, 2 * _FINE_POINTS // max(1, len(gaussians)))
    step = max(_LEAST_STEP, rough / _GRID_STEPS, widest / points)
    return rough if step >= rough_step else min(rough, _on_grid(gaussians, pure, usable, cut, step))


def _span(one: Sampled, cut: float) -> float:
    """Width of the losses of one opening, up to tails of probability `cut`."""
    mu, tail = 1.0 / one.multiplier, -float(special.ndtri(cut))
    # log(1 + q (e^x - 1)) <= min(x, q e^x), x the loss without sampling
    largest = mu * tail + 0.5 * mu * mu
    # and no more than `largest` in any case; e^700 is the last power that fits. Coarse groups may get there.
    return min(largest, one.sampling * math.exp(min(largest, 700.0))) + min(
        largest, -math.log1p(-min(one.sampling, 1 - 1e-15))
    )


def _on_grid(gaussians: Sequence[Sampled], pure: Sequence[Pure], delta: float, cut: float, step: float) -> float:
    parts = [_gaussian(one, cut, step) for one in gaussians] + [_binomial(one, step) for one in pure]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.compose(part, tail_mass_truncation=cut)
    found = float(whole.get_epsilon_for_delta(delta))
    # Its search walks the grid by repeated addition; what it found must hold by the definition as well.
    while math.isfinite(found) and float(whole.get_delta_for_epsilon(found)) > delta * (1 + 1e-12):
        found = found * (1 + 1e-9) + 1e-15
    return found


def _gaussian(one: Sampled, cut: float, step: float) -> PrivacyLossDistribution:
    from dp_accounting.pld import privacy_loss_distribution as distributions

    single = distributions.from_gaussian_mechanism(
        one.multiplier,
        value_discretization_interval=step,
        sampling_prob=one.sampling,
        log_mass_truncation_bound=math.log(cut),
        use_connect_dots=True,
    )
    return single if one.count == 1 else single.self_compose(one.count, tail_mass_truncation=cut)


def _binomial(one: Pure, step: float) -> PrivacyLossDistribution:
    """`count` randomised responses: exact atoms, each split between its neighbours on the grid."""
    # As above: scipy.stats takes most of a second to import.
    from dp_accounting.pld import privacy_loss_distribution as distributions
    from scipy import stats

    wins = np.arange(one.count + 1)
    masses = stats.binom.pmf(wins, one.count, special.expit(one.epsilon))
    losses = (2.0 * wins - one.count) * one.epsilon
    kept = masses > _ATOM_FLOOR
    # Cut atoms, and what the masses lack by their own rounding, count as infinite loss.
    infinite = max(0.0, 1.0 - math.fsum(masses[kept])) + 1e-15
    places = losses[kept] / step
    low = np.floor(places)
    upward = special.expm1((low - places) * step) / math.expm1(-step)
    atoms: dict[int, float] = {}
    for place, mass, share in zip(low.astype(int).tolist(), masses[kept].tolist(), upward.tolist(), strict=True):
        atoms[place] = atoms.get(place, 0.0) + mass * (1.0 - share)
        atoms[place + 1] = atoms.get(place + 1, 0.0) + mass * share
    return distributions.PrivacyLossDistribution.create_from_rounded_probability(atoms, infinite, step)
