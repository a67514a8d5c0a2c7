"""The engine of one process: the index is mapped here (or moved once to `place`), and all numba threads work on it.

Guarantee: as `he_inference.engine.compute`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from he_inference.engine.blocks import HostBlocks, Place
from he_inference.engine.compute import Compute
from he_inference.index.store import Index
from he_inference.layouts.seam import Layout
from he_inference.ring.moduli import Words

_NO_KEYS: Words = np.empty(0, np.uint32)


class LocalEngine:
    """An `Engine[Words, Words]`; the index stays the caller's."""

    def __init__(self, index: Index, place: Place = HostBlocks) -> None:
        """place: where products with items are summed up."""
        self._compute = Compute(index.layout)
        self._blocks = place(index.blocks, self._compute.ring.q)
        self.read_query = self._compute.read_query
        self.read_keys = self._compute.read_keys

    @property
    def layout(self) -> Layout:
        """The layout of the index."""
        return self._compute.layout

    def score(self, queries: Sequence[Words], keys: Sequence[Words | None]) -> Iterator[list[list[bytes]]]:
        """Results of all blocks, some blocks at a time: [query][block]."""
        return self._compute.score(self._blocks, queries, [_NO_KEYS if one is None else one for one in keys])

    def close(self) -> None:
        """Nothing is held."""
