"""From a privacy budget to a plan for alternating least squares: dimensions, rounds, and the noise of every release.

Guarantee: the releases that `plan_als` returns cost together at most `epsilon` at `delta` by
`veil.privacy.accountant.epsilon`, and their sensitivities are those of the mechanism, on its grid.

The budget, in mu^2 = 1/sigma^2: a share for the counts that falls with epsilon, as everything else leans on them when
little can be learnt; the rest in equal parts for the rounds, whose statistics are averaged, so that no round is worth
more than another. With Gram matrices for each item these take a third of each round's part.

The settings are one function of epsilon and of the number of public features, the same for every data set; what depends
on how many users there are is decided after the first openings, which tell it (`solve.fold_map`,
`AlsAlgorithm._mixing`). What they were chosen on, stated because choosing is not free: by validation on MovieLens-1M
and MovieLens-100K (held-out training items, no test item) without paying privacy for it; the mixing weights were fitted
on MovieLens-100K, a public data set (`baseline.evaluate.fit_private_mixing`). Figures on MovieLens-1M inherit all but
the weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from veil.errors import ConfigError
from veil.jobs.spec import AlsTrainer, Release
from veil.privacy.accountant import epsilon as accounted_epsilon
from veil.privacy.accountant import multipliers, sigma_steps
from veil.recsys import postprocess
from veil.recsys.model import MAX_DIMENSIONS
from veil.trainers.als.algorithm import MIXING_NOISE, mixing_option
from veil.trainers.als.statistics import item_gram_sensitivity, round_sensitivity, triangle_size
from veil.trainers.linear import COUNTS, count_sensitivity

MIX_PREFIX: Final = "mix-"

# epsilon -> share of the budget for the counts; between them linear in the logarithm, beyond them constant.
_COUNTS_SHARES: Final = ((1.0, 0.6), (5.0, 0.2))
_DIMENSIONS: Final = 48
# A matrix for each item has d (d + 1) / 2 noised entries: fewer dimensions, fewer rounds.
_ITEM_GRAM_DIMENSIONS: Final = 16
_ITEM_GRAM_ROUNDS: Final = 3
_ITEM_GRAM_SHARE: Final = 1.0 / 3.0
_ROUNDS: Final = 6
_POPULARITY_POWER: Final = 0.15
# Without public features to start from the subspace has to be found first.
_FEW_FEATURES_DIMENSIONS: Final = 16

# Term -> mixing weight at each level of `MIXING_NOISE`; fitted on the four latest training items of each user of
# MovieLens-100K (features of MiniLM) by the private trainer itself at epsilon 30, 10, 3 and 1, which is where those
# levels come from; delta 1e-5, seeds 1 to 5.
_MIXING: Final[Mapping[str, tuple[float, float, float, float]]] = {
    "collaborative": (2.07, 2.16, 1.92, 1.19),
    "content": (1.30, 1.42, 2.08, 2.72),
    "popularity-root": (0.46, 0.31, 0.21, 0.06),
    "popularity-log": (0.80, 0.84, 0.86, 0.93),
    "length-log": (0.21, 0.19, 0.15, 0.09),
    "taste-log": (0.40, 0.35, 0.31, 0.25),
}

OVERRIDES: Final = frozenset(
    {"dimensions", "content_dimensions", "rounds", "popularity_power", "counts_share", "item_gram"}
)
"""What a job may set itself; anything else follows from epsilon. `item_gram`: 0 or 1. A mixing weight: "mix-" and the
name of a term sets it for any noise."""


@dataclass(frozen=True)
class Settings:
    """What `settings` chose. Shares are of mu^2."""

    dimensions: int
    content_dimensions: int
    rounds: int
    popularity_power: float
    counts_share: float
    item_gram: bool

    @property
    def fractions(self) -> list[float]:
        """Budget fractions of all releases in order."""
        each = (1.0 - self.counts_share) / self.rounds
        parts = [each * _ITEM_GRAM_SHARE, each * (1.0 - _ITEM_GRAM_SHARE)] if self.item_gram else [each]
        return [self.counts_share, *parts * self.rounds]


def settings(epsilon: float, items: int, features: int, *, item_gram: bool = False) -> Settings:
    """The defaults for a budget and a catalogue of `items` items and `features` feature columns."""
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise ConfigError(f"got epsilon {epsilon}, expected a positive number")
    (low, at_low), (high, at_high) = _COUNTS_SHARES
    position = min(max(math.log(epsilon / low) / math.log(high / low), 0.0), 1.0)
    wanted = _ITEM_GRAM_DIMENSIONS if item_gram else _DIMENSIONS
    dimensions = min(wanted, max(features, _FEW_FEATURES_DIMENSIONS))
    dimensions = max(1, min(dimensions, items - 2))
    return Settings(
        dimensions=dimensions,
        content_dimensions=max(0, min(features, items - 2, MAX_DIMENSIONS - postprocess.USER_TERMS - dimensions)),
        rounds=_ITEM_GRAM_ROUNDS if item_gram else _ROUNDS,
        popularity_power=_POPULARITY_POWER,
        counts_share=at_low + position * (at_high - at_low),
        item_gram=item_gram,
    )


def plan_als(
    *,
    epsilon: float,
    delta: float,
    items: int,
    features: int,
    overrides: Mapping[str, float] | None = None,
) -> tuple[AlsTrainer, tuple[Release, ...]]:
    """Trainer and releases of a job that costs at most (epsilon, delta), add or remove one user.

    Who draws the noise changes what lies on the total, not what a release states (`veil.privacy.sources`). Raises
    `ConfigError` on a budget or override that cannot be met.
    """
    given = dict(overrides or {})
    mixing = {name.removeprefix(MIX_PREFIX): weight for name, weight in given.items() if name.startswith(MIX_PREFIX)}
    unknown = sorted(
        {name for name in given if not name.startswith(MIX_PREFIX)} - OVERRIDES | set(mixing) - set(_MIXING)
    )
    if unknown:
        raise ConfigError(
            f"got unknown settings {', '.join(unknown)}, expected some of {', '.join(sorted(OVERRIDES))} or mix-<term>"
        )
    item_gram = given.get("item_gram", 0.0)
    if item_gram not in (0.0, 1.0):
        raise ConfigError(f"got item_gram {item_gram}, expected 0 or 1")
    chosen = _overridden(settings(epsilon, items, features, item_gram=item_gram == 1.0), given)
    shapes: list[tuple[str, tuple[int, ...], int]] = [(COUNTS, (items,), count_sensitivity())]
    for number in range(1, chosen.rounds + 1):
        d = chosen.dimensions
        if chosen.item_gram:
            shapes.append((f"item-gram-{number}", (items, triangle_size(d)), item_gram_sensitivity()))
        shapes.append((f"round-{number}", (items + d, d), round_sensitivity()))
    releases = tuple(
        Release(name=name, shape=shape, sensitivity=sensitivity, sigma=sigma_steps(multiplier, sensitivity))
        for multiplier, (name, shape, sensitivity) in zip(
            multipliers(epsilon, delta, chosen.fractions), shapes, strict=True
        )
    )
    spent = accounted_epsilon(releases, delta)
    if spent > epsilon:
        raise ConfigError(f"got a plan that costs epsilon {spent}, expected at most {epsilon}")
    trainer = AlsTrainer(
        dimensions=chosen.dimensions,
        content_dimensions=chosen.content_dimensions,
        rounds=chosen.rounds,
        popularity_power=chosen.popularity_power,
        gram="item" if chosen.item_gram else "global",
        options={
            mixing_option(level, term): float(mixing.get(term, weights[level]))
            for level in range(len(MIXING_NOISE))
            for term, weights in _MIXING.items()
        },
    )
    return trainer, releases


def _overridden(chosen: Settings, given: Mapping[str, float]) -> Settings:
    whole: dict[str, int] = {}
    for name, least in (("dimensions", 1), ("content_dimensions", 0), ("rounds", 1)):
        value = float(given.get(name, getattr(chosen, name)))
        if not (value.is_integer() and value >= least):
            raise ConfigError(f"got {name} {value}, expected a whole number from {least}")
        whole[name] = int(value)
    counts_share = float(given.get("counts_share", chosen.counts_share))
    popularity_power = float(given.get("popularity_power", chosen.popularity_power))
    if not 0 < counts_share < 1:
        raise ConfigError(f"got counts_share {counts_share}, expected above 0 and below 1")
    if not 0 <= popularity_power <= 1:
        raise ConfigError(f"got popularity_power {popularity_power}, expected 0 to 1")
    if whole["rounds"] > 16:
        raise ConfigError(f"got {whole['rounds']} rounds, expected at most 16")
    columns = whole["dimensions"] + whole["content_dimensions"] + postprocess.USER_TERMS
    if columns > MAX_DIMENSIONS:
        raise ConfigError(
            f"got a user vector of {columns} entries, expected at most {MAX_DIMENSIONS}",
            hint="lower dimensions or content_dimensions",
        )
    return replace(
        chosen,
        dimensions=whole["dimensions"],
        content_dimensions=whole["content_dimensions"],
        rounds=whole["rounds"],
        counts_share=counts_share,
        popularity_power=popularity_power,
    )
