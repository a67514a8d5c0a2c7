"""From a privacy budget to a plan: dimensions, rounds, and the noise of every release.

Guarantee: the releases that `plan_subspace` returns cost together at most `epsilon` at `delta` by
`veil.privacy.accountant.epsilon`, and their sensitivities are those of the mechanism, on its grid.

The settings are one function of epsilon and of the number of public features, the same for every data set; what hangs
on the number of users and on their histories is decided from the opened counts (`veil.trainers.subspace.algorithm`).

The budget, in mu^2 = 1/sigma^2: half of it for the counts at epsilon 1, where public features and counts carry the
model, falling to 12% from epsilon 5; what is left goes to one round, or from epsilon 4.5 to two, the last with 70%
(more noise early, less late: the first round only has to turn the public directions).

What was chosen on what, stated because choosing is not free. On MovieLens-1M's held-out training items (no test item),
without paying privacy for it: shares of the counts, clip, dimensions, popularity power, how much rare items count, and
which terms the score has (`popularity-root` has weight 0); figures on MovieLens-1M inherit that. On MovieLens-100K's
held-out training items, a public data set: the feature kernel (MovieLens-1M's held-out training items agreed), the last
round's share, the limit of the noise ratio, and the mixing weights (`baseline.evaluate.fit_private_mixing` with
latest=4, without popularity-root).

Between the anchors below, everything is linear in the logarithm of epsilon; beyond them it is constant.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from veil.errors import ConfigError
from veil.jobs.spec import Release, SubspaceTrainer
from veil.privacy.accountant import epsilon as accounted_epsilon
from veil.privacy.accountant import multipliers, sigma_steps
from veil.privacy.mechanism import variance_factor
from veil.recsys import postprocess
from veil.recsys.model import MAX_DIMENSIONS
from veil.trainers.linear import COUNTS
from veil.trainers.subspace.algorithm import round_sensitivity
from veil.trainers.subspace.counts import counts_sensitivity
from veil.trainers.subspace.options import FLOOR_TERMS, LIMIT, STRONG, WEAK, mixing_options

# epsilon -> (share of the budget for the counts, collaborative dimensions); budget is measured in mu^2 = 1/sigma^2.
_ANCHORS: Final = ((1.0, 0.5, 32.0), (5.0, 0.12, 48.0))
# From this epsilon on a second round pays for itself.
_SECOND_ROUND_EPSILON: Final = 4.5
_CLIP: Final = 0.2
_POPULARITY_POWER: Final = 0.15
_LAST_ROUND_SHARE: Final = 0.7

# Without public features to start from, rounds have to find the subspace themselves: fewer dimensions, more rounds.
_FEW_FEATURES_DIMENSIONS: Final = ((1.0, 8.0), (5.0, 16.0), (10.0, 24.0))
_FEW_FEATURES_ROUNDS: Final = 3

# Above this noise ratio (`veil.trainers.subspace.algorithm`) a collaborative part loses more than it brings: on
# MovieLens-100K with histories thinned to 4, 8, 16, 32 and all items, and noise of all sizes. That items divide (and
# not their root) was checked on synthetic data of 500, 2,000 and 6,000 items: gains end at .05, beyond .05 and at .03.
_NOISE_RATIO_LIMIT: Final = 0.03
# Term -> mixing weight at the two noise ratios, with and without a collaborative part; fitted on MovieLens-100K by the
# private trainer itself at epsilon 3 and 40, where the noise ratios are these (last four training items of each user
# held out, three noise draws).
_WEAK_RATIO, _STRONG_RATIO = 0.03, 0.0038
_MIXING: Final[Mapping[str, tuple[float, float]]] = {
    "collaborative": (2.04, 2.35),
    "content": (2.07, 1.27),
    "popularity-root": (0.0, 0.0),
    "popularity-log": (1.12, 1.40),
    "length-log": (0.11, 0.17),
    "taste-log": (0.29, 0.46),
}
_FLOOR_MIXING: Final[Mapping[str, tuple[float, float]]] = {
    "content": (3.32, 3.13),
    "popularity-root": (0.0, 0.0),
    "popularity-log": (1.28, 1.60),
    "length-log": (0.10, 0.14),
    "taste-log": (0.37, 0.61),
}

MIX_PREFIX: Final = "mix-"
_NOISE_RATIO_OVERRIDE: Final = "noise_ratio_limit"
OVERRIDES: Final = frozenset(
    {
        "dimensions",
        "content_dimensions",
        "rounds",
        "clip",
        "popularity_power",
        "counts_share",
        _NOISE_RATIO_OVERRIDE,
    }
)
"""What a job may set itself; anything else follows from epsilon. A mixing weight: "mix-" and the name of a term sets it
at every noise ratio. `noise_ratio_limit`: 0 for no collaborative part, 1e9 for one in any case."""


@dataclass(frozen=True)
class Settings:
    """What `settings` chose. Shares are of mu^2; `round_shares` sum to 1 - counts_share."""

    dimensions: int
    content_dimensions: int
    rounds: int
    clip: float
    popularity_power: float
    counts_share: float

    @property
    def fractions(self) -> list[float]:
        """Budget fractions of all releases in order: counts, then rounds, the last with the largest share."""
        if not self.rounds:
            return [1.0]
        rest = 1.0 - self.counts_share
        if self.rounds == 1:
            return [self.counts_share, rest]
        early = (1.0 - _LAST_ROUND_SHARE) / (self.rounds - 1)
        return [self.counts_share, *[rest * early] * (self.rounds - 1), rest * _LAST_ROUND_SHARE]


def settings(epsilon: float, items: int, features: int) -> Settings:
    """The defaults for a budget and a catalogue of `items` items and `features` feature columns."""
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise ConfigError(f"got epsilon {epsilon}, expected a positive number")
    counts_share = _interpolated(epsilon, [(at, share) for at, share, _ in _ANCHORS])
    wanted = round(_interpolated(epsilon, [(at, dimensions) for at, _, dimensions in _ANCHORS]))
    if features >= wanted:
        dimensions, rounds = wanted, 1 if epsilon < _SECOND_ROUND_EPSILON else 2
    else:
        dimensions = max(features, round(_interpolated(epsilon, _FEW_FEATURES_DIMENSIONS)))
        rounds = _FEW_FEATURES_ROUNDS
    dimensions = max(1, min(dimensions, items - 2))
    content = max(0, min(features, items - 2, MAX_DIMENSIONS - postprocess.USER_TERMS - dimensions))
    return Settings(dimensions, content, rounds, _CLIP, _POPULARITY_POWER, counts_share)


def default_options(given: Mapping[str, float], limit: float) -> dict[str, float]:
    """The trainer's options; `given` (term to weight) holds at every noise ratio."""
    mixing = {name: (given[name],) * 2 if name in given else ends for name, ends in _MIXING.items()}
    floor = {name: mixing[name] if name in given else _FLOOR_MIXING[name] for name in FLOOR_TERMS}
    return {LIMIT: limit, WEAK: _WEAK_RATIO, STRONG: _STRONG_RATIO, **mixing_options(mixing, floor)}


def plan_subspace(
    *,
    epsilon: float,
    delta: float,
    noise_source: Literal["dealer", "parties"],
    parties: int,
    items: int,
    features: int,
    overrides: Mapping[str, float] | None = None,
) -> tuple[SubspaceTrainer, tuple[Release, ...]]:
    """Trainer and releases of a job that costs at most (epsilon, delta), add or remove one user.

    The noise of a release is what one draw must have. With source "parties" each party adds such a draw, so that the
    total carries `parties` times its variance. Raises `ConfigError` on a budget or override that cannot be met.
    """
    variance_factor(noise_source, parties)  # refuses an unknown source
    given = dict(overrides or {})
    mixing = {k.removeprefix(MIX_PREFIX): v for k, v in given.items() if k.startswith(MIX_PREFIX)}
    unknown = sorted({k for k in given if not k.startswith(MIX_PREFIX)} - OVERRIDES | set(mixing) - set(_MIXING))
    if unknown:
        raise ConfigError(
            f"got unknown settings {', '.join(unknown)}, expected some of {', '.join(sorted(OVERRIDES))} or mix-<term>"
        )
    limit = float(given.get(_NOISE_RATIO_OVERRIDE, _NOISE_RATIO_LIMIT))
    if not (math.isfinite(limit) and limit >= 0):
        raise ConfigError(f"got {_NOISE_RATIO_OVERRIDE} {limit}, expected a number of at least 0")
    chosen = _overridden(settings(epsilon, items, features), given)
    fractions = chosen.fractions
    sensitivities = [counts_sensitivity(), *[round_sensitivity(chosen.clip)] * chosen.rounds]
    releases = tuple(
        Release(
            name=COUNTS if number == 0 else f"round-{number}",
            shape=(items + 1,) if number == 0 else (items, chosen.dimensions),
            sensitivity=sensitivity,
            sigma=sigma_steps(multiplier, sensitivity),
        )
        for number, (multiplier, sensitivity) in enumerate(
            zip(multipliers(epsilon, delta, fractions), sensitivities, strict=True)
        )
    )
    spent = accounted_epsilon(releases, delta)
    if spent > epsilon:
        raise ConfigError(f"got a plan that costs epsilon {spent}, expected at most {epsilon}")
    trainer = SubspaceTrainer(
        dimensions=chosen.dimensions,
        content_dimensions=chosen.content_dimensions,
        rounds=chosen.rounds,
        clip=chosen.clip,
        popularity_power=chosen.popularity_power,
        options=default_options(mixing, limit),
    )
    return trainer, releases


def _overridden(chosen: Settings, given: Mapping[str, float]) -> Settings:
    whole = {}
    for name in ("dimensions", "content_dimensions", "rounds"):
        value = given.get(name, getattr(chosen, name))
        if not float(value).is_integer() or value < (1 if name == "dimensions" else 0):
            raise ConfigError(f"got {name} {value}, expected a whole number")
        whole[name] = int(value)
    real = {n: float(given.get(n, getattr(chosen, n))) for n in ("clip", "popularity_power", "counts_share")}
    if not 0 < real["counts_share"] < 1:
        raise ConfigError(f"got counts_share {real['counts_share']}, expected above 0 and below 1")
    if not 0 < real["clip"] <= 1:
        raise ConfigError(f"got clip {real['clip']}, expected above 0 and at most 1")
    if not 0 <= real["popularity_power"] <= 1:
        raise ConfigError(f"got popularity_power {real['popularity_power']}, expected 0 to 1")
    if whole["rounds"] > 16:
        raise ConfigError(f"got {whole['rounds']} rounds, expected at most 16")
    columns = whole["dimensions"] * (whole["rounds"] > 0) + whole["content_dimensions"] + postprocess.USER_TERMS
    if columns > MAX_DIMENSIONS:
        raise ConfigError(
            f"got a user vector of {columns} entries, expected at most {MAX_DIMENSIONS}",
            hint="lower dimensions or content_dimensions",
        )
    return Settings(
        dimensions=whole["dimensions"],
        content_dimensions=whole["content_dimensions"],
        rounds=whole["rounds"],
        clip=real["clip"],
        popularity_power=real["popularity_power"],
        counts_share=real["counts_share"],
    )


def _interpolated(epsilon: float, points: Sequence[tuple[float, float]]) -> float:
    if epsilon <= points[0][0]:
        return float(points[0][1])
    for (low, at_low), (high, at_high) in itertools.pairwise(points):
        if epsilon <= high:
            share = math.log(epsilon / low) / math.log(high / low)
            return float(at_low + share * (at_high - at_low))
    return float(points[-1][1])
