"""Bounded queues: order, what stays readable after the end, waiting for room, frames that do not fit."""

from __future__ import annotations

import threading
import tracemalloc

import pytest

from veil.errors import PeerLost, ProtocolMismatch
from veil.mpc.link import PIECE_BYTES, Assembler, Inbox, Outbox
from veil.mpc.loopback import SocketTransport, socket_pairs
from veil.mpc.mesh_frames import Frame, decode, encode_message
from veil.mpc.transport import Meter, PeerSilent, Traffic


def test_inbox_keeps_order_and_hands_out_what_came_before_the_end() -> None:
    inbox = Inbox("alpha")
    assert inbox.put(b"1") and inbox.put(b"2")
    inbox.end(PeerLost("gone", culprits=("alpha",)), orderly=True)
    inbox.end(PeerLost("later"))
    assert not inbox.put(b"3")
    assert [inbox.get(0), inbox.get(0)] == [b"1", b"2"]
    with pytest.raises(PeerLost, match="gone"):
        inbox.get(0)
    assert inbox.ended is not None and inbox.ended.orderly


def test_a_full_inbox_makes_the_reader_wait_until_the_protocol_catches_up() -> None:
    inbox = Inbox("alpha", limit_bytes=10)
    assert inbox.put(bytes(10))
    second = threading.Thread(target=inbox.put, args=(b"x",))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    inbox.get(1)
    second.join(5)
    assert not second.is_alive() and inbox.get(1) == b"x"


def test_a_full_outbox_waits_and_then_blames_the_peer() -> None:
    outbox = Outbox("alpha", limit_bytes=10, timeout_s=0.1)
    outbox.put(bytes(10))
    with pytest.raises(PeerLost, match="unsent to alpha") as caught:
        outbox.put(b"x")
    assert caught.value.culprits == ("alpha",)


def test_silence_is_told_from_the_end() -> None:
    inbox = Inbox("alpha")
    with pytest.raises(PeerSilent, match=r"from alpha in 0\.05 s"):
        inbox.get(0.05)
    inbox.end(PeerLost("gone"))
    for _ in range(2):
        with pytest.raises(PeerLost, match="gone") as caught:
            inbox.get(1)
        assert not isinstance(caught.value, PeerSilent)


def test_a_listener_hears_of_every_message_and_of_the_end() -> None:
    inbox, heard = Inbox("alpha"), list[bool]()
    inbox.listen(heard.append)
    assert not inbox.ready()
    inbox.put(b"1")
    assert inbox.ready() and heard == [False]
    inbox.end(PeerLost("gone"))
    inbox.end(PeerLost("again"))
    assert heard == [False, True]


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 5])
def test_messages_survive_being_cut_and_joined(size: int) -> None:
    assembler, sequence, joined = Assembler("alpha"), 0, list[bytes]()
    for message in (bytes([7]) * size, b"next"):
        for raw in encode_message(sequence, (message[:3], memoryview(message)[3:])):
            frame = decode(raw)
            assert isinstance(frame, Frame) and frame.sequence == sequence and len(frame.payload) <= PIECE_BYTES
            whole = assembler.add(*frame)
            joined += [] if whole is None else [bytes(whole)]
            sequence += 1
    assert joined == [bytes([7]) * size, b"next"]
    assert assembler.received == sequence


def test_a_closed_outbox_gives_out_what_it_has() -> None:
    outbox = Outbox("alpha")
    outbox.put(b"1")
    outbox.put(b"2")
    outbox.close()
    assert list(outbox.messages()) == [b"1", b"2"] and outbox.drained(0)
    with pytest.raises(PeerLost):
        outbox.put(b"x")


@pytest.mark.parametrize(
    ("sequence", "payload", "last", "expected"),
    [
        (2, b"x", True, "frame 2.*frame 1"),
        (0, b"x", True, "frame 0.*frame 1"),
        (1, bytes(PIECE_BYTES + 1), True, "at most 1048576"),
        (1, b"", False, "empty frame"),
        (1, bytes(60), False, "more than 100 bytes"),
    ],
)
def test_frames_that_do_not_fit_end_the_stream(sequence: int, payload: bytes, last: bool, expected: str) -> None:
    assembler = Assembler("alpha", limit_bytes=100)
    assembler.add(0, bytes(60), False)
    with pytest.raises(ProtocolMismatch, match=expected) as caught:
        assembler.add(sequence, payload, last)
    assert caught.value.culprits == ("alpha",)


def test_a_message_of_tiny_pieces_costs_no_more_than_its_size() -> None:
    assembler, count = Assembler("alpha"), 100_000
    tracemalloc.start()
    for sequence in range(count):
        assembler.add(sequence, (sequence % 256).to_bytes(1, "big") + b"x", False)
    held_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held_bytes < 4 * 2 * count
    message = assembler.add(count, b"", True)
    assert message is not None and len(message) == 2 * count


def test_socket_transports_deliver_and_notice_the_end() -> None:
    ends = socket_pairs(2)
    first, second = (SocketTransport(rank, ends[rank]) for rank in range(2))
    first.send(1, bytes(3 * 2**20))
    first.send(1, b"")
    assert (len(second.recv(0, 5)), second.recv(0, 5)) == (3 * 2**20, b"")
    first.close()
    with pytest.raises(PeerLost):
        second.recv(0, 5)
    second.close()
    with pytest.raises(PeerLost):
        first.recv(1, 5)
    assert first.meter.total() == Traffic(bytes_sent=3 * 2**20, messages_sent=2)


def test_meter_counts_by_peer() -> None:
    meter = Meter()
    assert meter.total() == Traffic()
    meter.sent(1, 10)
    meter.received(2, 5)
    assert meter.peers() == {1: Traffic(10, 1, 0, 0), 2: Traffic(0, 0, 5, 1)}
    assert meter.total() == Traffic(10, 1, 5, 1)
