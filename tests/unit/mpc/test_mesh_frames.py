"""Frames as bytes: equal to protobuf's encoding, and nothing is read that is not there."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veil.errors import WireError
from veil.mpc import mesh_frames
from veil.mpc.mesh_frames import PIECE_BYTES, Frame
from veil.wire.v1 import mesh_pb2

SIZES = [0, 1, 127, 128, 40_000, PIECE_BYTES]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sequence", [0, 1, 127, 128, 2**32, 2**64 - 1])
@pytest.mark.parametrize("last", [True, False])
def test_protobuf_reads_what_is_encoded_and_the_other_way_round(size: int, sequence: int, last: bool) -> None:
    payload = hashlib.shake_128(b"x").digest(size)
    raw = mesh_frames.encode(sequence, last, payload[:5], b"", memoryview(payload)[5:])
    for kind in (mesh_pb2.ExchangeRequest, mesh_pb2.ExchangeResponse):
        body = kind.FromString(raw).frame
        assert (body.sequence, body.payload, body.last) == (sequence, payload, last)
    assert mesh_frames.decode(raw) == Frame(sequence, payload, last)
    theirs = mesh_pb2.ExchangeRequest(frame=mesh_pb2.Frame(sequence=sequence, payload=payload, last=last))
    assert mesh_frames.decode(theirs.SerializeToString()) == Frame(sequence, payload, last)


def test_a_large_payload_is_not_copied_when_read() -> None:
    raw = mesh_frames.encode(300, True, bytes(PIECE_BYTES))
    frame = mesh_frames.decode(raw)
    assert isinstance(frame, Frame) and isinstance(frame.payload, memoryview) and frame.payload.obj is raw


def test_handshake_and_bookkeeping() -> None:
    hello = mesh_pb2.MeshHello(job_id="job", session=b"s" * 16, received=7)
    assert mesh_frames.decode(mesh_frames.hello(hello)) == hello
    acknowledgement, goodbye = (
        mesh_frames.decode(mesh_frames.acknowledgement(5)),
        mesh_frames.decode(mesh_frames.goodbye(6)),
    )
    assert isinstance(acknowledgement, mesh_pb2.Acknowledgement) and acknowledgement.received == 5
    assert isinstance(goodbye, mesh_pb2.Goodbye) and goodbye.frames == 6
    assert mesh_frames.decode(b"") is None


LARGE = mesh_frames.encode(300, True, bytes(40_000))


@pytest.mark.parametrize(
    "raw",
    [
        LARGE[:-1],
        LARGE + b"\0",
        b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff" + bytes(40_000),
        b"\x12" + b"\xff" * 40_000,
        b"\xff" * 10,
    ],
)
def test_what_is_no_message_is_refused(raw: bytes) -> None:
    with pytest.raises(WireError):
        mesh_frames.decode(raw)


@given(position=st.integers(0, 12), value=st.integers(0, 255))
def test_a_changed_head_is_read_as_protobuf_reads_it_or_refused(position: int, value: int) -> None:
    raw = bytearray(LARGE)
    raw[position] = value
    try:
        found = mesh_frames.decode(bytes(raw))
    except WireError:
        return
    if isinstance(found, Frame):
        body = mesh_pb2.ExchangeRequest.FromString(bytes(raw)).frame
        assert (body.sequence, body.payload, body.last) == found
