"""`veil bench score`: encrypted scoring beside TenSEAL's own matmul, in one run on one machine."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.machine import machine

if TYPE_CHECKING:
    from numpy.typing import NDArray


def measure(
    items: int, dim: int, params: str, *, queries: int = 20, peer_queries: int = 3, seed: int = 0
) -> dict[str, Any]:
    """One case: `items` random unit vectors of `dim` dimensions, `queries` random unit queries, one thread.

    Server times hold loading of the query, arithmetic and saving of the response; client times hold packing,
    encryption, loading and decryption. Milliseconds, bytes and seconds as the names say. `peers.tenseal_matmul` has
    the same keys, measured between the same queries; none of it when `peer_queries` is 0.
    """
    import numpy as np

    from he_inference.packing import SessionLayout
    from he_inference.parameters import named
    from he_inference.scheme import CkksEvaluator, CkksSession
    from he_inference.scoring import encode_items, score

    generator = np.random.default_rng(seed)
    rows, vectors = (_unit_rows(generator.normal(size=(count, dim))) for count in (items, queries))
    truth = vectors @ rows.T
    layout = SessionLayout(named(params), items, dim)
    evaluator, session = CkksEvaluator(layout.parameters), CkksSession(layout.parameters)
    started = time.perf_counter()
    encoded = encode_items(evaluator, layout, rows)
    index_build_s = time.perf_counter() - started
    keys_data = session.evaluation_keys(layout.galois_elements)
    keys = evaluator.load_keys(keys_data, layout.galois_elements)

    peer = _Peer(rows) if peer_queries else None
    server_ms, client_ms, found = [], [], []
    query, response = b"", [b""]
    for number, vector in enumerate(vectors):
        start = time.perf_counter()
        query = session.encrypt(layout.pack_query(vector))
        sent = time.perf_counter()
        response = [evaluator.save(c) for c in score(evaluator, encoded, evaluator.load_query(query), keys)]
        answered = time.perf_counter()
        found.append(layout.unpack([session.decrypt(data) for data in response]))
        end = time.perf_counter()
        server_ms.append(1000 * (answered - sent))
        client_ms.append(1000 * (sent - start + end - answered))
        if peer is not None and number < peer_queries:
            peer.query(vector)
    result: dict[str, Any] = {
        "params": params,
        "items": items,
        "dim": dim,
        "queries": queries,
        **_timings(server_ms, client_ms),
        "query_bytes": len(query),
        "response_bytes": sum(map(len, response)),
        "key_bytes": len(keys_data),
        "index_bytes": 8 * layout.parameters.poly_modulus_degree * encoded.plaintexts,
        "index_build_s": index_build_s,
        **_accuracy(np.stack(found), truth),
        "max_abs_error_stated": layout.parameters.score_error,
        "machine": machine(),
        "peers": {},
    }
    if peer is not None:
        result["peers"]["tenseal_matmul"] = peer.result(truth[:peer_queries])
        result["speedup"] = result["peers"]["tenseal_matmul"]["server_ms_p50"] / result["server_ms_p50"]
    return result


class _Peer:
    """TenSEAL's CKKSVector.matmul, with the same clock."""

    def __init__(self, rows: NDArray[Any]) -> None:
        from he_inference.scheme import TensealMatmul

        self._matmul = TensealMatmul(rows)
        self._server_ms: list[float] = []
        self._client_ms: list[float] = []
        self._found: list[NDArray[Any]] = []
        self._query: Any = None
        self._scores: list[Any] = []

    def query(self, vector: NDArray[Any]) -> None:
        """One query."""
        start = time.perf_counter()
        self._query = self._matmul.encrypt(vector)
        sent = time.perf_counter()
        self._scores = self._matmul.score(self._query)
        answered = time.perf_counter()
        self._found.append(self._matmul.decrypt(self._scores))
        end = time.perf_counter()
        self._server_ms.append(1000 * (answered - sent))
        self._client_ms.append(1000 * (sent - start + end - answered))

    def result(self, truth: NDArray[Any]) -> dict[str, Any]:
        """The same keys as ours."""
        import numpy as np

        return {
            "queries": len(self._found),
            **_timings(self._server_ms, self._client_ms),
            "query_bytes": self._matmul.size_bytes(self._query),
            "response_bytes": self._matmul.size_bytes(*self._scores),
            "key_bytes": self._matmul.key_bytes(),
            **_accuracy(np.stack(self._found), truth),
        }


def score(
    items: Annotated[int, typer.Option(min=1, help="Number of items.")] = 4096,
    dim: Annotated[int, typer.Option(min=1, help="Dimensions of a vector.")] = 128,
    params: Annotated[str, typer.Option(help="Parameter set.")] = "session-8192",
    queries: Annotated[int, typer.Option(min=1, help="Random queries to measure.")] = 20,
    peers: Annotated[bool, typer.Option(help="Measure TenSEAL's matmul too.")] = True,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers here.")] = None,
) -> None:
    """Time encrypted scoring beside TenSEAL's matmul.

    Example: veil bench score --items 4096 --dim 128 --params session-4096 --json out/score.json
    """
    from rich.console import Console
    from rich.table import Table

    from veil.files import write_atomic

    result = measure(items, dim, params, queries=queries, peer_queries=3 if peers else 0)
    theirs = result["peers"].get("tenseal_matmul", {})
    table = Table("", params, *(["TenSEAL matmul"] if theirs else []), box=None)
    for key in (
        "server_ms_p50",
        "client_ms_p50",
        "query_bytes",
        "response_bytes",
        "key_bytes",
        "max_abs_error",
        "top10_overlap",
    ):
        table.add_row(key, _shown(result[key]), *([_shown(theirs[key])] if theirs else []))
    console = Console()
    console.print(f"{items:,} items x {dim}, {queries} queries, one thread; {result['machine']['processor']}")
    console.print(table)
    if theirs:
        console.print(f"{result['speedup']:.1f} times as fast as TenSEAL's matmul")
    if json_file is not None:
        write_atomic(json_file, (json.dumps(result, indent=2, sort_keys=True) + "\n").encode())


def _unit_rows(rows: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    unit: NDArray[Any] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


def _timings(server_ms: list[float], client_ms: list[float]) -> dict[str, float]:
    import numpy as np

    return {
        "server_ms_p50": float(np.percentile(server_ms, 50)),
        "server_ms_p99": float(np.percentile(server_ms, 99)),
        "client_ms_p50": float(np.percentile(client_ms, 50)),
        "queries_per_s": 1000.0 / float(np.mean(server_ms)),
    }


def _accuracy(found: NDArray[Any], truth: NDArray[Any]) -> dict[str, float]:
    import numpy as np

    k = min(10, truth.shape[1])
    overlaps = [
        len(set(np.argsort(-mine)[:k]) & set(np.argsort(-true)[:k])) / k
        for mine, true in zip(found, truth, strict=True)
    ]
    return {"max_abs_error": float(np.abs(found - truth).max()), "top10_overlap": float(np.mean(overlaps))}


def _shown(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3g}" if abs(value) < 1 else f"{value:,.2f}"
