"""Ends calls that outstay their time: a client that sends or takes a stream slowly occupies a thread of the server.

Guarantee: a call is cancelled within half a second after its time; one thread looks after all of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LOOK_EVERY_S = 0.5


class Cutoff:
    """Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[object, tuple[float, Callable[[], object]]] = {}
        self._watched = False

    @contextmanager
    def after(self, limit_s: float, cancel: Callable[[], object]) -> Iterator[None]:
        """Calls `cancel` when the block takes longer than `limit_s`."""
        entry = object()
        with self._lock:
            self._entries[entry] = (time.monotonic() + limit_s, cancel)
            if not self._watched:
                self._watched = True
                threading.Thread(target=self._watch, name="veil-cutoff", daemon=True).start()
        try:
            yield
        finally:
            with self._lock:
                self._entries.pop(entry, None)

    def _watch(self) -> None:
        while True:
            time.sleep(_LOOK_EVERY_S)
            now = time.monotonic()
            with self._lock:
                late = [cancel for until, cancel in self._entries.values() if until < now]
                if not self._entries:
                    self._watched = False
                    return
            for cancel in late:
                cancel()
