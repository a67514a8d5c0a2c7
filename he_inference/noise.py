"""Estimates of the noise in a decrypted result, from parameters and layout alone: for metrics and for choosing sets.

Standard deviations, in the heuristic way: errors are independent, rounding errors uniform, products of polynomials have
coefficients whose variances add up (A. Costache and N. Smart, eprint 2015/889, section 3; the layouts say what is
multiplied by what). Nothing here is a bound: `Parameters.score_error` is the stated
one. Tests compare with trials: within a few per cent in keyless layouts, within a factor of 1.5 in session layouts.

    fresh error of a ciphertext    SIGMA a coefficient, SEAL's own
    one rotation                   rounding after key switching, sqrt((1 + 2 N / 3) / 12) a coefficient, for a ternary
                                   s with two thirds of N that are not zero; the key's own error is small beneath it
    result                         sum over item polynomials of (ciphertext error) * (item polynomial)
    items                          rounding of their coefficients, times the query
    truncation                     the bits that do not travel, of the second half times s
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from he_inference.layouts.seam import Layout
from veil.errors import ConfigError

SIGMA = 3.2
# Layouts whose noise is described above.
KINDS = ("session", "keyless")


@dataclass(frozen=True, slots=True)
class NoiseMargin:
    """Bits that are left. modulus: from the largest coefficient, with seven standard deviations of noise, to the one at
    which decryption fails. bound: from the standard deviation of a score's error to its stated bound."""

    modulus: float
    bound: float


def noise_margin_bits(layout: Layout) -> NoiseMargin:
    """The margins of a layout of one of `KINDS`, negative when there is none; raises `ConfigError` for another."""
    if layout.kind not in KINDS:
        raise ConfigError(f"got layout {layout.kind}, expected one of {', '.join(KINDS)}")
    parameters = layout.parameters
    modulus_bits = math.log2(math.prod(parameters.data_primes))
    noise = _coefficient_noise(layout)
    if parameters.scheme == "bfv":
        # decryption rounds to multiples of Q / t; the error of a score is that of rounding vectors to integers alone
        left = modulus_bits - 1 - math.log2(parameters.plain_modulus) - math.log2(7 * noise)
        steps = math.sqrt(parameters.plain_modulus / 2)
        return NoiseMargin(left, math.log2(parameters.score_error / (math.sqrt(2 / 12) / steps)))
    scale_bits = parameters.query_scale_bits + parameters.item_scale_bits
    largest = math.sqrt(2) * 2.0**scale_bits + 7 * noise
    return NoiseMargin(
        modulus_bits - 1 - math.log2(largest), math.log2(parameters.score_error / score_error_deviation(layout))
    )


def score_error_deviation(layout: Layout) -> float:
    """Standard deviation of the error of a score, for unit vectors; of CKKS sets."""
    parameters = layout.parameters
    scale = 2.0 ** (parameters.query_scale_bits + parameters.item_scale_bits)
    places = parameters.degree / 2 if layout.coefficient_places() is None and layout.kind != "keyless" else 1.0
    return _coefficient_noise(layout) * math.sqrt(places) / scale


def _coefficient_noise(layout: Layout) -> float:
    """Standard deviation of a coefficient of a decrypted result."""
    parameters, n = layout.parameters, layout.parameters.degree
    rotated = layout.query_ciphertexts == 1 and layout.rotations > 1
    ciphertext = SIGMA**2 + (_rotation(n) ** 2 * (layout.rotations - 1) / 2 if rotated else 0.0)
    if parameters.scheme == "bfv":
        # coefficients of encoded slots are uniform modulo t; all D = groups * rotations polynomials count
        squared = n * layout.groups * layout.rotations * parameters.plain_modulus**2 / 12
        items_rounding = 0.0
    else:
        # all item polynomials of a block together hold block_items unit rows
        spread = 1.0 if layout.kind == "keyless" else 2.0 / n
        squared = spread * layout.block_items * 4.0**parameters.item_scale_bits
        # each coefficient of an item polynomial is rounded, in slots after a dither, which doubles the variance; the
        # squared norms of all polynomials of a unit query, rotated or not, add up to 1
        items_rounding = 4.0**parameters.query_scale_bits / (12 if layout.kind == "keyless" else 6)
    giant = (layout.groups - 1) * _rotation(n) ** 2
    return math.sqrt(ciphertext * squared + items_rounding + giant + _truncation(layout) ** 2)


def _rotation(degree: int) -> float:
    return math.sqrt((1 + 2 * degree / 3) / 12)


def _truncation(layout: Layout) -> float:
    """Of the bits of both halves that do not travel."""
    parameters, n = layout.parameters, layout.parameters.degree
    modulus = float(math.prod(parameters.data_primes))
    first, second = (modulus / 2.0**bits / math.sqrt(12) for bits in parameters.response_bits)
    return math.hypot(first, second * math.sqrt(2 * n / 3))
