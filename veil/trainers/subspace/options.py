"""The subspace trainer's options in a job: mixing weights, and when there is a collaborative part.

Guarantee: the options are public numbers in the job text, so every party signs them; none depends on rows.

    mix-weak-<term>          weights at the noise ratio `noise-ratio-weak` and above
    mix-strong-<term>        weights at `noise-ratio-strong` and below; between, linear in the ratio's logarithm
    mix-floor-weak-<term>, mix-floor-strong-<term>    the same for a model without a collaborative part
    noise-ratio-limit        above this noise ratio there is no collaborative part (`veil.trainers.subspace.algorithm`)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from veil.recsys.postprocess import TERMS

LIMIT: Final = "noise-ratio-limit"
WEAK: Final = "noise-ratio-weak"
STRONG: Final = "noise-ratio-strong"
COLLABORATIVE: Final = "collaborative"
FLOOR_TERMS: Final = tuple(name for name in TERMS if name != COLLABORATIVE)
FLOOR, COLLABORATIVE_MIX = "mix-floor-", "mix-"
_ENDS: Final = ("weak-", "strong-")
OPTIONS: Final = frozenset(
    [LIMIT, WEAK, STRONG]
    + [FLOOR + end + name for end in _ENDS for name in FLOOR_TERMS]
    + [COLLABORATIVE_MIX + end + name for end in _ENDS for name in TERMS]
)


def mixing_options(
    weights: Mapping[str, tuple[float, float]], floor: Mapping[str, tuple[float, float]]
) -> dict[str, float]:
    """Options of weights by term, each (weak, strong)."""
    return {
        kind + end + name: float(ends[number])
        for kind, table in ((COLLABORATIVE_MIX, weights), (FLOOR, floor))
        for name, ends in table.items()
        for number, end in enumerate(_ENDS)
    }


def mixing_at(options: Mapping[str, float], ratio: float, *, collaborative: bool) -> dict[str, float]:
    """The weight of each term at a noise ratio, with or without a collaborative part."""
    kind, names = (COLLABORATIVE_MIX, TERMS) if collaborative else (FLOOR, FLOOR_TERMS)
    weak, strong = math.log(options[WEAK]), math.log(options[STRONG])
    share = min(max((math.log(ratio) - strong) / (weak - strong), 0.0), 1.0)
    return {
        name: share * options[kind + "weak-" + name] + (1.0 - share) * options[kind + "strong-" + name]
        for name in names
    }
