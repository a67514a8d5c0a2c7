"""The evaluators with a clock: where the time of the server's arithmetic goes.

Guarantee: answers are those of `Compute` and `HistoryCompute`, byte for byte; only the clock is read in between. For
one thread at a time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from he_inference.engine.blocks import Blocks, HostBlocks, Place
from he_inference.engine.compute import Compute
from he_inference.engine.history import HistoryCompute
from he_inference.layouts.history import HistoryLayout
from he_inference.layouts.seam import Layout
from he_inference.ring.moduli import Moduli, Words

# reading: bytes to residues; baby: rotations of queries; accumulation: all that is left, which is the products with
# items; giant: rotations of sums; packing: sums to bytes.
STAGES = ("reading", "baby", "accumulation", "giant", "packing")
# Of histories, before those: rotations of weights; products with fold-in rows; rotations of sums, all images of them,
# and the rescaling.
FOLD_STAGES = ("fold_baby", "fold_accumulation", "fold_trace")


class Stopwatch:
    """Seconds by stage, of each without the stages within it."""

    def __init__(self, stages: Sequence[str]) -> None:
        self._stages = tuple(stages)
        self._within: list[float] = []
        self.forget()

    def forget(self) -> None:
        """Sets all stages back to zero."""
        self.seconds = dict.fromkeys(self._stages, 0.0)

    def shares(self) -> dict[str, float]:
        """Each stage's part of the whole time so far, which sum to 1."""
        whole = sum(self.seconds.values())
        return {stage: seconds / whole if whole else 0.0 for stage, seconds in self.seconds.items()}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times the block, less what is timed within it."""
        started = time.perf_counter()
        self._within.append(0.0)
        try:
            yield
        finally:
            took = time.perf_counter() - started
            self.seconds[name] += took - self._within.pop()
            if self._within:
                self._within[-1] += took


class Evaluator(Protocol):
    """What trials ask: an evaluator with a clock."""

    @property
    def layout(self) -> Layout:
        """Its layout."""

    @property
    def ring(self) -> Moduli:
        """As `Compute.ring`."""

    @property
    def clock(self) -> Stopwatch:
        """Where its time has gone."""

    def read_query(self, data: bytes) -> Words:
        """As `Compute.read_query`."""

    def read_keys(self, data: bytes) -> Words:
        """As `Compute.read_keys`."""

    def score(
        self, index: Words | Blocks, queries: Sequence[Words], keys: Sequence[Words]
    ) -> Iterator[list[list[bytes]]]:
        """As `Compute.score`."""

    def answer(self, index: Words | Blocks, queries: Sequence[bytes], keys: Sequence[Words]) -> list[list[bytes]]:
        """Results [query][block] of queries as they come from clients."""


class StagedCompute(Compute):
    """`Compute` with a clock."""

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        self.clock = Stopwatch(STAGES)

    def answer(self, index: Words | Blocks, queries: Sequence[bytes], keys: Sequence[Words]) -> list[list[bytes]]:
        """See `Evaluator`."""
        return _answer(self, index, queries, keys)

    def _rotated(self, queries: Sequence[Words], keys: Sequence[Words]) -> Words:
        with self.clock.stage("baby"):
            return super()._rotated(queries, keys)

    def _folded(self, sums: Words, keys: Sequence[Words]) -> Words:
        with self.clock.stage("giant"):
            return super()._folded(sums, keys)

    def _packed(self, totals: Words) -> list[list[bytes]]:
        with self.clock.stage("packing"):
            return super()._packed(totals)


class StagedHistory(HistoryCompute):
    """`HistoryCompute` with a clock."""

    def __init__(self, layout: HistoryLayout, fold_in: Words, place: Place = HostBlocks) -> None:
        super().__init__(layout, fold_in, place)
        self.clock = Stopwatch((STAGES[0], *FOLD_STAGES, *STAGES[1:]))

    def answer(self, index: Words | Blocks, queries: Sequence[bytes], keys: Sequence[Words]) -> list[list[bytes]]:
        """See `Evaluator`."""
        return _answer(self, index, queries, keys)

    def user_vectors(self, queries: Sequence[Words], keys: Sequence[Words]) -> Words:
        """As `HistoryCompute.user_vectors`."""
        with self.clock.stage("fold_accumulation"):
            return super().user_vectors(queries, keys)

    def _rotated_histories(self, stacked: Words, first: Words) -> Words:
        with self.clock.stage("fold_baby"):
            return super()._rotated_histories(stacked, first)

    def _traced(self, sums: Words, by_element: Words) -> Words:
        with self.clock.stage("fold_trace"):
            return super()._traced(sums, by_element)

    def _rotated(self, vectors: Words, keys: Sequence[Words]) -> Words:
        with self.clock.stage("baby"):
            return super()._rotated(vectors, keys)

    def _turned(self, sums: Words, keys: Sequence[Words]) -> Words:
        with self.clock.stage("giant"):
            return super()._turned(sums, keys)

    def _packed(self, totals: Words) -> list[list[bytes]]:
        with self.clock.stage("packing"):
            return super()._packed(totals)


def _answer(
    compute: Evaluator, index: Words | Blocks, queries: Sequence[bytes], keys: Sequence[Words]
) -> list[list[bytes]]:
    with compute.clock.stage("reading"):
        read = [compute.read_query(query) for query in queries]
    results: list[list[bytes]] = [[] for _ in queries]
    with compute.clock.stage("accumulation"):
        for part in compute.score(index, read, keys):
            for result, more in zip(results, part, strict=True):
                result.extend(more)
    return results
