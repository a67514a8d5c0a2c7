"""One case of `veil bench score`: encrypted scoring, its peers and its limits, on one machine in one run.

Guarantee: items and queries are random unit vectors that follow from the seed; every figure is measured by running the
real code; ours and the peers' queries take turns, so that both meet the same machine. Every query's scores are compared
with plaintext: the largest error, and whether the ten best are plaintext's but among scores closer than that error.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from cli.machine import machine
from veil.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from he_inference.layouts.seam import Layout
    from he_inference.tuning.trial import Client, StagedCompute

# what is going on, how far, of how much
Progress = Callable[[str, int, int], None]
# A smaller index may lie in a cache, which says nothing about memory.
_BANDWIDTH_FROM_BYTES = 200 << 20
_CACHED_BYTES = 8 << 20
_ROUNDS = 5


@dataclass(frozen=True)
class Case:
    """What to measure. layout, packing: as in `he_inference.layouts.catalogue`, None for what suits the parameter set.

    clients: how many ask at the same time, for throughput; 1 for none of it. peer_queries: queries of each peer, 0 for
    no peers. threads: of the server's arithmetic, None for all.
    """

    items: int
    dim: int
    params: str
    layout: str | None = None
    packing: int | None = None
    clients: int = 1
    queries: int = 1000
    peer_queries: int = 0
    threads: int | None = None
    seed: int = 0


def _quiet(what: str, done: int, total: int) -> None:
    """Tells nobody."""


def measure(case: Case, progress: Progress = _quiet) -> dict[str, Any]:
    """The figures of one case, as `veil bench score --json` writes them.

    Server times hold reading of the query's bytes, arithmetic and writing of the results' bytes; client times encoding,
    encryption, decryption and decoding. Milliseconds, bytes and seconds as the names say. `throughput` only for several
    clients, `memory` only for an index beyond any cache. Raises `ConfigError` for a case that no layout fits.
    """
    import numpy as np

    from cli.score_throughput import throughput
    from he_inference.index.store import Index
    from he_inference.layouts.catalogue import packing_of
    from he_inference.tuning.trial import Client, StagedCompute, unit_rows

    layout = layout_for(case)
    with ExitStack() as stack:
        threads = stack.enter_context(_threads(case.threads))
        folder = stack.enter_context(TemporaryDirectory(prefix="veil-bench-"))
        compute = StagedCompute(layout)
        rows = unit_rows(np.random.default_rng([case.seed, 0]), case.items, case.dim)
        path = Path(folder) / "items.index"
        index_build_s = _build(path, layout, rows, progress)
        index = stack.enter_context(Index.open(path))
        client = Client(compute)
        figures, peers = _asked(case, compute, client, index.blocks, rows, progress)
        result: dict[str, Any] = {
            "params": case.params,
            "items": case.items,
            "dim": case.dim,
            "layout": layout.kind,
            "packing": packing_of(layout),
            "queries": case.queries,
            "threads": threads,
            **figures,
            "key_bytes": len(client.key_data),
            "index_bytes": index.size_bytes,
            "index_build_s": index_build_s,
            "max_abs_error_stated": layout.parameters.score_error,
            "security": layout.parameters.security,
            "stages": compute.shares(),
        }
        if index.size_bytes >= _BANDWIDTH_FROM_BYTES:
            result["memory"] = _memory(compute, client, index.blocks, rows[0], progress)
        if case.clients > 1:
            result["throughput"] = throughput(
                compute, index.blocks, path, rows, clients=case.clients, seed=case.seed, progress=progress
            )
            result["queries_per_s"] = result["throughput"]["service"]["together_per_s"]
    result["machine"] = machine()
    # Of the last minute: more than `threads` means that others worked, too.
    result["load_average"] = os.getloadavg()[0]
    result["peers"] = peers
    return result


def layout_for(case: Case) -> Layout:
    """The layout that a case means."""
    from he_inference.layouts.catalogue import best_packing, layout_of, usual_kind
    from he_inference.parameters import named

    parameters = named(case.params)
    kind = case.layout or usual_kind(parameters)
    packing = case.packing
    if packing is None:
        packing = best_packing(kind, parameters, case.items, case.dim)
    return layout_of(kind, parameters, case.items, case.dim, packing)


@contextmanager
def _threads(wanted: int | None) -> Iterator[int]:
    from he_inference.ring.jit import threads, use_threads

    before = threads()
    try:
        if wanted is not None and use_threads(wanted) != wanted:
            raise ConfigError(
                f"got {wanted} threads, expected 1 to {threads()}",
                hint="NUMBA_NUM_THREADS sets the most, else all cores",
            )
        yield threads()
    finally:
        use_threads(before)


def _build(path: Path, layout: Layout, rows: NDArray[Any], progress: Progress) -> float:
    """Seconds to make the index file, the rows beside it and checksums included."""
    import numpy as np

    from he_inference.index.build import build
    from he_inference.layouts.catalogue import layout_of, packing_of

    def make(path: Path, layout: Layout, rows: NDArray[Any], tell: Callable[[int, int], None] | None) -> None:
        # The longest of many unit vectors is longer than 1 by a rounding error.
        scaled = rows / max(1.0, float(np.linalg.norm(rows, axis=1).max()))
        digest = bytes(32)
        build(path, layout, scaled, item_norm=1.0, model_digest=digest, item_ids_digest=digest, progress=tell)

    small = layout_of(layout.kind, layout.parameters, 1, layout.dimensions, packing_of(layout))
    make(path.with_name("small.index"), small, rows[:1], None)  # compiled before the clock runs
    started = time.perf_counter()
    make(path, layout, rows, lambda done, total: progress("index", done, total))
    return time.perf_counter() - started


def _asked(
    case: Case,
    compute: StagedCompute,
    client: Client,
    index: NDArray[Any],
    rows: NDArray[Any],
    progress: Progress,
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Figures of the queries, and of the peers that were asked in between."""
    import numpy as np

    from cli.score_figures import Accuracy, timings
    from cli.score_peers import peers_of
    from he_inference.tuning.trial import ask, unit_rows

    vectors = unit_rows(np.random.default_rng([case.seed, 1]), case.queries, case.dim)
    peers = peers_of(rows) if case.peer_queries else []
    ask(client, compute, index, vectors[0])  # compiled and warm
    compute.forget()
    server_cpu_ms: list[float] = []
    server_ms, client_ms, accuracy = [], [], Accuracy(compute.layout.parameters.score_error)
    answer = None
    for number, vector in enumerate(vectors):
        answer = ask(client, compute, index, vector)
        server_ms.append(answer.server_ms)
        server_cpu_ms.append(answer.server_cpu_ms)
        client_ms.append(answer.client_ms)
        accuracy.add(answer.scores, rows @ vector, _quantised(compute.layout, rows, vector))
        if number < case.peer_queries:
            for peer in peers:
                peer.ask(vector, rows @ vector)
        progress("queries", number + 1, case.queries)
    figures = {
        **timings(server_ms, server_cpu_ms, client_ms),
        "query_bytes": 0 if answer is None else answer.query_bytes,
        "response_bytes": 0 if answer is None else answer.response_bytes,
        **accuracy.figures(),
    }
    return figures, {peer.name: peer.figures(case.items, case.dim) for peer in peers}


def _quantised(layout: Layout, rows: NDArray[Any], vector: NDArray[Any]) -> NDArray[Any] | None:
    """float64[items]: what an exact scheme must give to the last bit; None for an approximate one."""
    if layout.parameters.scheme != "bfv":
        return None
    from he_inference.encoding.slots import slot_codec

    codec = slot_codec(layout.parameters)
    result: NDArray[Any] = codec.quantised(rows) @ codec.quantised(vector)
    return result


def _memory(
    compute: StagedCompute, client: Client, index: NDArray[Any], vector: NDArray[Any], progress: Progress
) -> dict[str, float]:
    """Bytes a second of the products with items for one query, and of plain reading of as many, best of some turns.

    kernel_in_cache: the same on a few blocks that lie in a cache, which no memory slows: the limit of its arithmetic.
    """
    from he_inference.engine.bandwidth import read_seconds

    # Of memory of our own: a mapped file may be read more slowly, which is the kernel's own problem.
    own = index.copy()
    few = own[: max(1, _CACHED_BYTES * len(own) // own.nbytes)].copy()
    query = client.encrypt(vector)

    def products_s(blocks: NDArray[Any]) -> float:
        compute.forget()
        compute.answer(blocks, [query], [client.keys])
        return compute.seconds["accumulation"]

    kernel_s, read_s, cache_s = [], [], []
    for turn in range(_ROUNDS):
        kernel_s.append(products_s(index))
        read_s.append(read_seconds(own))
        cache_s += [products_s(few) for _ in range(_ROUNDS)]
        progress("memory", turn + 1, _ROUNDS)
    kernel, read = (index.nbytes / min(seconds) / 1e9 for seconds in (kernel_s, read_s))
    return {
        "kernel_gb_per_s": kernel,
        "kernel_in_cache_gb_per_s": few.nbytes / min(cache_s) / 1e9,
        "read_gb_per_s": read,
        "share": kernel / read,
    }
