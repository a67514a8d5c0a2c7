"""Two bounded queues that stand between a protocol thread and the threads that read and write a connection.

What has been received stays readable after the connection has ended: a peer that finishes first and leaves must not
take its last message with it. Only then does the reason of the end surface, as the error that was noted first.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from veil.errors import PeerLost, ProtocolMismatch, VeilError
from veil.mpc.mesh_frames import PIECE_BYTES
from veil.mpc.transport import MAX_MESSAGE_BYTES, QUEUE_LIMIT_BYTES, Payload, PeerSilent

__all__ = ["PIECE_BYTES", "Assembler", "Ending", "Inbox", "Outbox"]


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
        # Wakes one waiting thread in one step of the kernel; None marks the end and stays in it.
        self._queue: queue.SimpleQueue[Payload | None] = queue.SimpleQueue()
        self._queued_bytes = 0
        self._ended: Ending | None = None
        self._room = threading.Condition(threading.Lock())
        self._listener: Callable[[bool], None] | None = None

    def listen(self, arrived: Callable[[bool], None]) -> None:
        """Calls `arrived(False)` after each message and `arrived(True)` at the end, in the thread that brings it."""
        self._listener = arrived

    def ready(self) -> bool:
        """Whether `get` would return or raise an ending at once."""
        return not self._queue.empty()

    @property
    def ended(self) -> Ending | None:
        """How it ended; None while it has not."""
        return self._ended

    def put(self, message: Payload) -> bool:
        """Adds a message, first waiting for room; false when the inbox has ended and the reader should stop."""
        with self._room:
            while self._queued_bytes >= self._limit_bytes and self._ended is None:
                self._room.wait()
            if self._ended is not None:
                return False
            self._queued_bytes += len(message)
            self._queue.put(message)
        if self._listener is not None:
            self._listener(False)
        return True

    def get(self, timeout_s: float) -> Payload:
        """The oldest message; raises the error with which the inbox ended, or `PeerSilent` after `timeout_s`."""
        try:
            message = self._queue.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            raise silent(self._peer, timeout_s) from None
        if message is None:
            self._queue.put(None)
            error = self._ended.error if self._ended is not None else None
            raise error or PeerLost(f"the connection to {self._peer} has ended", culprits=(self._peer,))
        with self._room:
            was_full = self._queued_bytes >= self._limit_bytes
            self._queued_bytes -= len(message)
            if was_full:
                self._room.notify_all()
        return message

    def end(self, error: VeilError, *, orderly: bool = False) -> None:
        """No message follows, because of `error`; the first reason stands. `orderly`: the peer closed by itself."""
        with self._room:
            if self._ended is not None:
                return
            self._ended = Ending(orderly, time.monotonic(), error)
            self._queue.put(None)
            self._room.notify_all()
        if self._listener is not None:
            self._listener(True)


class Outbox:
    """Messages for one peer, in order; what a thread that writes to a connection takes out of it."""

    def __init__(self, peer: str, *, limit_bytes: int = QUEUE_LIMIT_BYTES, timeout_s: float = 300.0) -> None:
        self._peer = peer
        self._limit_bytes = limit_bytes
        self._timeout_s = timeout_s
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._closed = False
        self._error: VeilError | None = None
        self._changed = threading.Condition()

    def put(self, message: bytes) -> None:
        """Adds a message. Raises the error with which the connection ended, or `PeerLost` when it stays full."""
        with self._changed:
            room = self._changed.wait_for(
                lambda: self._queued_bytes < self._limit_bytes or self._closed, self._timeout_s
            )
            if self._closed:
                raise self._error or PeerLost(f"the connection to {self._peer} has ended", culprits=(self._peer,))
            if not room:
                raise unread(self._peer, self._queued_bytes, self._timeout_s)
            self._queue.append(message)
            self._queued_bytes += len(message)
            self._changed.notify_all()

    def messages(self) -> Iterator[bytes]:
        """One message after the other; ends when the outbox is closed and empty."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return
                message = self._queue[0]
            yield message
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


def silent(peer: str, timeout_s: float) -> PeerSilent:
    """The error of a receive for which nothing came."""
    return PeerSilent(f"got nothing from {peer} in {timeout_s:g} s, expected its next message", culprits=(peer,))


def unread(peer: str, unsent_bytes: int, timeout_s: float) -> PeerLost:
    """The error of a queue that stays full because `peer` does not read."""
    return PeerLost(
        f"got {unsent_bytes} bytes unsent to {peer} for {timeout_s:g} s, expected the peer to read", culprits=(peer,)
    )


class Assembler:
    """Joins pieces into messages and insists on the order and the bounds."""

    def __init__(self, peer: str, *, limit_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._peer = peer
        self._limit_bytes = limit_bytes
        self.received = 0
        """Pieces taken so far: the sequence number that comes next."""
        # One buffer and not a list of pieces: a peer that sends single bytes must not cost fifty times their size.
        self._message = bytearray()

    def add(self, sequence: int, payload: bytes | memoryview, last: bool) -> Payload | None:
        """The message, when this piece ends one; a message of one piece is that piece itself.

        Raises `ProtocolMismatch` naming the peer.
        """
        if sequence != self.received:
            raise self._wrong(f"frame {sequence}", f"frame {self.received}")
        if len(payload) > PIECE_BYTES:
            raise self._wrong(f"a frame of {len(payload)} bytes", f"at most {PIECE_BYTES}")
        if not payload and not last:
            raise self._wrong("an empty frame within a message", "data")
        if len(self._message) + len(payload) > self._limit_bytes:
            raise self._wrong(f"a message of more than {self._limit_bytes} bytes", "at most that many")
        self.received += 1
        if last and not self._message:
            return payload
        self._message += payload
        if not last:
            return None
        message, self._message = self._message, bytearray()
        return message

    def _wrong(self, got: str, expected: str) -> ProtocolMismatch:
        return ProtocolMismatch(f"got {got} from {self._peer}, expected {expected}", culprits=(self._peer,))
