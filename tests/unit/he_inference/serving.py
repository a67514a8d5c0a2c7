"""Index files, clients' keys and checks for tests of the scoring server's inside."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from he_inference.index.build import build, item_ids_digest
from he_inference.layouts.seam import Layout
from he_inference.scheme import SecretKey
from he_inference.service.pool import WorkerPool
from he_inference.service.process import IndexFile
from he_inference.service.tickets import Scores
from veil.errors import VeilError


def unit_rows(items: int, dimensions: int, seed: int = 0) -> NDArray[np.float64]:
    rows = np.random.default_rng(seed).normal(size=(items, dimensions))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def make_index(path: Path, layout: Layout, rows: NDArray[np.float64], model_digest: bytes = b"m" * 32) -> IndexFile:
    build(
        path,
        layout,
        rows,
        item_norm=1.0,
        model_digest=model_digest,
        item_ids_digest=item_ids_digest([str(number) for number in range(layout.items)]),
    )
    return IndexFile.open(path)


@dataclass
class Asker:
    """A client of a pool: its own key, and queries whose answers it checks."""

    pool: WorkerPool
    index: IndexFile
    rows: NDArray[np.float64]
    secret: SecretKey = field(init=False)
    keys: bytes = field(init=False)
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.secret = SecretKey(self.index.layout.parameters)
        elements = self.index.layout.galois_elements
        self.name = secrets.token_hex(8)
        self.keys = self.secret.evaluation_keys(elements) if elements else b""

    def query(self, number: int) -> bytes:
        """An encryption of the row of that number."""
        return self.secret.encrypt(self.index.layout.query_polynomials(self.rows[number]))

    def check(self, number: int, scores: Scores) -> Scores:
        layout = self.index.layout
        found = layout.scores(*self.secret.decrypt(scores.results, layout.coefficient_places()))
        assert np.abs(found - self.rows @ self.rows[number]).max() < layout.parameters.score_error
        return scores

    def ask(self, number: int = 3, name: str | None = None) -> Scores:
        """One query, answered rightly."""
        held_as = name or self.name
        return self.check(number, self.pool.score(self.index, held_as, self.query(number), lambda: self.keys))

    def ask_together(self, numbers: list[int]) -> list[Scores | Exception]:
        """Queries of as many threads; each is answered rightly or has its error."""
        found: list[Scores | Exception] = [RuntimeError("no answer")] * len(numbers)

        def one(place: int) -> None:
            try:
                found[place] = self.ask(numbers[place])
            except VeilError as error:
                found[place] = error

        threads = [threading.Thread(target=one, args=(place,)) for place in range(len(numbers))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        return found


def until(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    limit = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)
