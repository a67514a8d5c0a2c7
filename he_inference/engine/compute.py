"""Scores of all items for encrypted queries: the arithmetic of every layout, for several clients at once.

Guarantee: what is computed depends on the index and the layout only, never on a query: every query runs the same
operations and gets results of the same number and length. Answers are the same bytes whether queries come alone or
together, and whatever the number of threads. Nothing here can decrypt, and nothing raises for any content of checked
messages: all arithmetic is modular, on arrays of fixed shapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from he_inference import messages
from he_inference.engine.blocks import Blocks, placed
from he_inference.engine.reading import read_query
from he_inference.engine.seam import BLOCKS_AT_A_TIME
from he_inference.index.encode import encoded_polynomials
from he_inference.layouts.seam import Integers, Layout
from he_inference.ring.accumulate import tiled_queries
from he_inference.ring.moduli import TILE, Moduli, Words, moduli
from he_inference.ring.response import packed, truncated
from he_inference.ring.rotations import baby_steps, giant_steps
from he_inference.ring.switch import Places, places_of, prepared_keys, switching

# Blocks times queries that are summed up at a time: the sums of a batch stay within the caches.
_SUMS_AT_A_TIME = 256


class Compute:
    """The evaluator of one layout."""

    def __init__(self, layout: Layout) -> None:
        parameters = layout.parameters
        self.layout = layout
        self._ring = moduli(parameters.degree, parameters.data_primes)
        self._switch = (
            switching(parameters.degree, parameters.data_primes, parameters.special_primes)
            if parameters.special_bits
            else None
        )
        self._places: list[Places] = [places_of(self._ring, element) for element in layout.galois_elements]
        self._used = layout.coefficient_places()

    @property
    def ring(self) -> Moduli:
        """The data primes, by which blocks are encoded."""
        return self._ring

    @property
    def block_shape(self) -> tuple[int, int, int, int]:
        """Shape of an encoded block: [primes, tiles, terms, TILE]."""
        n = self.layout.parameters.degree
        return (len(self._ring.primes), n // TILE, self.layout.groups * self.layout.rotations, TILE)

    def encode(self, polynomials: Integers) -> Words:
        """uint32[primes, tiles, terms, TILE]: a block of the index from `Layout.item_polynomials`, int64[terms, N]."""
        return encoded_polynomials(polynomials, self._ring)

    def read_query(self, data: bytes) -> Words:
        """uint32[ciphertexts, 2, primes, N] in the order of kernels; raises `CiphertextError`."""
        return read_query(self.layout.parameters, self._ring, data, self.layout.query_ciphertexts)

    def read_keys(self, data: bytes) -> Words:
        """uint32[elements, 2, all primes, N], prepared for kernels; raises `CiphertextError`."""
        keys = messages.read_keys(self.layout.parameters, data, self.layout.galois_elements)
        return keys if self._switch is None else prepared_keys(keys, self._switch)

    def score(
        self, index: Words | Blocks, queries: Sequence[Words], keys: Sequence[Words]
    ) -> Iterator[list[list[bytes]]]:
        """Results of the blocks of `index`, some blocks at a time: [query][block].

        index: uint32[blocks, *block_shape], or such blocks that lie elsewhere. queries, keys: what `read_query` and
        `read_keys` gave, one of each for a query (keys of no elements for a layout without rotations).
        """
        tiled = self._rotated(queries, keys)
        step = max(4, min(BLOCKS_AT_A_TIME, _SUMS_AT_A_TIME // len(queries)))
        for sums in placed(index, self._ring.q).sums(tiled, step):
            yield self._packed(self._folded(sums, keys))

    def _rotated(self, queries: Sequence[Words], keys: Sequence[Words]) -> Words:
        """uint32[primes, tiles, queries, rotations, 2, TILE]."""
        stacked = np.stack(queries)
        if stacked.shape[1] > 1 or self.layout.rotations == 1 or self._switch is None:
            return tiled_queries(stacked.swapaxes(0, 1))
        first = np.stack([key[0] for key in keys])
        return baby_steps(stacked[:, 0], self._places[0], first, self.layout.rotations, self._switch)

    def _folded(self, sums: Words, keys: Sequence[Words]) -> Words:
        """uint32[blocks, queries, 2, primes, N] from the sums of groups."""
        if sums.shape[1] == 1 or self._switch is None:
            return sums[:, 0]
        return giant_steps(sums, self._places[1], np.stack([key[1] for key in keys]), self._switch)

    def _packed(self, totals: Words) -> list[list[bytes]]:
        blocks, queries, _, primes, n = totals.shape
        first_bits, second_bits = self.layout.parameters.response_bits
        halves = np.ascontiguousarray(totals.transpose(2, 0, 1, 3, 4)).reshape(2, -1, primes, n)
        firsts = truncated(halves[0], self._ring, first_bits)
        if self._used is not None:
            firsts = np.ascontiguousarray(firsts[:, self._used])
        first = packed(firsts, first_bits)
        second = packed(truncated(halves[1], self._ring, second_bits), second_bits)
        return [
            [
                second[block * queries + query].tobytes() + first[block * queries + query].tobytes()
                for block in range(blocks)
            ]
            for query in range(queries)
        ]
