"""Two bounded queues that stand between a protocol thread and the threads that read and write a connection.

What has been received stays readable after the connection has ended: a peer that finishes first and leaves must not
take its last message with it. Only then does the reason of the end surface, as the error that was noted first.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from veil.errors import PeerLost, ProtocolMismatch, VeilError
from veil.mpc.transport import MAX_MESSAGE_BYTES, QUEUE_LIMIT_BYTES

PIECE_BYTES = 2**20  # 1 MiB, the largest payload of one frame (mesh.proto)


class Ending(NamedTuple):
    """How a connection ended. They sort by how likely they are the cause: broken before orderly, then by time."""

    orderly: bool
    at_s: float
    error: VeilError


class Inbox:
    """Messages received from one peer, in order."""

    def __init__(self, peer: str, *, limit_bytes: int = QUEUE_LIMIT_BYTES) -> None:
        self._peer = peer
        self._limit_bytes = limit_bytes
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._error: VeilError | None = None
        self._ended: Ending | None = None
        self._changed = threading.Condition()

    @property
    def ended(self) -> Ending | None:
        """How it ended; None while it has not."""
        return self._ended

    def put(self, message: bytes) -> bool:
        """Adds a message, first waiting for room; false when the inbox has ended and the reader should stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._queued_bytes < self._limit_bytes or self._error is not None)
            if self._error is not None:
                return False
            self._queue.append(message)
            self._queued_bytes += len(message)
            self._changed.notify_all()
            return True

    def get(self, timeout_s: float) -> bytes:
        """The oldest message; raises the error with which the inbox ended, or `PeerLost` after `timeout_s`."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._queue or self._error is not None, timeout_s):
                raise PeerLost(
                    f"got nothing from {self._peer} in {timeout_s:g} s, expected its next message",
                    culprits=(self._peer,),
                )
            if not self._queue:
                raise self._error or PeerLost(f"the connection to {self._peer} has ended", culprits=(self._peer,))
            message = self._queue.popleft()
            self._queued_bytes -= len(message)
            self._changed.notify_all()
            return message

    def end(self, error: VeilError, *, orderly: bool = False) -> None:
        """No message follows, because of `error`; the first reason stands. `orderly`: the peer closed by itself."""
        with self._changed:
            if self._error is None:
                self._error = error
                self._ended = Ending(orderly, time.monotonic(), error)
            self._changed.notify_all()


class Outbox:
    """Messages for one peer, in order, cut into pieces when they are taken out."""

    def __init__(self, peer: str, *, limit_bytes: int = QUEUE_LIMIT_BYTES, timeout_s: float = 300.0) -> None:
        self._peer = peer
        self._limit_bytes = limit_bytes
        self._timeout_s = timeout_s
        self._queue: deque[bytes | memoryview] = deque()
        self._queued_bytes = 0
        self._closed = False
        self._error: VeilError | None = None
        self._changed = threading.Condition()

    def put(self, message: bytes | memoryview) -> None:
        """Adds a message. Raises the error with which the connection ended, or `PeerLost` when it stays full."""
        with self._changed:
            room = self._changed.wait_for(
                lambda: self._queued_bytes < self._limit_bytes or self._closed, self._timeout_s
            )
            if self._closed:
                raise self._error or PeerLost(f"the connection to {self._peer} has ended", culprits=(self._peer,))
            if not room:
                raise PeerLost(
                    f"got {self._queued_bytes} bytes unsent to {self._peer} for {self._timeout_s:g} s, "
                    "expected the peer to read",
                    culprits=(self._peer,),
                )
            self._queue.append(message)
            self._queued_bytes += len(message)
            self._changed.notify_all()

    def pieces(self) -> Iterator[tuple[bytes, bool]]:
        """Pieces of at most 1 MiB and whether each ends its message; ends when the outbox is closed and empty."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return
                message = memoryview(self._queue[0])
            for start in range(0, max(len(message), 1), PIECE_BYTES):
                yield bytes(message[start : start + PIECE_BYTES]), start + PIECE_BYTES >= len(message)
            with self._changed:
                if self._queue:
                    self._queued_bytes -= len(self._queue.popleft())
                self._changed.notify_all()

    def close(self, error: VeilError | None = None) -> None:
        """No more messages. Without an error what is queued still goes out; with one it is dropped."""
        with self._changed:
            if error is not None:
                self._queue.clear()
                self._queued_bytes = 0
                self._error = self._error or error
            self._closed = True
            self._changed.notify_all()

    def drained(self, timeout_s: float) -> bool:
        """Whether everything has been taken out within `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._queue, timeout_s)


class Assembler:
    """Joins pieces into messages and insists on the order and the bounds."""

    def __init__(self, peer: str, *, limit_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._peer = peer
        self._limit_bytes = limit_bytes
        self._next = 0
        # One buffer and not a list of pieces: a peer that sends single bytes must not cost fifty times their size.
        self._message = bytearray()

    def add(self, sequence: int, payload: bytes, last: bool) -> bytes | None:
        """The message, when this piece ends one. Raises `ProtocolMismatch` naming the peer."""
        if sequence != self._next:
            raise self._wrong(f"frame {sequence}", f"frame {self._next}")
        if len(payload) > PIECE_BYTES:
            raise self._wrong(f"a frame of {len(payload)} bytes", f"at most {PIECE_BYTES}")
        if not payload and not last:
            raise self._wrong("an empty frame within a message", "data")
        self._next += 1
        if len(self._message) + len(payload) > self._limit_bytes:
            raise self._wrong(f"a message of more than {self._limit_bytes} bytes", "at most that many")
        self._message += payload
        if not last:
            return None
        message, self._message = bytes(self._message), bytearray()
        return message

    def _wrong(self, got: str, expected: str) -> ProtocolMismatch:
        return ProtocolMismatch(f"got {got} from {self._peer}, expected {expected}", culprits=(self._peer,))
