"""Where the blocks of an index lie, and what sums up their products with queries there.

Guarantee: the sums are the same residues, number for number, wherever the blocks lie; what lies on a device was moved
there once and stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from he_inference.ring.accumulate import accumulate
from he_inference.ring.moduli import Words


class Blocks(Protocol):
    """Blocks of one index, uint32[blocks, primes, tiles, terms, TILE], as `he_inference.ring.accumulate` has them."""

    def __len__(self) -> int:
        """How many blocks."""

    def __getitem__(self, blocks: slice) -> Blocks:
        """Some of them, without a copy."""

    def sums(self, queries: Words, at_a_time: int) -> Iterator[Words]:
        """uint32[some blocks, groups, queries, 2, primes, N], `at_a_time` blocks (the last time fewer) until all are.

        queries: uint32[primes, tiles, queries, rotations, 2, TILE]. Raises `ValueError` for one that does not fit.
        """


Place = Callable[[Words, NDArray[np.uint64]], Blocks]
"""Puts an index, uint32[blocks, primes, tiles, terms, TILE], to where it is computed with; second, its primes."""


class HostBlocks:
    """Blocks in this process's memory, or in a file that is mapped into it."""

    def __init__(self, words: Words, q: NDArray[np.uint64]) -> None:
        self._words = words
        self._q = q

    def __repr__(self) -> str:
        return f"HostBlocks({self._words.shape})"

    def __len__(self) -> int:
        return len(self._words)

    def __getitem__(self, blocks: slice) -> HostBlocks:
        return HostBlocks(self._words[blocks], self._q)

    def sums(self, queries: Words, at_a_time: int) -> Iterator[Words]:
        """As of `Blocks`."""
        for start in range(0, len(self._words), at_a_time):
            yield accumulate(self._words[start : start + at_a_time], queries, self._q)


def placed(index: Words | Blocks, q: NDArray[np.uint64]) -> Blocks:
    """`index` itself, or around an array what sums it up on the processor."""
    return HostBlocks(index, q) if isinstance(index, np.ndarray) else index
