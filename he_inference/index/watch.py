"""An index that is exchanged for a newer one while it is used, within one process.

Guarantee: who holds a lease keeps the index that it began with; an old one is closed when its last lease has ended. A
new file is taken up only when it verifies; until then, and where it does not, the old one stays.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from he_inference.index.store import Index
from veil.errors import StateError, VeilError

_log = logging.getLogger("veil.index")
# Longest silence between two looks at the file.
_MAX_INTERVAL_S = 3600.0


class _Held:
    """An index and how many use it; all under the watch's lock."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self.users = 0
        self.retired = False


class IndexWatch:
    """The newest sound index at a path. All methods may be called by any thread."""

    def __init__(self, path: Path, *, verify: bool = True) -> None:
        """Opens the index; raises `ArtifactError`."""
        self._path = path
        self._verify = verify
        self._lock = threading.Lock()
        self._checking = threading.Lock()
        self._held: _Held | None = _Held(Index.open(path, verify=verify))
        self._seen = _state(os.fstat(self._held.index.fileno()))
        self._refused: tuple[int, ...] | None = None

    @property
    def generation(self) -> int:
        """That of the index which the next lease gets."""
        with self._lock:
            return self._current().index.generation

    @contextmanager
    def lease(self) -> Iterator[Index]:
        """The present index, which stays open until the block ends."""
        with self._lock:
            held = self._current()
            held.users += 1
        try:
            yield held.index
        finally:
            with self._lock:
                held.users -= 1
                self._close_unused(held)

    def check(self) -> bool:
        """Takes up the file when it was replaced; true when it was. A file that does not verify is logged once and
        the old index stays."""
        with self._checking:
            try:
                found = _state(os.stat(self._path))
            except OSError:
                # Between two renames by hand, say; the open index goes on.
                return False
            if found in (self._seen, self._refused):
                return False
            try:
                index = Index.open(self._path, verify=self._verify)
            except VeilError as error:
                self._refused = found
                _log.error("the index was not exchanged: %s", error)
                return False
            except OSError as error:
                # Too little memory or too many open files now; the next look tries again.
                _log.error("the index was not exchanged: %s", error.strerror)
                return False
            with self._lock:
                old = self._held
                if old is None:
                    index.close()
                    return False
                self._held = _Held(index)
                # Of the file that was opened: the name may have moved on, which the next look finds.
                self._seen = _state(os.fstat(index.fileno()))
                old.retired = True
                self._close_unused(old)
            _log.info("index %s: generation %d", self._path, index.generation)
            return True

    def follow(self, stop: threading.Event, interval_s: float = 2.0) -> None:
        """Checks every `interval_s` until `stop` is set; for a thread of its own."""
        while not stop.wait(min(max(interval_s, 0.01), _MAX_INTERVAL_S)):
            self.check()

    def close(self) -> None:
        """Ends the watch; leases that run keep their index until they end."""
        with self._lock:
            held, self._held = self._held, None
            if held is not None:
                held.retired = True
                self._close_unused(held)

    def _current(self) -> _Held:
        if self._held is None:
            raise StateError(f"got a closed watch of {self._path}, expected an open one")
        return self._held

    def _close_unused(self, held: _Held) -> None:
        if held.retired and not held.users:
            held.index.close()


def _state(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
