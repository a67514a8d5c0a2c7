"""Frames between the scoring server and its workers: a JSON header and byte strings over a socket, bounded both ways.

    u32 number of parts | u64 length of each | parts        big-endian; part 0 is a JSON object, the rest is bytes

Guarantee: no object is deserialised but JSON; a frame beyond the limits, a peer that closes or a deadline that passes
raises `FrameError`, after which the stream cannot be used any more.
"""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any

MAX_HEADER_BYTES = 64 * 1024
MAX_PARTS = 8192
MAX_FRAME_BYTES = 256 * 1024 * 1024


class FrameError(Exception):
    """The other end closed, was late or broke the format."""


def send(stream: socket.socket, header: dict[str, Any], parts: Sequence[bytes] = ()) -> None:
    """Writes one frame; raises `FrameError` when the other end is gone or the socket's time-out passes."""
    pieces = [json.dumps(header, separators=(",", ":")).encode(), *parts]
    lengths = struct.pack(f">I{len(pieces)}Q", len(pieces), *map(len, pieces))
    try:
        stream.sendall(lengths + pieces[0])
        for piece in pieces[1:]:
            stream.sendall(piece)
    except OSError as error:
        raise FrameError(f"cannot write: {error.strerror or error}") from None


def receive(stream: socket.socket, *, deadline: float | None = None) -> tuple[dict[str, Any], list[bytes]]:
    """Reads one frame; `deadline` is on the monotonic clock. Raises `FrameError`."""
    (count,) = struct.unpack(">I", _exactly(stream, 4, deadline))
    if not 1 <= count <= MAX_PARTS:
        raise FrameError(f"a frame of {count} parts")
    lengths = struct.unpack(f">{count}Q", _exactly(stream, 8 * count, deadline))
    if lengths[0] > MAX_HEADER_BYTES or sum(lengths) > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {sum(lengths)} bytes")
    parts = [_exactly(stream, length, deadline) for length in lengths]
    try:
        header = json.loads(parts[0])
    except ValueError:
        raise FrameError("a header that is not JSON") from None
    if not isinstance(header, dict):
        raise FrameError("a header that is not an object")
    return header, parts[1:]


def _exactly(stream: socket.socket, size: int, deadline: float | None) -> bytes:
    buffer = bytearray(size)
    view = memoryview(buffer)
    while view:
        try:
            if deadline is not None:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    raise FrameError("no answer in time")
                stream.settimeout(remaining)
            got = stream.recv_into(view)
        except TimeoutError:
            raise FrameError("no answer in time") from None
        except OSError as error:
            raise FrameError(f"cannot read: {error.strerror or error}") from None
        if got == 0:
            raise FrameError("the other end closed")
        view = view[got:]
    return bytes(buffer)
