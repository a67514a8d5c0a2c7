"""Worker processes that hold SEAL, and the queue in front of them.

SEAL 4.3.3 (in TenSEAL 0.3.18) is not hardened against hostile bytes, and the binding never releases the interpreter
lock: so the gRPC process never imports it, and each computation runs in a process of its own.

Guarantee: a request is answered, refused or failed; when its worker ends or is late, that request alone fails, the
worker is replaced, and the next request is answered. Waiting requests are bounded. Workers are never shared by two
requests at a time.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

import he_inference
from he_inference import frames
from he_inference.packing import SessionLayout
from veil.errors import CiphertextError, PeerError, PeerLost, StateError

_START_TIMEOUT_S = 600.0
_MOST_KEYS_IN_MEMORY = 256
_INHERITED = ("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "SYSTEMROOT")
_log = logging.getLogger("veil.he_inference.pool")


class Overloaded(PeerError):
    """As many requests wait as may; a server reports it as RESOURCE_EXHAUSTED."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Encrypted scores, one ciphertext for each block, and the time that the arithmetic took."""

    ciphertexts: list[bytes]
    compute_us: int


class _Process:
    """One worker process and the stream to it."""

    def __init__(self, layout: SessionLayout, items: IO[bytes]) -> None:
        ours, theirs = socket.socketpair()
        self.stream = ours
        self.known: deque[str] = deque(maxlen=_MOST_KEYS_IN_MEMORY)
        environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(he_inference.__file__).resolve().parents[1])}
        fds = (theirs.fileno(), items.fileno())
        command = [sys.executable, "-P", "-m", "he_inference.worker", "--fd", str(fds[0]), "--items-fd", str(fds[1])]
        with theirs:
            self.process = subprocess.Popen(
                command, pass_fds=fds, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
        self._layout = layout

    def start(self) -> None:
        """Blocks until the items are encoded; raises `FrameError`."""
        layout = self._layout
        header = {
            "kind": "start",
            "parameters": layout.parameters.name,
            "items": layout.items,
            "dimensions": layout.dimensions,
            "key_slots": _MOST_KEYS_IN_MEMORY,
        }
        self.stream.settimeout(_START_TIMEOUT_S)
        frames.send(self.stream, header)
        reply, _ = frames.receive(self.stream, deadline=time.monotonic() + _START_TIMEOUT_S)
        if reply.get("kind") != "ready":
            raise frames.FrameError(f"a first answer {reply.get('kind')!r}")

    def ask(self, header: dict[str, Any], parts: list[bytes], deadline: float) -> tuple[dict[str, Any], list[bytes]]:
        """One request and its answer; raises `FrameError`."""
        self.stream.settimeout(max(0.001, deadline - time.monotonic()))
        frames.send(self.stream, header, parts)
        return frames.receive(self.stream, deadline=deadline)

    def end(self) -> None:
        """Ends the process and waits for it."""
        self.stream.close()
        self.process.kill()
        self.process.wait()


class WorkerPool:
    """`workers` processes with the same items. Use as a context manager, or call `start` and `close`."""

    def __init__(
        self,
        layout: SessionLayout,
        rows: NDArray[np.floating],
        *,
        workers: int,
        queue_limit: int = 32,
        timeout_s: float = 30.0,
    ) -> None:
        """`rows` is [items, d] of row norm at most 1 (`scale_items`)."""
        if rows.shape != (layout.items, layout.dimensions):
            raise StateError(f"got rows of shape {rows.shape}, expected ({layout.items}, {layout.dimensions})")
        self._layout = layout
        self._workers = workers
        self._queue_limit = queue_limit
        self._timeout_s = timeout_s
        self._items: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the pool; unlinked already
        self._items.write(np.ascontiguousarray(rows, dtype=np.float32).tobytes())
        self._items.flush()
        self._condition = threading.Condition()
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()
        self._waiting = 0
        self._closed = False

    def start(self) -> WorkerPool:
        """Starts all workers; returns when each has encoded the items. Raises `StateError` when one cannot."""
        starting = []
        try:
            for _ in range(self._workers):
                starting.append(self._spawn())
            for process in starting:
                process.start()
        except (frames.FrameError, OSError) as error:
            self.close()
            raise StateError(f"got no scoring worker: {error}", hint="its own message stands above") from None
        with self._condition:
            self._idle.extend(starting)
        return self

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that run."""
        with self._condition:
            return [worker.process.pid for worker in self._all]

    def register(self, name: str, keys: bytes, *, timeout_s: float | None = None) -> None:
        """Checks evaluation keys and holds them in one worker's memory under `name`. Raises `CiphertextError`."""
        worker = self._lease(name, timeout_s)
        header, _ = self._ask(worker, {"kind": "register", "key": name}, [keys])
        known = header.get("kind") == "ok"
        self._give_back(worker, name if known else None)
        if not known:
            raise _error(header)

    def score(
        self, name: str, query: bytes, load_keys: Callable[[], bytes], *, timeout_s: float | None = None
    ) -> Scores:
        """Scores one query under the keys called `name`; `load_keys` is asked when a worker does not hold them.

        `timeout_s` bounds the wait for a worker. Raises `CiphertextError` for a query or keys that do not fit,
        `Overloaded` when too many wait, `PeerLost` when the worker ended or was late, and whatever `load_keys` raises.
        """
        worker = self._lease(name, timeout_s)
        header, parts = self._ask(worker, {"kind": "score", "key": name}, [query])
        if header.get("kind") == "keys":
            try:
                keys = load_keys()
            except BaseException:
                self._give_back(worker, None)
                raise
            header, parts = self._ask(worker, {"kind": "score", "key": name}, [query, keys])
        scored = header.get("kind") == "scores" and len(parts) == self._layout.blocks
        self._give_back(worker, name if scored else None)
        if not scored:
            raise _error(header)
        return Scores(parts, int(header.get("compute_us", 0)))

    def close(self) -> None:
        """Ends all workers. Requests that wait fail."""
        with self._condition:
            self._closed = True
            ending = list(self._all)
            self._all.clear()
            self._idle.clear()
            self._condition.notify_all()
        for worker in ending:
            worker.end()
        self._items.close()

    def __enter__(self) -> WorkerPool:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _spawn(self) -> _Process:
        with self._condition:
            if self._closed:
                raise OSError("the pool is closed")
            worker = _Process(self._layout, self._items)
            self._all.add(worker)
            return worker

    def _lease(self, name: str, timeout_s: float | None) -> _Process:
        """A worker for one request; one that holds the keys already, if such a one is idle."""
        deadline = time.monotonic() + (self._timeout_s if timeout_s is None else min(self._timeout_s, timeout_s))
        with self._condition:
            if not self._idle and self._waiting >= self._queue_limit:
                raise _overloaded(self._waiting)
            self._waiting += 1
            try:
                while not self._idle:
                    remaining = deadline - time.monotonic()
                    if self._closed:
                        raise StateError("got a request while the server stops, expected none", hint="ask another one")
                    if remaining <= 0 or not self._condition.wait(remaining):
                        raise _overloaded(self._waiting)
            finally:
                self._waiting -= 1
            chosen = next((worker for worker in self._idle if name in worker.known), self._idle[-1])
            self._idle.remove(chosen)
            return chosen

    def _give_back(self, worker: _Process, name: str | None) -> None:
        if name is not None and name not in worker.known:
            worker.known.append(name)
        with self._condition:
            if worker in self._all:
                self._idle.append(worker)
                self._condition.notify()

    def _ask(self, worker: _Process, header: dict[str, Any], parts: list[bytes]) -> tuple[dict[str, Any], list[bytes]]:
        try:
            # Always the server's own time-out: a caller in a hurry waits less for a worker, but costs none its life.
            return worker.ask(header, parts, time.monotonic() + self._timeout_s)
        except frames.FrameError as error:
            status = worker.process.poll()
            _log.warning("a scoring worker (pid %d, status %s) is replaced: %s", worker.process.pid, status, error)
            self._replace(worker)
            raise PeerLost(
                "the scoring worker ended, or did not answer in time, while it worked on this request",
                hint="it has been replaced; send the request again",
            ) from None

    def _replace(self, worker: _Process) -> None:
        with self._condition:
            self._all.discard(worker)
        worker.end()
        threading.Thread(target=self._restart, name="veil-scoring-restart", daemon=True).start()

    def _restart(self) -> None:
        """Brings one worker back, however long it takes, until the pool closes."""
        delay_s = 0.1
        while not self._closed:
            worker = None
            try:
                worker = self._spawn()
                worker.start()
            except (frames.FrameError, OSError) as error:
                if worker is not None:
                    with self._condition:
                        self._all.discard(worker)
                    worker.end()
                _log.warning("a scoring worker does not start: %s", error)
                time.sleep(delay_s)
                delay_s = min(30.0, 2 * delay_s)
                continue
            self._give_back(worker, None)
            return


def _overloaded(waiting: int) -> Overloaded:
    return Overloaded(f"the scoring server is busy: {waiting} requests wait", hint="send the request again later")


def _error(header: dict[str, Any]) -> CiphertextError:
    hint = header.get("hint")
    return CiphertextError(str(header.get("message", "no answer")), hint=None if hint is None else str(hint))
