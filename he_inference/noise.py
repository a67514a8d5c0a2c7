"""How much room the noise of a layout leaves, from parameters and layout alone: for metrics and for choosing sets.

Guarantee: these are estimates, in the heuristic way: errors are independent, rounding errors uniform, products of
polynomials have coefficients whose variances add up (A. Costache and N. Smart, eprint 2015/889, section 3). The
formulas are those of `he_inference.encoding.deviation`; the bound that is promised is its `stated_error`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from he_inference.encoding.deviation import SIGMAS, USER_NORM, coefficient, expected, stated_error, wrong
from he_inference.layouts.history import HistoryLayout
from he_inference.layouts.seam import Layout
from he_inference.parameters import HISTORY_SCORES
from veil.errors import ConfigError

# Layouts whose noise is described.
KINDS = ("session", "keyless", "history")


@dataclass(frozen=True, slots=True)
class NoiseMargin:
    """Bits that are left. modulus: from the largest coefficient, with seven standard deviations of noise, to the one at
    which decryption fails. bound: from the standard deviation of a score's error to its stated bound; of a history,
    of an output's, for the longest user vector that the bound is for."""

    modulus: float
    bound: float


def noise_margin_bits(layout: Layout) -> NoiseMargin:
    """The margins of a layout of one of `KINDS`, negative when there is none; raises `ConfigError` for another."""
    if layout.kind not in KINDS:
        raise ConfigError(f"got layout {layout.kind}, expected one of {', '.join(KINDS)}")
    folded = isinstance(layout, HistoryLayout)
    parameters = HISTORY_SCORES if folded else layout.parameters
    bound = math.log2(stated_error(layout) / expected(layout, USER_NORM if folded else 1.0))
    if parameters.scheme == "bfv":
        # Decryption rounds to integers.
        terms = layout.groups * layout.rotations
        return NoiseMargin(-1.0 - math.log2(SIGMAS * wrong(parameters, layout.rotations, terms)), bound)
    # Two scores of at most 1 share a slot. A history is at its narrowest where it is scored: while it is folded in
    # there is a prime more.
    largest = math.sqrt(2) * 2.0 ** (parameters.query_scale_bits + parameters.item_scale_bits)
    modulus_bits = math.log2(math.prod(parameters.data_primes))
    return NoiseMargin(modulus_bits - 1 - math.log2(largest + SIGMAS * coefficient(layout)), bound)
