"""The queue in front of the compute process: batches of queries, one process, replaced when it ends or is late.

Queries that wait for the same index are computed together (at most `batch` of them, at most what waits now; nobody is
made to wait for more), so that each row of the index is read from memory once for all of them.

Guarantee: a query is answered, refused or failed, and never answered from another index than it was made for. When the
process ends or is late, the queries of its batch are asked once more, each by itself, so that one that kills processes
harms nobody else; then it fails. Waiting queries are bounded. A query whose caller has gone, or whose deadline has
passed, is not computed. Other indexes take the place of the present ones without a pause (`WorkerPool.serve`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from he_inference.service import frames
from he_inference.service.batch import attend, to_ask_again
from he_inference.service.process import IndexFile, Process
from he_inference.service.setting import Setting
from he_inference.service.tickets import MOST_TOGETHER, Observer, Scores, Ticket, batch_from, late
from veil.errors import ConfigError, LimitError, StateError

__all__ = ["Scores", "Setting", "WorkerPool"]
_log = logging.getLogger("veil.he_inference.service.pool")


class WorkerPool:
    """Call `serve` with index files before anything else, `close` at the end; or use as a context manager."""

    def __init__(
        self,
        *,
        setting: Setting = Setting(),  # noqa: B008 - frozen
        queue_limit: int = 64,
        batch: int = MOST_TOGETHER,
        timeout_s: float = 30.0,
        observer: Observer | None = None,
    ) -> None:
        """timeout_s: of one batch, after which the process is replaced."""
        self._setting = setting
        self._queue_limit = queue_limit
        self._batch = batch
        self._timeout_s = timeout_s
        self._observer = observer
        self._condition = threading.Condition()
        self._queue: deque[Ticket] = deque()
        self._running = 0
        self._process: Process | None = None
        self._next: Process | None = None
        self._starting: Process | None = None
        self._closing = threading.Event()
        self._batch_s = 0.1
        self._thread: threading.Thread | None = None
        self.replaced = 0

    def serve(self, indexes: Sequence[IndexFile]) -> None:
        """Starts a process with these index files and puts it in place of the present one.

        The present process answers until the new one has run every kernel, and goes on when the new one does not start.
        Index files that are asked for again must be the same objects. Raises `StateError`, and `ConfigError` when the
        engine is not there.
        """
        process = Process(indexes, self._setting)
        try:
            process.start()
        except BaseException as error:
            # Also when somebody interrupts the wait: the process must not outlive it.
            process.end()
            if isinstance(error, frames.FrameError | OSError):
                raise StateError(f"got no scoring process: {error}", hint="its own message stands above") from None
            raise
        with self._condition:
            if self._closing.is_set():
                process.end()
                raise StateError("got indexes for a server that stops, expected none")
            superseded, self._next = self._next, process
            if self._thread is None:
                self._process, self._next = process, None
                self._thread = threading.Thread(target=self._work, name="veil-scoring", daemon=True)
                self._thread.start()
            self._condition.notify_all()
        if superseded is not None:
            superseded.end()

    @property
    def pids(self) -> list[int]:
        """Process ids of the compute processes that run."""
        with self._condition:
            return [process.pid for process in (self._process, self._next) if process is not None]

    @property
    def waiting(self) -> int:
        """Queries that wait."""
        with self._condition:
            return len(self._queue)

    def check_room(self) -> None:
        """Raises `LimitError` when `answer` would: for what must not be counted when it is not computed."""
        with self._condition:
            if len(self._queue) >= self._queue_limit:
                raise self._full()

    def ticket(
        self, index: IndexFile, name: str, data: bytes, load_keys: Callable[[], bytes] | None, timeout_s: float | None
    ) -> Ticket:
        """A query (or, without `load_keys`, a registration) that is not in the queue yet."""
        limit_s = 2 * self._timeout_s if timeout_s is None else min(2 * self._timeout_s, timeout_s)
        return Ticket(index, name, data, load_keys, time.monotonic() + limit_s)

    def register(self, index: IndexFile, name: str, keys: bytes, *, timeout_s: float | None = None) -> None:
        """Checks evaluation keys and holds them in memory under `name`. Raises `CiphertextError`, and as `score`."""
        self.answer(self.ticket(index, name, keys, None, timeout_s))

    def score(
        self,
        index: IndexFile,
        name: str,
        query: bytes,
        load_keys: Callable[[], bytes],
        *,
        timeout_s: float | None = None,
    ) -> Scores:
        """Scores one query under the keys called `name`; `load_keys` is asked when the process does not hold them.

        Raises `CiphertextError` for a query or keys that do not fit, `LimitError` when too many wait, `Late` after
        `timeout_s`, `PeerLost` when two processes ended or were late over it, and whatever `load_keys` raises.
        """
        return self.scores(self.ticket(index, name, query, load_keys, timeout_s))

    def scores(self, ticket: Ticket) -> Scores:
        """As `score`, for the ticket of a query."""
        scores = self.answer(ticket)
        if scores is None:
            raise StateError("got a registration, expected a query")
        return scores

    def answer(self, ticket: Ticket) -> Scores | None:
        """Puts a ticket in the queue and waits for its answer; None for a registration."""
        with self._condition:
            if self._closing.is_set():
                raise StateError("got a request while the server stops, expected none", hint="ask another server")
            if len(self._queue) >= self._queue_limit:
                raise self._full()
            self._queue.append(ticket)
            self._tell_queue()
            self._condition.notify_all()
        ticket.done.wait(max(0.0, ticket.deadline - time.monotonic()))
        with self._condition:
            if ticket in self._queue:
                self._queue.remove(ticket)
        if ticket.error is not None:
            raise ticket.error
        if ticket.cancelled or not ticket.done.is_set():
            ticket.cancelled = True
            raise late()
        return ticket.scores

    def drain(self, grace_s: float) -> bool:
        """Waits until nothing waits or runs; False when `grace_s` passed first."""
        limit = time.monotonic() + grace_s
        with self._condition:
            while self._queue or self._running:
                remaining = limit - time.monotonic()
                if remaining <= 0:
                    return False
                self._condition.wait(remaining)
        return True

    def close(self) -> None:
        """Ends the processes. Requests that wait fail."""
        with self._condition:
            self._closing.set()
            waiting = list(self._queue)
            self._queue.clear()
            ending = [one for one in (self._process, self._next, self._starting) if one is not None]
            self._process = self._next = None
            self._condition.notify_all()
        for ticket in waiting:
            ticket.finish(error=StateError("the server stops", hint="ask another server"))
        for process in ending:
            process.end()
        if self._thread is not None:
            self._thread.join(10.0)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tell_queue(self) -> None:
        if self._observer is not None:
            self._observer.queue_is(len(self._queue))

    def _full(self) -> LimitError:
        return LimitError(
            f"the scoring server is busy: {len(self._queue)} requests wait",
            retry_after_s=max(0.05, self._batch_s * (1 + len(self._queue) / self._batch)),
            hint="send the request again later",
        )

    def _work(self) -> None:
        while True:
            with self._condition:
                while not self._closing.is_set() and not self._queue and self._next is None:
                    self._condition.wait()
                if self._closing.is_set():
                    return
                superseded = self._take_next()
                batch = batch_from(self._queue, self._batch)
                self._running = len(batch)
                self._tell_queue()
                process = self._process
            if superseded is not None:
                superseded.end()
            if batch and process is not None:
                self._attend(process, batch)
            with self._condition:
                self._running = 0
                self._condition.notify_all()

    def _take_next(self) -> Process | None:
        if self._next is None:
            return None
        superseded, self._process, self._next = self._process, self._next, None
        return superseded

    def _attend(self, process: Process, batch: list[Ticket]) -> None:
        """One batch, whatever happens to it."""
        started = time.monotonic()
        try:
            attend(process, batch, started + self._timeout_s, self._observer)
            self._batch_s += 0.2 * (time.monotonic() - started - self._batch_s)
        except frames.FrameError as error:
            self._lost(process, batch, error)
        except Exception as error:  # noqa: BLE001
            # Nobody else would answer these callers, nor the next ones.
            _log.exception("a batch of %d queries failed", len(batch))
            for ticket in batch:
                ticket.finish(error=error)

    def _lost(self, process: Process, batch: list[Ticket], reason: frames.FrameError) -> None:
        """The process ended or is late: its queries are asked again, each by itself; then a new process takes over."""
        _log.warning("the scoring process (pid %d, status %s) is replaced: %s", process.pid, process.status(), reason)
        self.replaced += 1
        if self._observer is not None:
            self._observer.worker_restarted()
        again = to_ask_again(batch)
        with self._condition:
            if self._closing.is_set():
                for ticket in again:
                    ticket.finish(error=StateError("the server stops", hint="ask another server"))
                return
            self._queue.extendleft(reversed(again))
            self._running = 0
            if self._process is process:
                self._process = None
        process.end()
        self._restart(process)

    def _restart(self, lost: Process) -> None:
        """Brings a process back, however long it takes, until the pool closes or another one comes."""
        delay_s = 0.1
        while True:
            with self._condition:
                if self._closing.is_set() or self._next is not None:
                    return
            process = None
            try:
                process = Process(lost.indexes, self._setting)
                with self._condition:
                    self._starting = process
                process.start()
            except (frames.FrameError, OSError, ConfigError) as error:
                if process is not None:
                    process.end()
                _log.warning("the scoring process does not start: %s", error)
                with self._condition:
                    self._condition.wait_for(lambda: self._closing.is_set() or self._next is not None, delay_s)
                delay_s = min(30.0, 2 * delay_s)
                continue
            finally:
                with self._condition:
                    self._starting = None
            with self._condition:
                if not self._closing.is_set():
                    self._process = process
                    return
            process.end()
            return
