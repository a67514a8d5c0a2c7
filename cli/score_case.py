"""One case of `veil bench score`: encrypted scoring, its peers and its limits, on one machine in one run.

Guarantee: items and queries are random unit vectors that follow from the seed, or a random model with such items and
random histories (`he_inference.tuning.subjects`); every figure is measured by running the real code; ours and the
peers' queries take turns, so that both meet the same machine. Every query's scores are compared with plaintext: the
largest error, and whether the ten best are plaintext's but among scores closer than that error.
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

    from he_inference.engine.blocks import Place
    from he_inference.layouts.seam import Layout
    from he_inference.tuning.subjects import Subject
    from he_inference.tuning.trial import Scene

# what is going on, how far, of how much
Progress = Callable[[str, int, int], None]
# A smaller index may lie in a cache, which says nothing about memory.
_BANDWIDTH_FROM_BYTES = 200 << 20
_CACHED_BYTES = 8 << 20
_ROUNDS = 5


@dataclass(frozen=True)
class Case:
    """What to measure. layout, packing: as in `he_inference.layouts.catalogue`, None for what suits the parameter set.

    packing of a history: answers for each item. clients: how many ask at the same time, for throughput; 1 for none of
    it. peer_queries: queries of each peer, 0 for no peers. threads: of the server's arithmetic, None for all. engine:
    as in the server's configuration, "process" or "cuda" (the first device).
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
    engine: str = "process"


def _quiet(what: str, done: int, total: int) -> None:
    """Tells nobody."""


def measure(case: Case, progress: Progress = _quiet) -> dict[str, Any]:
    """The figures of one case, as `veil bench score --json` writes them.

    Server times hold reading of the query's bytes, arithmetic and writing of the results' bytes; client times encoding,
    encryption, decryption and decoding. Milliseconds, bytes and seconds as the names say. `throughput` only for several
    clients, `memory` only for an index beyond any cache that is computed with here. Raises `ConfigError` for a case
    that no layout fits, or whose engine is not there.
    """
    from cli.score_throughput import throughput
    from he_inference.index.store import Index
    from he_inference.layouts.catalogue import packing_of
    from he_inference.tuning.subjects import subject_of
    from he_inference.tuning.trial import Scene

    layout = layout_for(case)
    with ExitStack() as stack:
        device, place = _place(case.engine)
        threads = stack.enter_context(_threads(case.threads))
        folder = stack.enter_context(TemporaryDirectory(prefix="veil-bench-"))
        subject = subject_of(layout, case.seed)
        paths, index_build_s = _build(Path(folder), subject, progress)
        indexes = [stack.enter_context(Index.open(path)) for path in paths]
        scene = Scene.of(subject, [index.blocks for index in indexes], place)
        figures, peers = _asked(case, scene, progress)
        size_bytes = sum(index.size_bytes for index in indexes)
        result: dict[str, Any] = {
            "params": case.params,
            "items": case.items,
            "dim": case.dim,
            "layout": layout.kind,
            "packing": packing_of(layout),
            "queries": case.queries,
            "engine": case.engine,
            "threads": threads,
            **figures,
            "key_bytes": len(scene.client.key_data),
            "index_bytes": size_bytes,
            "index_build_s": index_build_s,
            "security": layout.parameters.security,
            "stages": scene.compute.clock.shares(),
        }
        # What a history is folded in with is read by another loop than what its vector is scored with.
        if size_bytes >= _BANDWIDTH_FROM_BYTES and layout.kind != "history" and device is None:
            result["memory"] = _memory(scene, indexes[-1].blocks, progress)
        if case.clients > 1:
            result["throughput"] = throughput(
                scene, paths, clients=case.clients, seed=case.seed, device=device, progress=progress
            )
            result["queries_per_s"] = result["throughput"]["service"]["together_per_s"]
    result["machine"] = machine()
    # Of the last minute: more than `threads` means that others worked, too.
    result["load_average"] = os.getloadavg()[0]
    result["peers"] = peers
    return result


def _place(engine: str) -> tuple[int | None, Place]:
    """The number of the GPU, if any, and what moves the index to where it is computed with. Raises `ConfigError`."""
    from he_inference.engine.blocks import HostBlocks

    if engine == "process":
        return None, HostBlocks
    if engine != "cuda":
        raise ConfigError(f"got engine {engine[:32]!r}, expected process or cuda")
    from he_inference.engine.gpu import place_on

    return 0, place_on(0)


def layout_for(case: Case) -> Layout:
    """The layout that a case means; histories are those of models with user terms unless it says otherwise."""
    from he_inference.layouts.catalogue import best_packing, layout_of, usual_kind
    from he_inference.layouts.history import HistoryLayout
    from he_inference.parameters import named

    parameters = named(case.params)
    kind = case.layout or usual_kind(parameters)
    packing = case.packing
    if packing is None and kind == "history":
        packing = HistoryLayout.packing
    elif packing is None:
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


def _build(folder: Path, subject: Subject, progress: Progress) -> tuple[list[Path], float]:
    """The index files, and the seconds that making them took, the rows beside them and checksums included."""
    import numpy as np

    from he_inference.index.build import build
    from he_inference.layouts.catalogue import layout_of, packing_of

    def make(path: Path, layout: Layout, rows: NDArray[Any], tell: Callable[[int, int], None] | None) -> Path:
        digest = bytes(32)
        norm = subject.item_norm
        build(path, layout, rows, item_norm=norm, model_digest=digest, item_ids_digest=digest, progress=tell)
        return path

    for layout, _ in subject.parts:  # compiled before the clock runs
        small = layout_of(layout.kind, layout.parameters, 1, layout.dimensions, packing_of(layout))
        make(folder / "small.index", small, np.zeros((1, layout.dimensions)), None)
    started = time.perf_counter()
    paths = [
        make(folder / f"{layout.kind}.index", layout, rows, lambda done, total: progress("index", done, total))
        for layout, rows in subject.parts
    ]
    return paths, time.perf_counter() - started


def _asked(case: Case, scene: Scene, progress: Progress) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Figures of the queries, and of the peers that were asked in between."""
    import numpy as np

    from cli.score_figures import Accuracy, timings
    from cli.score_peers import peers_of
    from he_inference.tuning.trial import ask

    subject = scene.subject
    questions = subject.questions(np.random.default_rng([case.seed, 1]), case.queries)
    peers = peers_of(subject.rows) if case.peer_queries else []
    ask(scene, questions[0])  # compiled and warm
    scene.compute.clock.forget()
    times: dict[str, list[float]] = {"server": [], "server_cpu": [], "client": []}
    accuracy, sizes = Accuracy(), {}
    for number, question in enumerate(questions):
        answer, truth, vector = ask(scene, question), subject.truth(question), subject.vector(question)
        rounded = _quantised(subject.layout, subject.rows, vector)
        accuracy.add(answer.decrypted.scores, truth, answer.decrypted.bound, rounded)
        for name, milliseconds in times.items():
            milliseconds.append(getattr(answer, f"{name}_ms"))
        sizes = {"query_bytes": answer.query_bytes, "response_bytes": answer.response_bytes}
        if number < case.peer_queries:
            for peer in peers:
                peer.ask(vector, truth)
        progress("queries", number + 1, case.queries)
    figures = {
        **timings(times["server"], times["server_cpu"], times["client"]),
        **sizes,
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


def _memory(scene: Scene, index: NDArray[Any], progress: Progress) -> dict[str, float]:
    """Bytes a second of the products with items for one query, and of plain reading of as many, best of some turns.

    kernel_in_cache: the same on a few blocks that lie in a cache, which no memory slows: the limit of its arithmetic.
    """
    import numpy as np

    from he_inference.engine.bandwidth import read_seconds

    compute, client, subject = scene.compute, scene.client, scene.subject
    # Of memory of our own: a mapped file may be read more slowly, which is the kernel's own problem.
    own = index.copy()
    few = own[: max(1, _CACHED_BYTES * len(own) // own.nbytes)].copy()
    query = client.encrypt(subject.entries(subject.questions(np.random.default_rng(0), 1)[0]))

    def products_s(blocks: NDArray[Any]) -> float:
        compute.clock.forget()
        compute.answer(blocks, [query], [client.keys])
        return compute.clock.seconds["accumulation"]

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
