"""One client and the server's arithmetic in one process, with a clock: what `veil bench score` and `veil tune` measure.

Guarantee: queries are really encrypted, scored and decrypted, by the same code as client and server run; only the
network and the processes are left out. Server time is from the bytes of a query to the bytes of its results, client
time from a vector or a history to the bytes of a query and from the bytes of results to scores.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from he_inference.engine.blocks import Blocks, HostBlocks, Place
from he_inference.index.encode import encoded
from he_inference.layouts.seam import Floats, Layout
from he_inference.ring.moduli import Words
from he_inference.scheme import SecretKey
from he_inference.tuning.stages import Evaluator
from he_inference.tuning.subjects import Decrypted, Question, Subject

Progress = Callable[[int, int], None]


class Client:
    """A client with a fresh key, and its evaluation keys as the server keeps them."""

    def __init__(self, compute: Evaluator) -> None:
        self._layout = compute.layout
        self.secret = SecretKey(self._layout.parameters)
        elements = self._layout.galois_elements
        started = time.perf_counter()
        self.key_data = self.secret.evaluation_keys(elements) if elements else b""
        self.key_s = time.perf_counter() - started
        self.keys = compute.read_keys(self.key_data) if elements else np.empty((0,), np.uint32)

    def encrypt(self, entries: Floats) -> bytes:
        """The query of what its layout takes: float64[dimensions], or of a history's weights float64[items]."""
        return self.secret.encrypt(self._layout.query_polynomials(entries))

    def decrypt(self, results: Sequence[bytes]) -> Floats:
        """What `Layout.scores` gives: float64[items], or a history's outputs."""
        return self._layout.scores(*self.secret.decrypt(results, self._layout.coefficient_places()))


@dataclass(frozen=True, eq=False)
class Scene:
    """A server with its index, and a client. index: the blocks that are scored, the last part's."""

    subject: Subject
    compute: Evaluator
    index: Words | Blocks = field(repr=False)
    client: Client = field(repr=False)

    @classmethod
    def of(cls, subject: Subject, parts: Sequence[Words], place: Place = HostBlocks) -> Scene:
        """With the blocks of each of `Subject.parts`, moved to `place`."""
        compute = subject.compute(parts, place)
        return cls(subject, compute, place(parts[-1], compute.ring.q), Client(compute))


@dataclass(frozen=True)
class Answer:
    """One query from its question to scores. server_cpu_ms: of all threads, whatever else the machine did meanwhile."""

    decrypted: Decrypted = field(repr=False)
    server_ms: float
    server_cpu_ms: float
    client_ms: float
    query_bytes: int
    response_bytes: int


def ask(scene: Scene, question: Question) -> Answer:
    """Encrypts, scores and decrypts one query."""
    client, compute, subject = scene.client, scene.compute, scene.subject
    started = time.perf_counter()
    query = client.encrypt(subject.entries(question))
    sent, cpu = time.perf_counter(), time.process_time()
    results = compute.answer(scene.index, [query], [client.keys])[0]
    answered, cpu = time.perf_counter(), time.process_time() - cpu
    decrypted = subject.decrypted(question, client.decrypt(results))
    ended = time.perf_counter()
    return Answer(
        decrypted,
        server_ms=1000 * (answered - sent),
        server_cpu_ms=1000 * cpu,
        client_ms=1000 * (sent - started + ended - answered),
        query_bytes=len(query),
        response_bytes=sum(map(len, results)),
    )


def in_memory(subject: Subject) -> Scene:
    """A scene whose index is no file."""
    return Scene.of(subject, [blocks_of(layout, rows) for layout, rows in subject.parts])


def blocks_of(layout: Layout, rows: Floats, progress: Progress | None = None) -> Words:
    """uint32[blocks, primes, tiles, terms, TILE] of float64[items, dimensions], in memory."""
    blocks = []
    for block in range(layout.blocks):
        part = rows[block * layout.block_items : (block + 1) * layout.block_items]
        blocks.append(encoded(layout, part, block))
        if progress is not None:
            progress(block + 1, layout.blocks)
    return np.stack(blocks)
