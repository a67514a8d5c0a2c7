"""What an engine can be asked to open in one round."""

from __future__ import annotations

import math
from dataclasses import dataclass

from veil.errors import InputError
from veil.mpc.engine.items import EngineItem
from veil.mpc.engine.values import Mask, Opened, Value
from veil.mpc.engine.waves import Series, coefficients

# Fractional bits of the dealer's waves, and of what they are multiplied by, unless a program asks for others.
PRECISION_BITS = 18


@dataclass(frozen=True, repr=False)
class Masked:
    """Ask for a value less a mask to open: gives `Opened`."""

    value: Value
    mask: Mask | None = None


@dataclass(frozen=True, repr=False)
class Truncated:
    """Ask for a value with `shift` fewer fractional bits: gives `Value`. |x| < 2^62 must hold."""

    value: Value
    shift: int


@dataclass(frozen=True, repr=False)
class Waved:
    """Ask for functions of a value, all of one period: gives a list of `Value`, each with 2 * precision_bits bits."""

    value: Value
    series: tuple[Series, ...]
    precision_bits: int = PRECISION_BITS


Request = Masked | Truncated | Waved
Result = Opened | Value | list[Value]


def period_bits_of(request: Waved) -> int:
    period = request.series[0].period
    return request.value.bits + int(math.log2(period))


def waves_item(request: Waved) -> EngineItem:
    coefficients(request.series)  # raises when periods or lengths differ
    period_bits = period_bits_of(request)
    if not 8 <= period_bits <= 62:
        raise InputError(f"got a period of 2^{period_bits} units, expected 2^8 to 2^62")
    harmonics = request.series[0].harmonics
    return EngineItem(
        "waves",
        request.value.shape,
        period_bits=period_bits,
        harmonics=harmonics,
        precision_bits=request.precision_bits,
    )
