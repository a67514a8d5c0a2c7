"""Frames for one peer, kept until the peer has them, so that a stream that breaks can go on where it stopped.

Guarantee: a message is encoded once, when it is put; a frame that is sent again is sent as the same bytes, so no mask
ever covers two different messages. Frames leave in order on one stream at a time. Memory is bounded: `put` waits
while `limit_bytes` are unsent, and no frame leaves while `KEPT_BYTES` have left without an acknowledgement.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from veil.errors import PeerLost, ProtocolMismatch, VeilError
from veil.mpc import mesh_frames
from veil.mpc.link import unread
from veil.mpc.mesh_frames import PIECE_BYTES
from veil.mpc.transport import QUEUE_LIMIT_BYTES, Payload

# More than a path of 1 Gbit/s and 200 ms holds; the receiver acknowledges every sixteenth of it.
KEPT_BYTES = 64 * 2**20
"""Bytes that may be on their way to a peer."""
ACKNOWLEDGE_BYTES = KEPT_BYTES // 16
ACKNOWLEDGE_FRAMES = 1024
_AT_ONCE_BYTES = 32 * 2**10
_LEAVE_S = 1.0


class Stream:
    """One connection's turn at an outbox; `cancel` ends the connection.

    write: sends a frame, ignoring that the connection has ended, if it can do so without waiting; says whether it did.
    None: frames leave in the thread that iterates over `FrameOutbox.items` alone.
    """

    def __init__(self, cancel: Callable[[], object], write: Callable[[bytes], bool] | None = None) -> None:
        self.cancel = cancel
        self._write = write
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._idle = False

    def notify(self) -> None:
        """Wakes `wait`, or lets the next one return at once; with the outbox's lock held."""
        if self._idle:
            self._idle = False
            self._wake.put(None)

    def writes(self, frame: bytes) -> bool:
        """Whether a small frame has left in this very thread, sooner than another could take it; with the lock held.

        Only while the thread of `FrameOutbox.items` rests, so that frames stay in order.
        """
        return self._idle and self._write is not None and len(frame) <= _AT_ONCE_BYTES and self._write(frame)

    def rest(self) -> None:
        """Announces `wait`; with the outbox's lock held, so that no `notify` is missed."""
        self._idle = True

    def wait(self) -> None:
        """Returns after the next `notify`; without the lock."""
        self._wake.get()


class FrameOutbox:
    """Frames for one peer."""

    def __init__(
        self,
        peer: str,
        *,
        limit_bytes: int = QUEUE_LIMIT_BYTES,
        kept_bytes: int = KEPT_BYTES,
        timeout_s: float = 300.0,
    ) -> None:
        self._peer = peer
        self._limit_bytes = limit_bytes
        self._kept_limit_bytes = kept_bytes
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._order = threading.Lock()  # one message's frames are not mixed with another's
        self._sent: deque[bytes] = deque()  # without acknowledgement; the first has number _acknowledged
        self._unsent: deque[bytes] = deque()
        self._acknowledged = 0
        self._frames = 0  # put so far
        self._sent_bytes = self._unsent_bytes = 0
        self._owed: int | None = None
        self._stream: Stream | None = None
        self._closed = self._said_goodbye = self._alone = self._left = False
        self._error: VeilError | None = None

    def put(self, *parts: Payload) -> None:
        """Adds a message. Raises the error with which the connection ended, or `PeerLost` when it stays full."""
        with self._order:
            with self._changed:
                if self._closed or self._unsent_bytes >= self._limit_bytes:
                    self._wait_for_room()
            if sum(map(len, parts)) <= PIECE_BYTES:
                self._append(mesh_frames.encode(self._frames, True, *parts))
                return
            for frame in mesh_frames.encode_message(self._frames, parts):
                self._append(frame)

    def _append(self, frame: bytes) -> None:
        with self._lock:
            if self._said_goodbye or self._error is not None:
                raise self._error or self._ended()
            self._frames += 1
            stream, full = self._stream, self._sent_bytes >= self._kept_limit_bytes
            if stream is not None and not self._unsent and not full and stream.writes(frame):
                self._sent.append(frame)
                self._sent_bytes += len(frame)
                return
            self._unsent.append(frame)
            self._unsent_bytes += len(frame)
            if stream is not None:
                stream.notify()

    def _wait_for_room(self) -> None:
        until = time.monotonic() + self._timeout_s
        while not self._closed and self._unsent_bytes >= self._limit_bytes:
            if not self._changed.wait(max(0.0, until - time.monotonic())):
                raise unread(self._peer, self._unsent_bytes, self._timeout_s)
        if self._closed:
            raise self._error or self._ended()

    def _ended(self) -> PeerLost:
        return PeerLost(f"the connection to {self._peer} has ended", culprits=(self._peer,))

    # The stream's side --------------------------------------------------------------------------------------------

    def attach(self, stream: Stream, received: int) -> None:
        """From now on frames leave on `stream` only, from number `received` on, which is what the peer asks for.

        Raises `ProtocolMismatch` when it has acknowledged more than that or was never sent so many.
        """
        with self._changed:
            if not self._acknowledged <= received <= self._acknowledged + len(self._sent):
                raise ProtocolMismatch(
                    f"got a stream that resumes at frame {received} from {self._peer}, expected "
                    f"{self._acknowledged} to {self._acknowledged + len(self._sent)}",
                    culprits=(self._peer,),
                )
            self._forget(received)
            while self._sent:
                frame = self._sent.pop()
                self._unsent.appendleft(frame)
                self._unsent_bytes += len(frame)
            self._sent_bytes = 0
            self._said_goodbye = self._left = False
            before, self._stream = self._stream, stream
            if before is not None:
                before.notify()

    def detach(self, stream: Stream) -> bool:
        """Nothing leaves on `stream` any more; false when another one has taken its place."""
        with self._changed:
            if self._stream is not stream:
                return False
            self._stream = None
            stream.notify()
            self._changed.notify_all()
            return True

    def items(self, stream: Stream) -> Iterator[bytes]:
        """What to send on `stream`, to be iterated by one thread; ends when it may end."""
        while True:
            with self._changed:
                if self._stream is not stream or self._error is not None:
                    return
                item = self._next()
                if item is None:
                    if self._said_goodbye and self._alone:
                        self._left = True
                        self._changed.notify_all()
                        return
                    stream.rest()
            if item is None:
                stream.wait()
            else:
                yield item

    def _next(self) -> bytes | None:
        if self._owed is not None:
            received, self._owed = self._owed, None
            return mesh_frames.acknowledgement(received)
        if self._unsent:
            if self._sent_bytes >= self._kept_limit_bytes:
                return None
            frame = self._unsent.popleft()
            self._sent.append(frame)
            was_full = self._unsent_bytes >= self._limit_bytes
            self._unsent_bytes -= len(frame)
            self._sent_bytes += len(frame)
            if was_full:
                self._changed.notify_all()
            return frame
        if self._closed and not self._said_goodbye:
            self._said_goodbye = True
            return mesh_frames.goodbye(self._frames)
        return None

    def acknowledge(self, received: int) -> None:
        """The peer has all frames below `received`. Raises `ProtocolMismatch` when it has not been sent so many."""
        with self._changed:
            if received > self._acknowledged + len(self._sent):
                raise ProtocolMismatch(
                    f"got an acknowledgement of {received} frames from {self._peer}, expected at most "
                    f"{self._acknowledged + len(self._sent)}",
                    culprits=(self._peer,),
                )
            self._forget(received)
            if self._stream is not None:
                self._stream.notify()
            self._changed.notify_all()

    def _forget(self, received: int) -> None:
        while self._acknowledged < received:
            self._sent_bytes -= len(self._sent.popleft())
            self._acknowledged += 1

    def owe(self, received: int) -> None:
        """Tells the peer, as soon as the stream has room, that `received` of its frames have arrived."""
        with self._lock:
            self._owed = received
            if self._stream is not None:
                self._stream.notify()

    # The end ------------------------------------------------------------------------------------------------------

    def close(self, error: VeilError | None = None) -> None:
        """No more messages. Without an error what is kept still goes out; with one it is dropped."""
        with self._changed:
            if error is not None and self._error is None:
                self._error = error
                self._sent.clear()
                self._unsent.clear()
                self._sent_bytes = self._unsent_bytes = 0
            self._closed = True
            if self._stream is not None:
                self._stream.notify()
            self._changed.notify_all()

    def leave_alone(self) -> None:
        """The peer has said goodbye: it waits for nothing that is kept here."""
        with self._changed:
            self._alone = True
            if self._stream is not None:
                self._stream.notify()
            self._changed.notify_all()

    def settled(self, timeout_s: float, broken_s: float) -> bool:
        """After `close`: whether the peer has answered the goodbye within `timeout_s`, and `broken_s` without a stream.

        Its own goodbye is the answer: it comes after it has received everything. Where both say goodbye at once, this
        side's is on its way before it returns.
        """
        started = time.monotonic()
        with self._changed:
            while not self._alone and self._error is None:
                limit_s = timeout_s if self._stream is not None else min(timeout_s, broken_s)
                left_s = limit_s - (time.monotonic() - started)
                if left_s <= 0:
                    return False
                self._changed.wait(left_s)
            self._changed.wait_for(lambda: self._left or self._stream is None or self._error is not None, _LEAVE_S)
            return True
