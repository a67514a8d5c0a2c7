"""Fixed-point numbers in the ring Z_2^64: a real x stands as round(x * 2^f).

Decoding is exact: the result is the float nearest to ring / 2^f. CrypTen 0.4.1 divides negative values by 2^f - 1
instead of 2^f, which is off by one whole unit for some of them (-9.9999 comes out as -10.9999); `veil.mpc.session`
puts `decode` in its place.
"""

from __future__ import annotations

import torch
from torch import Tensor

from veil.errors import InputError

MAX_FRACTION_BITS = 52


def encode(values: Tensor, fraction_bits: int) -> Tensor:
    """Float tensor -> int64 ring tensor of the same shape, rounded to nearest, ties to even.

    Raises `InputError` for values that are not finite or do not fit: |x| < 2^(62 - f).
    """
    _check(fraction_bits)
    scaled = values.to(torch.float64) * 2.0**fraction_bits
    if not bool(torch.isfinite(scaled).all()) or bool((scaled.abs() >= 2.0**62).any()):
        raise InputError(f"got a value that is not finite or too large, expected less than 2^{62 - fraction_bits}")
    return scaled.round().to(torch.int64)


def decode(ring: Tensor, fraction_bits: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """int64 ring tensor -> float tensor of the same shape.

    Exact to the last place: an int64 is converted with one rounding (none below 2^53 for float64, 2^24 for float32),
    and division by a power of two is exact.
    """
    _check(fraction_bits)
    if ring.dtype != torch.int64:
        raise InputError(f"got {ring.dtype}, expected torch.int64")
    return ring.to(dtype) / 2.0**fraction_bits


def _check(fraction_bits: int) -> None:
    if not 0 <= fraction_bits <= MAX_FRACTION_BITS:
        raise InputError(f"got {fraction_bits} fraction bits, expected 0 to {MAX_FRACTION_BITS}")
