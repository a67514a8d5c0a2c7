"""Messages over gloo: whole, in order, bounded; who is lost is named; addresses come from peers alone."""

from __future__ import annotations

import logging
import os
import struct
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from veil.errors import ConfigError, InputError, PeerLost, ProtocolMismatch, StateError
from veil.mpc import gloo_plane
from veil.mpc.communicator import TensorCommunicator
from veil.mpc.gloo_meeting import AddressBook
from veil.mpc.gloo_plane import HEAD_BYTES, GlooPlane
from veil.mpc.loopback import LoopbackTransport, loopback
from veil.mpc.transport import MAX_MESSAGE_BYTES, PeerSilent, Traffic

NAMES = ("alpha", "beta", "gamma")


def connected(size: int, meetings: list[LoopbackTransport] | None = None) -> list[GlooPlane]:
    meetings = meetings or loopback(size)
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda meeting: GlooPlane.connect(meeting, NAMES[:size], "127.0.0.1", 20), meetings))


def close_all(planes: list[GlooPlane]) -> None:
    with ThreadPoolExecutor(len(planes)) as pool:
        list(pool.map(lambda plane: plane.close(), planes))


@pytest.fixture
def planes() -> Iterator[list[GlooPlane]]:
    found = connected(3)
    yield found
    close_all(found)


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[GlooPlane]]:
    found = connected(2)
    yield found
    monkeypatch.setattr(gloo_plane, "_LINGER_S", 0.2)
    close_all(found)


def own_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("gloo-")]


def test_messages_arrive_whole_in_order_and_are_counted(planes: list[GlooPlane]) -> None:
    sizes = (0, 1, HEAD_BYTES - 1, HEAD_BYTES, HEAD_BYTES + 1, 3_000_001, 0, 5)
    messages = [os.urandom(size) for size in sizes]
    for source in planes:
        for target in range(3):
            if target != source.rank:
                for message in messages:
                    parts = [bytearray(message[:3]), np.frombuffer(message[3:], dtype=np.uint8).data]
                    source.send(target, *parts)
                    parts[0][:] = bytes(len(parts[0]))  # the caller may write into them
    for target in planes:
        for peer in range(3):
            if peer != target.rank:
                assert [bytes(target.recv(peer, 10)) for _ in messages] == messages
    total = sum(sizes)
    traffic = Traffic(total, len(sizes), total, len(sizes))
    assert planes[1].meter.peers() == {0: traffic, 2: traffic}


def test_many_messages_do_not_wait_for_a_reader_and_memory_is_given_back(pair: list[GlooPlane]) -> None:
    for number in range(500):
        pair[0].send(1, struct.pack("<I", number), bytes(20_000))
    assert [struct.unpack_from("<I", pair[1].recv(0, 10))[0] for _ in range(500)] == list(range(500))
    until = time.monotonic() + 10
    while len(pair[0]._pairs[1].sent) > 16 and time.monotonic() < until:
        time.sleep(0.01)
    assert len(pair[0]._pairs[1].sent) <= 16


def test_a_message_beyond_the_bound_is_not_sent(pair: list[GlooPlane]) -> None:
    with pytest.raises(InputError):
        pair[0].send(1, memoryview(np.zeros(1, np.uint8)), np.broadcast_to(np.uint8(0), MAX_MESSAGE_BYTES).data)
    with pytest.raises(StateError):
        pair[0].send(0, b"to myself")


def test_a_length_beyond_the_bound_is_refused_before_memory_is_taken(pair: list[GlooPlane]) -> None:
    pair[0]._put(1, MAX_MESSAGE_BYTES + 1, [b"x"])
    with pytest.raises(ProtocolMismatch) as caught:
        pair[1].recv(0, 10)
    assert caught.value.culprits == ("alpha",)
    with pytest.raises(ProtocolMismatch):
        pair[1].send(0, b"x")


def test_silence_is_no_end(pair: list[GlooPlane]) -> None:
    with pytest.raises(PeerSilent, match="beta"):
        pair[0].recv(1, 0.05)
    pair[1].send(0, b"late")
    assert bytes(pair[0].recv(1, 10)) == b"late"


def test_who_leaves_in_order_takes_no_message_along_and_is_named(planes: list[GlooPlane]) -> None:
    planes[2].send(0, b"last")
    planes[2].close()
    assert bytes(planes[0].recv(2, 10)) == b"last"
    for act in (lambda: planes[0].recv(2, 10), lambda: planes[0].send(2, b"x")):
        with pytest.raises(PeerLost) as caught:
            act()
        assert caught.value.culprits == ("gamma",)
    planes[0].send(1, b"others go on")
    assert bytes(planes[1].recv(0, 10)) == b"others go on"


def test_a_connection_that_breaks_names_its_peer_and_ends_every_thread(pair: list[GlooPlane]) -> None:
    ended = threading.Event()
    pair[0].listen(1, lambda end: ended.set() if end else None)
    pair[1]._break_off()
    assert ended.wait(10)
    with pytest.raises(PeerLost) as caught:
        pair[0].recv(1, 10)
    assert caught.value.culprits == ("beta",)
    with pytest.raises(PeerLost):
        pair[0].send(1, b"x")
    close_all(pair)
    assert own_threads() == []


def test_a_peer_that_does_not_answer_the_goodbye_holds_nobody(
    pair: list[GlooPlane], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gloo_plane, "_LINGER_S", 0.3)
    monkeypatch.setattr(pair[1], "_say_goodbye", lambda peer: None)
    pair[0].close()
    until = time.monotonic() + 10
    while any(thread.is_alive() for one in pair[0]._pairs.values() for thread in (one.reader,) if thread is not None):
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_peer_that_the_meeting_loses_is_lost_here_though_its_connection_stands() -> None:
    meetings = loopback(2)
    planes = connected(2, meetings)
    planes[0].watch(meetings[0])
    meetings[1].close()
    with pytest.raises(PeerLost, match="has closed"):
        planes[0].recv(1, 10)
    close_all(planes)
    assert not any(name.startswith(("gloo-read", "gloo-sent")) for name in own_threads())


def test_what_it_gives_up_is_said_at_every_start(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="veil.mpc"):
        close_all(connected(2))
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2
    for words in ("no encryption", "no authentication", "no reconnection"):
        assert words in warnings[0].getMessage()


def test_a_communicator_sums_over_it(pair: list[GlooPlane]) -> None:
    def act(plane: GlooPlane) -> list[torch.Tensor]:
        communicator = TensorCommunicator(plane, NAMES[:2], 15)
        own = torch.arange(50_000, dtype=torch.int64) * (plane.rank + 1) + 2**62
        return [communicator.all_reduce(own), communicator.all_reduce(own[:3])]

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(act, pair)
    expected = torch.arange(50_000, dtype=torch.int64) * 3 - 2**63
    assert torch.equal(first[0], expected) and torch.equal(second[0], expected)
    assert torch.equal(first[1], expected[:3])


# How they meet -----------------------------------------------------------------------------------------------------


def test_a_host_of_another_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match="gloo"):
        GlooPlane.connect(loopback(2)[0], NAMES[:2], "192.0.2.1", 1)


def test_who_tells_no_address_is_named() -> None:
    with pytest.raises(PeerLost, match="no address of gloo from beta") as caught:
        GlooPlane.connect(loopback(2)[0], NAMES[:2], "127.0.0.1", 0.2)
    assert caught.value.culprits == ("beta",)
    with pytest.raises(InputError):
        GlooPlane.connect(loopback(2)[0], NAMES, "127.0.0.1", 0.2)


def test_addresses_of_another_length_never_reach_gloo() -> None:
    meetings = loopback(2)
    meetings[1].send(0, b"x" * 40)
    with pytest.raises(ProtocolMismatch, match="40 bytes from beta") as caught:
        GlooPlane.connect(meetings[0], NAMES[:2], "127.0.0.1", 2)
    assert caught.value.culprits == ("beta",)


def test_only_own_addresses_are_told_once_and_of_bounded_size() -> None:
    meetings: list[Any] = loopback(2)
    meetings[1].send(0, b"theirs")
    book = AddressBook(meetings[0], NAMES[:2], 1)
    for key, value in (("0/1", b"own"), ("0/0", b""), ("0/0", bytes(65_537))):
        with pytest.raises(StateError):
            book.set(key, value)
    with pytest.raises(StateError):
        book.wait(["0/1"])
    book.set("0/0", b"own123")
    book.wait(["0/0", "0/1"])
    assert (book.get("0/1"), book.get("0/0")) == (b"theirs", b"own123")
    with pytest.raises(StateError):
        book.set("0/0", b"again!")
    assert bytes(meetings[1].recv(0, 1)) == b"own123"
