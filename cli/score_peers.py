"""Whom encrypted scoring is measured against: the same items and queries, the same clock, the same names of figures."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Peers state none.
_NO_BOUND = 0.0


class Peer(Protocol):
    """Somebody else's way to the scores."""

    @property
    def name(self) -> str:
        """Its key in the figures."""

    def ask(self, vector: NDArray[Any], truth: NDArray[Any]) -> None:
        """One query, float64[dim]; `truth` is what it should find, float64[items]."""

    def figures(self, items: int, dim: int) -> dict[str, Any]:
        """Of all queries so far, under the names that ours have."""


def peers_of(rows: NDArray[Any]) -> list[Peer]:
    """All peers for items float64[items, dim]."""
    return [TensealPeer(rows), PlaintextPeer(rows)]


class _Clocked:
    """Milliseconds and errors of a peer's queries."""

    def __init__(self) -> None:
        from cli.score_figures import Accuracy

        self.server_ms: list[float] = []
        self.server_cpu_ms: list[float] = []
        self.client_ms: list[float] = []
        self.accuracy = Accuracy()

    def figures(self, params: str, items: int, dim: int, sizes: dict[str, Any]) -> dict[str, Any]:
        from cli.score_figures import timings

        return {
            "params": params,
            "items": items,
            "dim": dim,
            "queries": len(self.server_ms),
            **timings(self.server_ms, self.server_cpu_ms, self.client_ms),
            **sizes,
            **self.accuracy.figures(),
        }


class TensealPeer:
    """TenSEAL's `CKKSVector.matmul`, one thread; it encodes items in every call, so it has no index."""

    name = "tenseal_matmul"

    def __init__(self, rows: NDArray[Any]) -> None:
        from baseline.tenseal_matmul import TensealMatmul

        self._matmul = TensealMatmul(rows)
        self._clock = _Clocked()
        self._query_bytes = self._response_bytes = 0

    def ask(self, vector: NDArray[Any], truth: NDArray[Any]) -> None:
        """One query, serialisation left out, which is in TenSEAL's favour."""
        started = time.perf_counter()
        query = self._matmul.encrypt(vector)
        sent, cpu = time.perf_counter(), time.process_time()
        scores = self._matmul.score(query)
        answered, cpu = time.perf_counter(), time.process_time() - cpu
        found = self._matmul.decrypt(scores)
        ended = time.perf_counter()
        self._clock.server_ms.append(1000 * (answered - sent))
        self._clock.server_cpu_ms.append(1000 * cpu)
        self._clock.client_ms.append(1000 * (sent - started + ended - answered))
        self._clock.accuracy.add(found, truth, _NO_BOUND)
        self._query_bytes, self._response_bytes = self._matmul.size_bytes(query), self._matmul.size_bytes(*scores)

    def figures(self, items: int, dim: int) -> dict[str, Any]:
        """See `Peer`."""
        sizes = {
            "query_bytes": self._query_bytes,
            "response_bytes": self._response_bytes,
            "key_bytes": self._matmul.key_bytes(),
            "index_bytes": 0,
            "index_build_s": 0.0,
        }
        return self._clock.figures("N 8192, 60+40+60 bits, scale 2^40", items, dim, sizes)


class PlaintextPeer:
    """The same scores without any encryption, 32-bit floats by numpy: what privacy costs."""

    name = "plaintext"

    def __init__(self, rows: NDArray[Any]) -> None:
        import numpy as np

        self._rows = rows.astype(np.float32)
        self._clock = _Clocked()

    def ask(self, vector: NDArray[Any], truth: NDArray[Any]) -> None:
        """One query."""
        started, cpu = time.perf_counter(), time.process_time()
        found = self._rows @ vector.astype(self._rows.dtype)
        self._clock.server_ms.append(1000 * (time.perf_counter() - started))
        self._clock.server_cpu_ms.append(1000 * (time.process_time() - cpu))
        self._clock.client_ms.append(0.0)
        self._clock.accuracy.add(found, truth, _NO_BOUND)

    def figures(self, items: int, dim: int) -> dict[str, Any]:
        """See `Peer`."""
        sizes = {
            "query_bytes": 4 * dim,
            "response_bytes": 4 * items,
            "key_bytes": 0,
            "index_bytes": self._rows.nbytes,
            "index_build_s": 0.0,
        }
        return self._clock.figures("none", items, dim, sizes)
