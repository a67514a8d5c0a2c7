"""The compute process of the scoring server: index files in, encrypted scores out.

Started by `he_inference.service.process` as `python -m he_inference.service.worker --fd N --index-fd K …`, where N is
one end of a socket pair and each K an index file. It inherits no credentials, no other descriptor and nothing of the
environment but what `he_inference.service.setting` lists. It is no sandbox: it runs as the server's user.

    {"kind": "start", "key_slots", "paths", "ray", "cuda"}      -> {"kind": "ready"} or {"kind": "error", "code"}
    {"kind": "register", "index": i, "key": name}               + keys      -> {"kind": "ok"} or {"kind": "error"}
    {"kind": "score", "index": i, "queries": [{"key", "keys"}]} + queries, keys of those with "keys" true
                                                        -> {"kind": "lacking", "queries": [numbers]}, or
                                                           {"kind": "part"} + results of some blocks of each, …
                                                           {"kind": "done", "compute_us", "read_us", "errors"}

Guarantee: messages of clients are residues (`he_inference.messages`): what is none is answered with a sentence,
everything else is computed with. Memory, file size and core dumps are limited, whatever comes (with Ray, core dumps
only; with a GPU, memory as `_limit_resources` says). Evaluation keys are held in a bounded cache and never written. One
request is computed at a time, on all threads.
"""

from __future__ import annotations

import argparse
import resource
import socket
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numba

from he_inference.engine.history import HistoryEngine
from he_inference.engine.local import LocalEngine
from he_inference.engine.seam import Engine
from he_inference.index.store import Index
from he_inference.layouts.catalogue import key_bytes, query_bytes
from he_inference.service import frames
from veil.errors import CiphertextError, VeilError

# Beyond what is there after every kernel has run: a batch of queries, keys, and room for the largest frames.
_WORKING_BYTES = 3 * 1024 * 1024 * 1024
# Compiled kernels are written, nothing else.
_LARGEST_FILE_BYTES = 64 * 1024 * 1024


class Worker:
    """Engines, one for each index file, and the evaluation keys that were used last."""

    def __init__(self, engines: Sequence[Engine[Any, Any]], key_slots: int) -> None:
        self._engines = engines
        self._keys: OrderedDict[str, Any] = OrderedDict()
        self._key_slots = key_slots
        self._readers = ThreadPoolExecutor(numba.get_num_threads(), thread_name_prefix="veil-read")

    def warm_up(self) -> None:
        """Runs each kernel once, alone and for two queries, so that no client waits for a compiler or a cold disk."""
        for number, engine in enumerate(self._engines):
            query, keys = bytes(query_bytes(engine.layout)), bytes(key_bytes(engine.layout))
            for count in (1, 2):
                asked = [{"key": "", "keys": bool(keys)} for _ in range(count)]
                parts = [query] * count + ([keys] * count if keys else [])
                self.score(number, asked, parts, lambda _header, _parts: None)
        self._keys.clear()

    def register(self, number: int, name: str, keys: bytes) -> None:
        """Checks evaluation keys and holds them. Raises `CiphertextError`."""
        self._keys[name] = self._engines[number].read_keys(keys)
        self._keys.move_to_end(name)
        while len(self._keys) > self._key_slots:
            self._keys.popitem(last=False)

    def score(
        self,
        number: int,
        asked: Sequence[dict[str, Any]],
        parts: Sequence[bytes],
        send: Callable[[dict[str, Any], list[bytes]], None],
    ) -> dict[str, Any]:
        """Scores of some queries, sent in parts as they come; returns the last header. See the module.

        asked: of each query the name of its keys ("" where its layout has none), and whether they are sent along.
        """
        engine = self._engines[number]
        started = time.perf_counter_ns()
        errors: dict[int, CiphertextError] = {}
        sent = iter(parts[len(asked) :])
        for place, one in enumerate(asked):
            if one["keys"]:
                try:
                    self.register(number, one["key"], next(sent))
                except CiphertextError as error:
                    errors[place] = error
        lacking = [place for place, one in enumerate(asked) if place not in errors and self._lacks(engine, one)]
        if lacking:
            return {"kind": "lacking", "queries": lacking}
        queries, keys = [], []
        for place, read in enumerate(self._readers.map(lambda data: _read(engine, data), parts[: len(asked)])):
            if isinstance(read, CiphertextError):
                errors.setdefault(place, read)
            elif place not in errors:
                queries.append(read)
                keys.append(self._use(asked[place]["key"]) if engine.layout.galois_elements else None)
        computing = time.perf_counter_ns()
        if queries:
            for run in engine.score(queries, keys):
                send({"kind": "part"}, [b"".join(results) for results in run])
        return {
            "kind": "done",
            "read_us": (computing - started) // 1000,
            "compute_us": (time.perf_counter_ns() - computing) // 1000,
            "errors": [[place, error.message, error.hint] for place, error in sorted(errors.items())],
        }

    def _lacks(self, engine: Engine[Any, Any], one: dict[str, Any]) -> bool:
        return bool(engine.layout.galois_elements) and one["key"] not in self._keys

    def _use(self, name: str) -> Any:
        self._keys.move_to_end(name)
        return self._keys[name]


def _read(engine: Engine[Any, Any], data: bytes) -> Any:
    """The query, or what is wrong with it."""
    try:
        return engine.read_query(data)
    except CiphertextError as error:
        return error


def serve(stream: socket.socket, worker: Worker) -> None:
    """Answers requests until the server closes its end."""

    def send(header: dict[str, Any], parts: Sequence[bytes] = ()) -> None:
        frames.send(stream, header, parts)

    while True:
        try:
            header, parts = frames.receive(stream)
        except frames.FrameError:
            return
        try:
            if header["kind"] == "register":
                worker.register(int(header["index"]), str(header["key"]), parts[0])
                reply: dict[str, Any] = {"kind": "ok"}
            else:
                reply = worker.score(int(header["index"]), header["queries"], parts, send)
        except VeilError as error:
            reply = {"kind": "error", "message": error.message, "hint": error.hint}
        send(reply)


def main(arguments: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="he_inference.service.worker")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--index-fd", action="append", required=True, help="descriptors of one index, comma-separated")
    options = parser.parse_args(arguments)
    # An undisclosed memory image stays undisclosed.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with socket.socket(fileno=options.fd) as stream, ExitStack() as resources:
        try:
            header, _ = frames.receive(stream)
            indexes = [[Index.open(int(one)) for one in parts.split(",")] for parts in options.index_fd]
            worker = Worker(_engines(indexes, header, resources), int(header["key_slots"]))
            worker.warm_up()
            if header["ray"] is None:
                # Ray starts processes of its own, which would inherit them.
                _limit_resources(addresses=header["cuda"] is None)
            frames.send(stream, {"kind": "ready"})
            serve(stream, worker)
        except VeilError as error:
            frames.send(stream, {"kind": "error", "code": error.code, "message": error.message, "hint": error.hint})
            return 1
        except frames.FrameError:
            # The server has gone: nobody is left to answer to.
            return 1
    return 0


def _engines(
    indexes: Sequence[Sequence[Index]], header: dict[str, Any], resources: ExitStack
) -> Sequence[Engine[Any, Any]]:
    """An engine for each index: of this process, of a GPU, or of a Ray cluster's actors (histories are folded in here).

    Raises `ConfigError` when GPU or Ray are not there.
    """
    if header["cuda"] is not None:
        # Here, since torch takes seconds and memory that others need not spend.
        from he_inference.engine import cuda

        return cuda.engines(indexes, int(header["cuda"]))
    local = [HistoryEngine(parts[0], parts[1]) if len(parts) == 2 else LocalEngine(parts[0]) for parts in indexes]
    if header["ray"] is None:
        return local
    from he_inference.engine.ray_cluster import RayCluster
    from he_inference.engine.ray_settings import RaySettings

    cluster = resources.enter_context(RayCluster(RaySettings(**header["ray"])))
    apart = [number for number, parts in enumerate(indexes) if len(parts) == 1]
    shards = cluster.engines([(indexes[number][0], Path(header["paths"][number][0])) for number in apart])
    return [shards[apart.index(number)] if number in apart else engine for number, engine in enumerate(local)]


def _limit_resources(*, addresses: bool) -> None:
    """No more memory than now and `_WORKING_BYTES`: work that grows without bound ends here, not the machine.

    addresses: whether that is said of all addresses, which is the stricter limit. CUDA reserves as many of those as all
    memory of machine and devices together, and more whenever it likes, without using them; its process is limited in
    private writable memory instead (RLIMIT_DATA: heaps, stacks and anonymous mappings; since Linux 4.7). What that
    leaves out: memory that the driver shares with the device, and the device's own, which torch reserves.
    """
    resource.setrlimit(resource.RLIMIT_FSIZE, (_LARGEST_FILE_BYTES, _LARGEST_FILE_BYTES))
    # Pages, in this order: all addresses, resident, shared, text, unused, data and stack, unused (proc_pid_statm(5)).
    table = Path("/proc/self/statm")
    pages = [int(number) for number in table.read_text().split()] if table.exists() else []
    if pages:
        limited, used = (resource.RLIMIT_AS, pages[0]) if addresses else (resource.RLIMIT_DATA, pages[5])
        limit = used * resource.getpagesize() + _WORKING_BYTES
        resource.setrlimit(limited, (limit, limit))


if __name__ == "__main__":
    sys.exit(main())
