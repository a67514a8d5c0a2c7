"""What is kept for a stream that may break: bounds, order, the same bytes again, and the end."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from veil.errors import PeerLost, ProtocolMismatch
from veil.mpc import mesh_frames
from veil.mpc.mesh_outbox import FrameOutbox, Stream
from veil.wire.v1 import mesh_pb2


def stream() -> Stream:
    return Stream(lambda: None)


def attached(outbox: FrameOutbox, received: int = 0) -> tuple[Stream, Iterator[bytes]]:
    one = stream()
    outbox.attach(one, received)
    return one, outbox.items(one)


def take(items: Iterator[bytes], count: int) -> list[bytes]:
    return [next(items) for _ in range(count)]


def test_no_more_leaves_than_is_kept_until_the_peer_acknowledges() -> None:
    outbox = FrameOutbox("alpha", kept_bytes=250)
    for number in range(5):
        outbox.put(bytes([number]) * 100)
    _, items = attached(outbox)
    assert [raw[-1] for raw in take(items, 3)] == [0, 1, 2]
    found: list[bytes] = []
    taker = threading.Thread(target=lambda: found.append(next(items)))
    taker.start()
    taker.join(0.2)
    assert taker.is_alive()
    outbox.acknowledge(1)
    taker.join(5)
    assert [raw[-1] for raw in found] == [3]


def test_a_message_waits_for_room_and_then_blames_the_peer() -> None:
    outbox = FrameOutbox("alpha", limit_bytes=100, timeout_s=0.1)
    outbox.put(bytes(200))
    with pytest.raises(PeerLost, match="unsent to alpha") as caught:
        outbox.put(b"x")
    assert caught.value.culprits == ("alpha",)


def test_a_second_stream_gets_the_same_bytes_from_where_the_peer_is_and_the_first_gets_nothing() -> None:
    outbox = FrameOutbox("alpha")
    data = bytearray(b"abc")
    for _ in range(4):
        outbox.put(b"head", memoryview(data))
        data[0] += 1
    _, first = attached(outbox)
    sent = take(first, 3)
    _, second = attached(outbox, received=1)
    assert list(first) == []
    assert take(second, 2) == sent[1:]
    assert next(second) == mesh_frames.encode(3, True, b"headdbc")
    _, third = attached(outbox, received=4)  # all of them: nothing is left to send
    outbox.put(b"more")
    assert next(third) == mesh_frames.encode(4, True, b"more")


@pytest.mark.parametrize("received", [0, 4])
def test_a_peer_cannot_ask_for_what_it_has_acknowledged_or_was_never_sent(received: int) -> None:
    outbox = FrameOutbox("alpha")
    for _ in range(5):
        outbox.put(b"x")
    _, items = attached(outbox)
    take(items, 3)
    outbox.acknowledge(1)
    with pytest.raises(ProtocolMismatch, match="expected 1 to 3") as caught:
        outbox.attach(stream(), received)
    assert caught.value.culprits == ("alpha",)
    with pytest.raises(ProtocolMismatch, match="at most 3"):
        outbox.acknowledge(4)


def test_the_goodbye_is_last_and_the_stream_ends_when_it_is_answered() -> None:
    outbox = FrameOutbox("alpha")
    one, items = attached(outbox)
    outbox.put(b"x")
    outbox.close()
    outbox.owe(7)
    bodies = [mesh_frames.decode(raw) for raw in take(items, 3)]
    assert bodies == [
        mesh_pb2.Acknowledgement(received=7),
        mesh_frames.Frame(0, b"x", True),
        mesh_pb2.Goodbye(frames=1),
    ]
    assert not outbox.settled(0.1, 0.1)
    with pytest.raises(PeerLost):
        outbox.put(b"y")
    outbox.leave_alone()
    assert list(items) == [] and outbox.settled(5, 5)
    assert outbox.detach(one) and not outbox.detach(one)


def test_an_error_drops_what_is_kept() -> None:
    outbox = FrameOutbox("alpha")
    outbox.put(b"x")
    outbox.close(PeerLost("gone"))
    _, items = attached(outbox)
    assert list(items) == []
    with pytest.raises(PeerLost, match="gone"):
        outbox.put(b"y")


def test_a_goodbye_that_a_new_stream_has_to_repeat_has_not_left() -> None:
    outbox = FrameOutbox("alpha")
    _, first = attached(outbox)
    outbox.close()
    outbox.leave_alone()
    assert list(first) == [mesh_frames.goodbye(0)]
    _, second = attached(outbox)  # the first one broke
    waiting = threading.Thread(target=lambda: outbox.settled(20, 20))
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    assert list(second) == [mesh_frames.goodbye(0)]
    waiting.join(0.5)
    assert not waiting.is_alive()
