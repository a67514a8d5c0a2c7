"""A bounded queue between the state machine, which never waits, and one stream, which may be slow.

Guarantee: `put` never blocks; a reader that falls `limit` items behind is cut off with an error instead of using up
memory. What was put before `close` is still delivered.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

from veil.errors import StateError, VeilError

Item = TypeVar("Item")


class Outlet(Generic[Item]):
    """One writer side, one reader side."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: deque[Item] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._error: VeilError | None = None

    @property
    def closed(self) -> bool:
        """Whether the end has been set; items may still wait to be read."""
        return self._closed

    def put(self, item: Item) -> None:
        """Adds an item; without effect after the end."""
        with self._changed:
            if self._closed:
                return
            if len(self._items) >= self._limit:
                self._items.clear()
                self._end(StateError(f"got a reader {self._limit} messages behind, expected it to keep up"))
                return
            self._items.append(item)
            self._changed.notify_all()

    def close(self, error: VeilError | None = None) -> None:
        """Ends the stream once everything has been read: well, or with `error`. Only the first call counts."""
        with self._changed:
            if not self._closed:
                self._end(error)

    def _end(self, error: VeilError | None) -> None:
        self._closed = True
        self._error = error
        self._changed.notify_all()

    def read(self, *, first_within_s: float | None = None) -> Iterator[Item]:
        """Items as they come. Raises the error of `close`, or `StateError` when no first item comes in time."""
        deadline = None if first_within_s is None else time.monotonic() + first_within_s
        while True:
            with self._changed:
                while not self._items and not self._closed:
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        raise StateError(f"got no first message within {first_within_s:g} s, expected Hello")
                    self._changed.wait(left)
                if not self._items:
                    if self._error is not None:
                        raise self._error
                    return
                item = self._items.popleft()
            deadline = None
            yield item
