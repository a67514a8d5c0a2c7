"""Frames over the socket between a job's worker and its daemon: written in one step, read with as few as can be.

    frame = length u32 | kind u8 | peer u8 | payload                       little-endian, length of the payload

Guarantee: a frame is read whole or not at all, and none is larger than its kind allows: a length is checked before
memory is taken for it. Large payloads are neither joined nor copied on either side.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from veil.errors import PeerLost, WireError
from veil.mpc.transport import MAX_MESSAGE_BYTES, Payload

MESSAGE, ROOM, ENDED, REQUEST, ANSWER, CORRECT, CORRECTION = range(1, 8)
MAX_CONTROL_BYTES = 2**20
WINDOW_MESSAGES = 16
WINDOW_BYTES = 64 * 2**20
# What REQUEST, CORRECT and their answers begin with, and what ROOM holds: messages, bytes.
ID = struct.Struct("<I")
CONSUMED = struct.Struct("<IQ")
_FRAME = struct.Struct("<IBB")
_LIMITS = {MESSAGE: MAX_MESSAGE_BYTES, CORRECTION: MAX_MESSAGE_BYTES}
# What one read may bring: several small frames, or the beginning of a large one.
_BUFFER_BYTES = 64 * 2**10
_LONGEST_WAIT_S = 3600.0
SMALL_BYTES = 64 * 2**10


class RelayFrame(NamedTuple):
    """One frame; `payload` is the receiver's own memory."""

    kind: int
    peer: int
    payload: memoryview


class RelayFrames:
    """Frames over one socket. Any thread may write; one at a time may read.

    blocked: called while a write waits for room, again and again; it should read if it can, and must not write.
    """

    def __init__(self, source: socket.socket, blocked: Callable[[], None] | None = None) -> None:
        self._socket = source
        self._blocked = blocked
        self._writing = threading.Lock()
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._start = self._end = 0  # of what has been read and not used
        self._readable = select.poll()
        self._readable.register(source, select.POLLIN)
        self._writable = select.poll()
        self._writable.register(source, select.POLLOUT)
        self._either = select.poll()
        self._either.register(source, select.POLLIN | select.POLLOUT)

    def write(self, kind: int, peer: int, *payload: Payload) -> None:
        """Returns when everything has been handed to the kernel. Raises `PeerLost` when the other process has gone."""
        parts = _parts(kind, peer, payload)
        try:
            with self._writing:
                while parts:
                    self._write_some(parts)
        except OSError:
            raise PeerLost("the other process of this party has gone") from None

    def write_at_once(self, kind: int, peer: int, payload: Payload) -> bool:
        """As `write` for one of at most `SMALL_BYTES`; false, with nothing written, when it would have to wait."""
        if not self._writing.acquire(blocking=False):
            return False
        try:
            # Linux calls a local stream socket writable while three quarters of its buffer (208 KiB) are free.
            if not self._writable.poll(0):
                return False
            parts = _parts(kind, peer, (payload,))
            while parts:
                self._write_some(parts)
        except OSError:
            raise PeerLost("the other process of this party has gone") from None
        finally:
            self._writing.release()
        return True

    def _write_some(self, parts: list[memoryview]) -> None:
        try:
            flags = socket.MSG_DONTWAIT if self._blocked is not None else 0
            sent = self._socket.sendmsg(parts, (), flags)
        except BlockingIOError:
            if self._either.poll() and self._blocked is not None:
                self._blocked()
            return
        while parts and sent >= len(parts[0]):
            sent -= len(parts.pop(0))
        if sent:
            parts[0] = parts[0][sent:]

    def read(self, timeout_s: float | None = None) -> RelayFrame | None:
        """The next frame; None when the socket has ended. Raises `WireError` for one beyond its bound.

        Raises `TimeoutError` when none begins within `timeout_s`.
        """
        fresh = self._start == self._end
        if fresh and timeout_s is not None and not self._readable.poll(int(min(timeout_s, _LONGEST_WAIT_S) * 1000)):
            raise TimeoutError
        try:
            if not self._fill(_FRAME.size):
                return None
            size_bytes, kind, peer = _FRAME.unpack_from(self._buffer, self._start)
            self._start += _FRAME.size
            if size_bytes > _LIMITS.get(kind, MAX_CONTROL_BYTES):
                raise WireError(f"got a frame of {size_bytes} bytes of kind {kind}, expected fewer")
            return RelayFrame(kind, peer, self._payload(size_bytes))
        except OSError:
            return None

    def _fill(self, size_bytes: int) -> bool:
        """Reads until `size_bytes` are in the buffer; false when the socket has ended."""
        while self._end - self._start < size_bytes:
            if self._start:
                left = bytes(self._buffer[self._start : self._end])
                self._buffer[: len(left)] = left
                self._start, self._end = 0, len(left)
            count = self._socket.recv_into(self._buffer[self._end :])
            if count == 0:
                return False
            self._end += count
        return True

    def _payload(self, size_bytes: int) -> memoryview:
        # memory that is not set to zero first, unlike a bytearray's
        payload = np.empty(size_bytes, dtype=np.uint8).data
        got = min(size_bytes, self._end - self._start)
        payload[:got] = self._buffer[self._start : self._start + got]
        self._start += got
        if self._start == self._end:
            self._start = self._end = 0
        while got < size_bytes:
            count = self._socket.recv_into(payload[got:])
            if count == 0:
                raise ConnectionError("the connection ended within a frame")
            got += count
        return payload

    def close(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the other side was faster
        self._socket.close()


def _parts(kind: int, peer: int, payload: Sequence[Payload]) -> list[memoryview]:
    size_bytes = sum(map(len, payload))
    limit_bytes = _LIMITS.get(kind, MAX_CONTROL_BYTES)
    if size_bytes > limit_bytes:
        raise WireError(f"got a frame of {size_bytes} bytes, expected at most {limit_bytes}")
    head = _FRAME.pack(size_bytes, kind, peer)
    return [memoryview(part).cast("B") for part in (head, *payload) if len(part)]
