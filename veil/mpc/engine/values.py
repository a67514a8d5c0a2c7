"""Shared numbers at one party, with what is public about them: shape, fractional bits, and a bound on their size.

Guarantee: the bound holds for every input that keeps the declared bounds of inputs; it is tracked through every
operation by arithmetic on public numbers alone, so that a program which could leave 63 bits is refused before it runs
(`veil.mpc.engine.plan`), never wrong afterwards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from veil.errors import ConfigError, InputError

MOST_BITS = 63.0
# More than what sums of logarithms in floating point are off by, after any number of steps.
_SLACK_BITS = 2.0**-20


@dataclass(frozen=True, repr=False)
class Value:
    """A shared tensor: the sum of all parties' `share`, int64, is the number times 2^bits.

    limit_bits: log2 of a bound on the absolute value of that integer. owner: rank of the party whose share is the whole
    number, the others' being 0, as `Engine.own` makes it; what is computed from it has none.
    """

    share: Tensor
    bits: int
    limit_bits: float
    owner: int | None = None

    def __post_init__(self) -> None:
        if self.share.dtype != torch.int64:
            raise InputError(f"got a share of {self.share.dtype}, expected torch.int64")

    def __repr__(self) -> str:
        return f"Value(shape={tuple(self.share.shape)}, bits={self.bits}, limit=2^{self.limit_bits:.1f})"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return tuple(self.share.shape)

    def _alike(self, other: Value) -> None:
        if other.bits != self.bits:
            raise InputError(f"got {other.bits} fractional bits, expected {self.bits} as in the other summand")

    def __add__(self, other: Value) -> Value:
        self._alike(other)
        return Value(self.share + other.share, self.bits, sum_of_bits(self.limit_bits, other.limit_bits))

    def __sub__(self, other: Value) -> Value:
        self._alike(other)
        return Value(self.share - other.share, self.bits, sum_of_bits(self.limit_bits, other.limit_bits))

    def __neg__(self) -> Value:
        return Value(-self.share, self.bits, self.limit_bits)

    def scaled(self, factor: int, bits: int = 0) -> Value:
        """Times factor / 2^bits, a public number; nothing is sent."""
        if factor == 0:
            raise InputError("got the factor 0, expected another")
        return Value(self.share * factor, self.bits + bits, self.limit_bits + math.log2(abs(factor)))

    def weighted(self, weights: Tensor, bits: int, limit_bits: float) -> Value:
        """Times public weights (int64, over 2^bits, each at most 2^limit_bits as an integer), element by element."""
        return Value(self.share * weights, self.bits + bits, self.limit_bits + limit_bits)

    def sum(self, dimension: int) -> Value:
        """Sums over one dimension, which is kept with extent 1."""
        extent = self.share.shape[dimension]
        return Value(self.share.sum(dimension, keepdim=True), self.bits, self.limit_bits + math.log2(extent))

    def reshape(self, *shape: int) -> Value:
        """The same numbers in another shape."""
        return Value(self.share.reshape(shape), self.bits, self.limit_bits)

    def transposed(self) -> Value:
        """The transposed matrix."""
        return Value(self.share.t(), self.bits, self.limit_bits)

    def rows(self, start: int, stop: int) -> Value:
        """Rows `start` to `stop`, without the last."""
        return Value(self.share[start:stop], self.bits, self.limit_bits)

    def within(self, limit_bits: float) -> Value:
        """The same numbers with a tighter bound, which the caller has proven."""
        return Value(self.share, self.bits, min(self.limit_bits, limit_bits))

    def columns(self, start: int, stop: int) -> Value:
        """Columns `start` to `stop` of a matrix, without the last."""
        return Value(self.share[:, start:stop], self.bits, self.limit_bits)

    def widened(self, bits: int) -> Value:
        """The same number with more fractional bits."""
        if bits < self.bits:
            raise InputError(f"got {bits} fractional bits, expected at least {self.bits}; fewer take a truncation")
        return self if bits == self.bits else self.scaled(1 << (bits - self.bits), bits - self.bits)


def concatenated(values: list[Value], dimension: int = 0) -> Value:
    """Several values of the same precision as one."""
    for value in values[1:]:
        values[0]._alike(value)
    share = torch.cat([value.share for value in values], dim=dimension)
    return Value(share, values[0].bits, max(value.limit_bits for value in values))


def sum_of_bits(one: float, other: float) -> float:
    """log2(2^one + 2^other)."""
    high, low = max(one, other), min(one, other)
    return high + math.log2(1 + 2.0 ** (low - high))


def check_limit(value: Value, most: float, what: str) -> None:
    """Raises `ConfigError` when the value may need more than `most` bits."""
    if value.limit_bits > most - _SLACK_BITS:
        raise ConfigError(
            f"got numbers of up to 2^{value.limit_bits:.1f} for {what}, expected less than 2^{most:g}",
            hint="take fewer fractional bits, smaller batches, or a tighter bound",
        )


@dataclass(repr=False)
class Mask:
    """A uniform tensor that no party knows whole (or only its owner); hides one value, once."""

    number: int
    share: Tensor
    owner: int
    used: bool = field(default=False)

    def __repr__(self) -> str:
        return f"Mask(number={self.number}, shape={tuple(self.share.shape)})"


@dataclass(frozen=True, repr=False)
class Opened:
    """A value whose difference from a mask is public: what products are made of, as often as one likes."""

    difference: Tensor
    mask: Mask
    bits: int
    limit_bits: float

    def __repr__(self) -> str:
        return f"Opened(shape={tuple(self.difference.shape)}, bits={self.bits})"
