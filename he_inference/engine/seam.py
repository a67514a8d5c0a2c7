"""What the compute process asks of an engine: scores of one whole index, wherever its blocks are computed.

Guarantee: an engine answers with the results of all blocks of its index, in order, or raises; never with some of them,
and never with those of another index. Answers are the same bytes for every engine. `LocalEngine` computes in this
process, `he_inference.engine.cuda.CudaEngine` with a GPU, `he_inference.engine.ray_shards.RayShards` on several
machines.

What a query or keys are between being read and being used is the engine's own matter: arrays here, bytes there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

from he_inference.layouts.seam import Layout

BLOCKS_AT_A_TIME = 32
"""Blocks that an engine sums up before their results are rotated, packed and handed on: bounds its working memory."""

QueryT = TypeVar("QueryT")
KeysT = TypeVar("KeysT")


class Engine(Protocol[QueryT, KeysT]):
    """One thread uses it at a time."""

    @property
    def layout(self) -> Layout:
        """The layout of the index."""

    def read_query(self, data: bytes) -> QueryT:
        """A query, checked. Threads may share this call. Raises `CiphertextError`."""

    def read_keys(self, data: bytes) -> KeysT:
        """Evaluation keys, checked. Raises `CiphertextError`."""

    def score(self, queries: Sequence[QueryT], keys: Sequence[KeysT | None]) -> Iterator[list[list[bytes]]]:
        """Results of all blocks, some blocks at a time: [query][block].

        queries, keys: what `read_query` and `read_keys` gave, one of each for a query; None for a layout without keys.
        Raises `VeilError`, after which what came before must not be used.
        """

    def close(self) -> None:
        """Gives up what it holds; may be called again."""
