"""What the join computes on shares: whether words are equal, and a product by the resulting bit.

Shares are xor shares for words of bits and additive shares mod 2^64 for numbers, over all parties, int64. Every
opening is of a value masked by the dealer's correlated randomness (Beaver 1991), uniform to any n-1 parties; nothing
else opens. All parties must call the same functions with the same shapes in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from veil.mpc.communicator import TensorCommunicator

_SHIFTS = (32, 16, 8, 4, 2, 1)


class Correlations(Protocol):
    """The part of `veil.mpc.provider.DealerProvider` that is used here."""

    def generate_binary_triple(self, size0: Sequence[int], size1: Sequence[int]) -> tuple[Tensor, ...]:
        """Xor shares of a, b and a & b."""
        ...

    def generate_additive_triple(self, size0: Sequence[int], size1: Sequence[int], op: str) -> tuple[Tensor, ...]:
        """Shares of a, b and op(a, b)."""
        ...

    def B2A_rng(self, size: Sequence[int]) -> tuple[Tensor, ...]:
        """Additive and xor shares of the same uniform bits."""
        ...


class Circuit:
    """One party's part of the circuits."""

    def __init__(self, communicator: TensorCommunicator, correlations: Correlations) -> None:
        self._communicator = communicator
        self._correlations = correlations
        self._leads = communicator.rank == 0

    def __repr__(self) -> str:
        return f"Circuit(rank={self._communicator.rank})"

    def is_zero(self, words: Tensor) -> Tensor:
        """Xor shares of words (int64) -> additive shares of 1 where the word is 0, else of 0. Seven rounds."""
        # All 64 bits of the complement are one: halves are joined by AND until one bit is left.
        bits = ~words if self._leads else words
        for shift in _SHIFTS:
            bits = self._and(bits, bits >> shift)
        return self._to_number(bits & 1)

    def select(self, bits: Tensor, values: Tensor) -> Tensor:
        """bits (rows,) times values (rows, columns), additive shares. One round."""
        column = bits.reshape(-1, 1)
        a, b, c = self._correlations.generate_additive_triple(tuple(column.shape), tuple(values.shape), "mul")
        left, right = self._communicator.all_reduce([column - a, values - b], batched=True)
        product: Tensor = c + left * b + a * right
        return product + left * right if self._leads else product

    def _and(self, left: Tensor, right: Tensor) -> Tensor:
        a, b, c = self._correlations.generate_binary_triple(tuple(left.shape), tuple(right.shape))
        x, y = self._communicator.all_reduce([left ^ a, right ^ b], op="bxor", batched=True)
        product: Tensor = c ^ (x & b) ^ (a & y)
        return product ^ (x & y) if self._leads else product

    def _to_number(self, bits: Tensor) -> Tensor:
        """Xor shares of bits -> additive shares of the same: b = m + r - 2 m r with m = b xor r opened."""
        number, word = self._correlations.B2A_rng(tuple(bits.shape))
        opened = self._communicator.all_reduce(bits ^ (word & 1), op="bxor")
        share: Tensor = number * (1 - 2 * opened)
        return share + opened if self._leads else share
