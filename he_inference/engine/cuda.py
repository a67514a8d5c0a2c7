"""The engine of one GPU: products with items are summed up there, everything else runs on this machine's processors.

    this process   reads and rotates queries   ->  the device: sums of products with all items, which lie there
    this process   rotates sums, packs results <-

Guarantee: the same bytes as `he_inference.engine.local` and `he_inference.engine.history`. It exists only where the
device does and has been seen to sum up exactly (`he_inference.engine.gpu`); nothing is computed elsewhere instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from he_inference.engine.blocks import Place
from he_inference.engine.gpu import place_on
from he_inference.engine.history import HistoryEngine
from he_inference.engine.local import LocalEngine
from he_inference.index.store import Index
from he_inference.layouts.seam import Layout
from he_inference.ring.moduli import Words
from veil.errors import StateError


class CudaEngine:
    """An `Engine[Words, Words]`; the index files stay the caller's and are not read again."""

    def __init__(self, parts: Sequence[Index], place: Place) -> None:
        """parts: the index, or the two of a history; place: of `place_on`. Raises `ConfigError` without memory."""
        self._engine: LocalEngine | HistoryEngine | None = (
            HistoryEngine(parts[0], parts[1], place) if len(parts) == 2 else LocalEngine(parts[0], place)
        )
        self._layout: Layout = self._engine.layout

    @property
    def layout(self) -> Layout:
        """The layout of the index."""
        return self._layout

    def read_query(self, data: bytes) -> Words:
        """uint32[ciphertexts, 2, primes, N] in the order of kernels; raises `CiphertextError`."""
        return self._open().read_query(data)

    def read_keys(self, data: bytes) -> Words:
        """uint32[elements, 2, all primes, N], prepared for kernels; raises `CiphertextError`."""
        return self._open().read_keys(data)

    def score(self, queries: Sequence[Words], keys: Sequence[Words | None]) -> Iterator[list[list[bytes]]]:
        """Results of all blocks, some blocks at a time: [query][block]. Raises `StateError` when memory is short."""
        try:
            yield from self._open().score(queries, keys)
        except torch.OutOfMemoryError:
            raise StateError(
                f"got a batch of {len(queries)} queries that the device has no memory for",
                hint="set load.batch lower, or leave the device to this server alone",
            ) from None

    def close(self) -> None:
        """Gives up the index on the device; may be called again."""
        self._engine = None

    def _open(self) -> LocalEngine | HistoryEngine:
        if self._engine is None:
            raise StateError("got a request for an engine that is closed, expected an open one")
        return self._engine


def engines(indexes: Sequence[Sequence[Index]], number: int) -> list[CudaEngine]:
    """An engine for each index (or two parts of a history) on CUDA device `number`. Raises `ConfigError`."""
    place = place_on(number)
    return [CudaEngine(parts, place) for parts in indexes]
