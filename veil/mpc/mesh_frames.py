"""Frames of the mesh as bytes: encoded once, and read without a copy of their payload.

Guarantee: what `encode` makes is exactly the protobuf encoding of an `ExchangeRequest` or `ExchangeResponse` that holds
this frame (mesh.proto gives both the same numbers); whoever keeps these bytes can send the same frame again and nothing
else. `decode` takes whatever protobuf takes, refuses the rest as `WireError`, and never looks beyond the bytes given.

Source: protobuf.dev/programming-guides/encoding (varints, tags, length-delimited fields).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from google.protobuf.message import DecodeError

from veil.errors import WireError
from veil.mpc.transport import Payload
from veil.wire.v1 import mesh_pb2

PIECE_BYTES = 2**20  # 1 MiB, the largest payload of one frame (mesh.proto)
MOST_BYTES = PIECE_BYTES + 64
"""Of any message of the stream: a frame with its numbers."""
# Below this protobuf's own parser, which copies, is faster than reading by hand.
_BY_HAND_BYTES = 32 * 2**10
# Tag of the body `frame` in its envelope; within it: sequence 0x08, payload 0x12, last 0x18.
_BODY_FRAME = 0x12
_SHORT = [bytes([value]) for value in range(0x80)]


class Frame(NamedTuple):
    """A piece of a message."""

    sequence: int
    payload: bytes | memoryview
    last: bool


Body = Frame | mesh_pb2.MeshHello | mesh_pb2.Acknowledgement | mesh_pb2.Goodbye | None


def encode(sequence: int, last: bool, *payload: Payload) -> bytes:
    """The bytes of one frame; `payload` are the parts of its payload. The one copy that sending makes."""
    size_bytes = sum(map(len, payload))
    head = b"\x08%b%b\x12%b" % (_varint(sequence), b"\x18\x01" if last else b"", _varint(size_bytes))
    return b"".join((b"\x12", _varint(len(head) + size_bytes), head, *payload))


def encode_message(sequence: int, parts: Sequence[Payload]) -> Iterator[bytes]:
    """The frames of one message that consists of `parts`, numbered from `sequence`."""
    views = [memoryview(part).cast("B") for part in parts if len(part)]
    left = sum(len(view) for view in views)
    while True:
        room, piece = PIECE_BYTES, list[memoryview]()
        while views and room:
            piece.append(views[0][:room])
            room -= len(piece[-1])
            views[0] = views[0][len(piece[-1]) :]
            if not views[0]:
                views.pop(0)
        left -= PIECE_BYTES - room
        yield encode(sequence, left == 0, *piece)
        if left == 0:
            return
        sequence += 1


def hello(body: mesh_pb2.MeshHello) -> bytes:
    """The bytes of a hello."""
    return mesh_pb2.ExchangeRequest(hello=body).SerializeToString()


def acknowledgement(received: int) -> bytes:
    """The bytes that say how many frames have arrived."""
    return mesh_pb2.ExchangeRequest(acknowledgement=mesh_pb2.Acknowledgement(received=received)).SerializeToString()


def goodbye(frames: int) -> bytes:
    """The bytes that say that no frame follows."""
    return mesh_pb2.ExchangeRequest(goodbye=mesh_pb2.Goodbye(frames=frames)).SerializeToString()


def decode(raw: bytes) -> Body:
    """What one message of the stream holds, None for a body that this version does not know. Raises `WireError`.

    The payload of a large frame is a view into `raw`.
    """
    if len(raw) >= _BY_HAND_BYTES and raw[0] == _BODY_FRAME:
        frame = _large_frame(raw)
        if frame is not None:
            return frame
    try:
        message = mesh_pb2.ExchangeRequest.FromString(raw)
    except DecodeError:
        raise WireError(f"got {len(raw)} bytes that are no message of the mesh, expected Protocol Buffers") from None
    kind = message.WhichOneof("body")
    if kind == "frame":
        body = message.frame
        return Frame(body.sequence, body.payload, body.last)
    if kind == "hello":
        return message.hello
    if kind == "acknowledgement":
        return message.acknowledgement
    return message.goodbye if kind == "goodbye" else None


def _large_frame(raw: bytes) -> Frame | None:
    """A frame in the order in which `encode` writes; None for any other bytes, which protobuf then judges."""
    size_bytes, at = _read_varint(raw, 1)
    if at + size_bytes != len(raw) or raw[at : at + 1] != b"\x08":
        return None
    sequence, at = _read_varint(raw, at + 1)
    last = raw[at : at + 2] == b"\x18\x01"
    at += 2 if last else 0
    if raw[at : at + 1] != b"\x12":
        return None
    size_bytes, at = _read_varint(raw, at + 1)
    return Frame(sequence, memoryview(raw)[at:], last) if at + size_bytes == len(raw) else None


def _varint(value: int) -> bytes:
    if value < 0x80:
        return _SHORT[value]
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _read_varint(raw: bytes, at: int) -> tuple[int, int]:
    """Value and position behind it; a position beyond the end where there is none."""
    value = shift = 0
    for position in range(at, min(at + 10, len(raw))):
        value |= (raw[position] & 0x7F) << shift
        if raw[position] < 0x80:
            return value, position + 1
        shift += 7
    return 0, len(raw) + 1
