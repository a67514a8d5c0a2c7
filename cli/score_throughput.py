"""Throughput of encrypted scoring: clients one at a time and together, in this process and through the server's queue.

Guarantee: every client has its own key, its own evaluation keys and its own query; the results are the same bytes
whichever way they were asked for, or the figures say so.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cli.score_case import Progress
    from he_inference.engine.blocks import Blocks
    from he_inference.tuning.stages import Evaluator
    from he_inference.tuning.trial import Scene

_TURNS = 3
_TIMEOUT_S = 300.0


def throughput(
    scene: Scene, paths: Sequence[Path], *, clients: int, seed: int, device: int | None = None, progress: Progress
) -> dict[str, Any]:
    """Queries a second. arithmetic: the evaluator in this process. service: queue and compute process of the server.

    paths: the files of the scene's index. device: the GPU of the compute process, if any.
    """
    import numpy as np

    from cli.score_figures import Accuracy
    from he_inference.tuning.trial import Client

    subject = scene.subject
    questions = subject.questions(np.random.default_rng([seed, 2]), clients)
    askers, queries = [], []
    for number, question in enumerate(questions):
        askers.append(Client(scene.compute))
        queries.append(askers[-1].encrypt(subject.entries(question)))
        progress("clients", number + 1, clients)
    keys = [asker.keys for asker in askers]
    arithmetic, alone, together = _arithmetic(scene.compute, scene.index, queries, keys, progress)
    service, served = _service(paths, queries, [asker.key_data for asker in askers], device, progress)
    accuracy = Accuracy()
    for asker, results, question in zip(askers, served, questions, strict=True):
        decrypted = subject.decrypted(question, asker.decrypt(results))
        accuracy.add(decrypted.scores, subject.truth(question), decrypted.bound)
    return {
        "clients": clients,
        "arithmetic": arithmetic,
        "service": service,
        "same_bytes": alone == together == served,
        **accuracy.figures(),
    }


def _rates(count: int, alone_s: Sequence[float], together_s: Sequence[float]) -> dict[str, float]:
    import numpy as np

    one, many = (count / float(np.median(seconds)) for seconds in (alone_s, together_s))
    return {"one_at_a_time_per_s": one, "together_per_s": many, "gain": many / one}


def _arithmetic(
    compute: Evaluator,
    index: NDArray[Any] | Blocks,
    queries: list[bytes],
    keys: list[NDArray[Any]],
    progress: Progress,
) -> tuple[dict[str, Any], list[list[bytes]], list[list[bytes]]]:
    """Rates with what bounds them, and the results of both ways."""
    compute.answer(index, queries[:2], keys[:2])  # compiled before the clock runs
    alone_s, together_s, alone_cpu_s, together_cpu_s = [], [], [], []
    shares: dict[str, dict[str, float]] = {}
    alone: list[list[bytes]] = []
    together: list[list[bytes]] = []
    for turn in range(_TURNS):
        compute.clock.forget()
        started, cpu = time.perf_counter(), time.process_time()
        alone = [compute.answer(index, [query], [key])[0] for query, key in zip(queries, keys, strict=True)]
        alone_s.append(time.perf_counter() - started)
        alone_cpu_s.append(time.process_time() - cpu)
        shares["one_at_a_time_stages"] = compute.clock.shares()
        compute.clock.forget()
        started, cpu = time.perf_counter(), time.process_time()
        together = compute.answer(index, queries, keys)
        together_s.append(time.perf_counter() - started)
        together_cpu_s.append(time.process_time() - cpu)
        shares["together_stages"] = compute.clock.shares()
        progress("together", turn + 1, _TURNS)
    stages = shares["together_stages"]
    figures = {
        **_rates(len(queries), alone_s, together_s),
        # Of all threads, for each query: hardly depends on what else the machine does.
        "one_at_a_time_cpu_ms": 1000 * min(alone_cpu_s) / len(queries),
        "together_cpu_ms": 1000 * min(together_cpu_s) / len(queries),
        **shares,
        "bounded_by": max(stages, key=stages.__getitem__),
    }
    return figures, alone, together


def _service(
    paths: Sequence[Path], queries: list[bytes], keys: list[bytes], device: int | None, progress: Progress
) -> tuple[dict[str, Any], list[list[bytes]]]:
    """Rates through queue and compute process, and the results."""
    from he_inference.ring.jit import threads
    from he_inference.service.pool import Scores, WorkerPool
    from he_inference.service.process import IndexFile
    from he_inference.service.setting import Setting

    count = len(queries)
    index = IndexFile.open(*paths)
    try:
        setting = Setting(threads=threads(), cuda=device)
        with WorkerPool(setting=setting, queue_limit=2 * count, timeout_s=_TIMEOUT_S) as pool:
            pool.serve([index])
            # A layout without rotations has no keys.
            names = [f"client-{number}" if key else "" for number, key in enumerate(keys)]

            def asked(number: int) -> Scores:
                return pool.score(index, names[number], queries[number], lambda: keys[number], timeout_s=_TIMEOUT_S)

            for number in range(count):
                asked(number)
            alone_s, together_s, batches = [], [], []
            served: list[list[bytes]] = []
            with ThreadPoolExecutor(count) as executor:
                for turn in range(_TURNS):
                    started = time.perf_counter()
                    for number in range(count):
                        asked(number)
                    alone_s.append(time.perf_counter() - started)
                    started = time.perf_counter()
                    answers = list(executor.map(asked, range(count)))
                    together_s.append(time.perf_counter() - started)
                    served = [answer.results for answer in answers]
                    batches += [answer.batch_queries for answer in answers]
                    progress("service", turn + 1, _TURNS)
            return {**_rates(count, alone_s, together_s), "batch_queries": sum(batches) / len(batches)}, served
    finally:
        index.close()
