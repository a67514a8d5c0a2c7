"""One client and the server's arithmetic in one process, with a clock: what `veil bench score` and `veil tune` measure.

Guarantee: queries are really encrypted, scored and decrypted, by the same code as client and server run; only the
network and the processes are left out. Server time is from the bytes of a query to the bytes of its results, client
time from a vector to the bytes of a query and from the bytes of results to scores.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from he_inference.engine.compute import Compute
from he_inference.layouts.seam import Floats, Layout
from he_inference.ring.moduli import Words
from he_inference.scheme import SecretKey

STAGES = ("reading", "baby", "accumulation", "giant", "packing")
Progress = Callable[[int, int], None]


class StagedCompute(Compute):
    """`Compute` that adds up the seconds of its stages in `seconds`. For one thread at a time.

    reading: bytes to residues; baby: rotations of queries; accumulation: all that is left, which is the products with
    items; giant: rotations of sums; packing: sums to bytes.
    """

    def __init__(self, layout: Layout) -> None:
        super().__init__(layout)
        self.forget()

    def answer(self, index: Words, queries: Sequence[bytes], keys: Sequence[Words]) -> list[list[bytes]]:
        """Results [query][block] of queries as they come from clients."""
        started = time.perf_counter()
        read = [self.read_query(query) for query in queries]
        scored = time.perf_counter()
        self.seconds["reading"] += scored - started
        elsewhere = self._elsewhere()
        results: list[list[bytes]] = [[] for _ in queries]
        for part in self.score(index, read, keys):
            for result, more in zip(results, part, strict=True):
                result.extend(more)
        elsewhere = self._elsewhere() - elsewhere
        self.seconds["accumulation"] += time.perf_counter() - scored - elsewhere
        return results

    def forget(self) -> None:
        """Sets all stages back to zero."""
        self.seconds = dict.fromkeys(STAGES, 0.0)

    def shares(self) -> dict[str, float]:
        """Each stage's part of the whole time so far, which sum to 1."""
        whole = sum(self.seconds.values())
        return {stage: seconds / whole if whole else 0.0 for stage, seconds in self.seconds.items()}

    def _elsewhere(self) -> float:
        return sum(self.seconds[stage] for stage in ("baby", "giant", "packing"))

    def _rotated(self, queries: Sequence[Words], keys: Sequence[Words]) -> Words:
        started = time.perf_counter()
        result = super()._rotated(queries, keys)
        self.seconds["baby"] += time.perf_counter() - started
        return result

    def _folded(self, sums: Words, keys: Sequence[Words]) -> Words:
        started = time.perf_counter()
        result = super()._folded(sums, keys)
        self.seconds["giant"] += time.perf_counter() - started
        return result

    def _packed(self, totals: Words) -> list[list[bytes]]:
        started = time.perf_counter()
        result = super()._packed(totals)
        self.seconds["packing"] += time.perf_counter() - started
        return result


class Client:
    """A client with a fresh key, and its evaluation keys as the server keeps them."""

    def __init__(self, compute: Compute) -> None:
        self._layout = compute.layout
        self._secret = SecretKey(self._layout.parameters)
        elements = self._layout.galois_elements
        started = time.perf_counter()
        self.key_data = self._secret.evaluation_keys(elements) if elements else b""
        self.key_s = time.perf_counter() - started
        self.keys = compute.read_keys(self.key_data) if elements else np.empty((0,), np.uint32)

    def encrypt(self, vector: Floats) -> bytes:
        """The query of float64[dimensions]."""
        return self._secret.encrypt(self._layout.query_polynomials(vector))

    def decrypt(self, results: Sequence[bytes]) -> Floats:
        """float64[items]."""
        return self._layout.scores(*self._secret.decrypt(results, self._layout.coefficient_places()))


@dataclass(frozen=True)
class Answer:
    """One query from vector to scores. server_cpu_ms: of all threads, whatever else the machine did meanwhile."""

    scores: Floats = field(repr=False)
    server_ms: float
    server_cpu_ms: float
    client_ms: float
    query_bytes: int
    response_bytes: int


def ask(client: Client, compute: StagedCompute, index: Words, vector: Floats) -> Answer:
    """Encrypts, scores and decrypts one query."""
    started = time.perf_counter()
    query = client.encrypt(vector)
    sent, cpu = time.perf_counter(), time.process_time()
    results = compute.answer(index, [query], [client.keys])[0]
    answered, cpu = time.perf_counter(), time.process_time() - cpu
    scores = client.decrypt(results)
    ended = time.perf_counter()
    return Answer(
        scores,
        server_ms=1000 * (answered - sent),
        server_cpu_ms=1000 * cpu,
        client_ms=1000 * (sent - started + ended - answered),
        query_bytes=len(query),
        response_bytes=sum(map(len, results)),
    )


def encoded(compute: Compute, rows: Floats, progress: Progress | None = None) -> Words:
    """uint32[blocks, *block_shape] of float64[items, dimensions], in memory."""
    layout = compute.layout
    index = np.empty((layout.blocks, *compute.block_shape), np.uint32)
    for block in range(layout.blocks):
        part = rows[block * layout.block_items : (block + 1) * layout.block_items]
        index[block] = compute.encode(layout.item_polynomials(part, block))
        if progress is not None:
            progress(block + 1, layout.blocks)
    return index


def unit_rows(generator: np.random.Generator, count: int, dimensions: int) -> NDArray[np.float64]:
    """float64[count, dimensions]: directions drawn uniformly."""
    rows = generator.standard_normal((count, dimensions))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows
