"""A worker's only connection: messages, control, corrections, errors by class, and the death of either side."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from veil.errors import BudgetError, DataError, PeerLost, StateError, VeilError, WireError
from veil.mpc.faults import from_document, to_document
from veil.mpc.loopback import LoopbackTransport, loopback
from veil.mpc.relay import MAX_CONTROL_BYTES, WINDOW_MESSAGES, RelayHub, RelayTransport
from veil.mpc.transport import MAX_MESSAGE_BYTES
from veil.wire.v1 import dealer_pb2


class Site:
    """A daemon and its worker at rank 0, and the bare transports of the other parties."""

    def __init__(self) -> None:
        mesh, *self.others = loopback(3)
        self.mesh: LoopbackTransport = mesh
        inside, self.outside = socket.socketpair()
        self.gone = threading.Event()
        self.hub = RelayHub(self.outside, mesh, handle, correct, on_worker_gone=self.gone.set)
        self.hub.start()
        self.worker = RelayTransport(inside, 0, 3)

    def close(self) -> None:
        self.worker.close()
        assert self.hub.wait(10)


def handle(kind: str, body: dict[str, Any]) -> dict[str, Any]:
    if kind == "budget":
        raise BudgetError("got 2, expected at most 1", hint="wait")
    if kind == "lost":
        raise PeerLost("gone", culprits=("beta",))
    if kind == "broken":
        raise ZeroDivisionError
    return {"kind": kind, **body}


def correct(request: dealer_pb2.CorrectRequest) -> bytes:
    if request.index == 99:
        raise StateError("got index 99, expected 0")
    return bytes([request.index]) * 300_000


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.close()


def test_messages_of_any_size_both_ways_in_order(site: Site) -> None:
    sizes = [0, 1, 5 * 2**20, 17]
    for size in sizes:
        site.worker.send(2, bytes([1]) * size)
        site.others[1].send(0, bytes([2]) * size)
    assert [len(site.others[1].recv(0, 5)) for _ in sizes] == sizes
    assert [len(site.worker.recv(2, 5)) for _ in sizes] == sizes
    assert site.worker.meter.total().bytes_sent == sum(sizes) == site.mesh.meter.total().bytes_sent


def test_control_requests_and_their_errors(site: Site) -> None:
    assert site.worker.request("echo", {"a": [1, 2]}) == {"kind": "echo", "a": [1, 2]}
    with pytest.raises(BudgetError, match="got 2") as budget:
        site.worker.request("budget", {})
    assert budget.value.hint == "wait"
    with pytest.raises(PeerLost) as lost:
        site.worker.request("lost", {})
    assert lost.value.culprits == ("beta",)
    with pytest.raises(StateError, match="failed to answer"):
        site.worker.request("broken", {})
    with pytest.raises(WireError, match="at most 1048576"):
        site.worker.request("large", {"x": "x" * MAX_CONTROL_BYTES})
    assert site.worker.request("echo", {}) == {"kind": "echo"}  # still alive


def test_a_request_is_asked_first_and_waited_for_later(site: Site) -> None:
    early, refused = site.worker.ask("echo", {"n": 1}), site.worker.ask("budget", {})
    site.others[0].send(0, b"in between")
    assert site.worker.recv(1, 5) == b"in between"
    assert site.worker.request("echo", {"n": 2})["n"] == 2
    with pytest.raises(BudgetError):
        refused(5.0)
    assert early(5.0)["n"] == 1
    with pytest.raises(BudgetError):
        refused(5.0)  # and again: a refusal stays one


def test_corrections_are_binary_and_carry_errors(site: Site) -> None:
    assert site.worker.correct(dealer_pb2.CorrectRequest(index=7)) == bytes([7]) * 300_000
    with pytest.raises(StateError, match="index 99"):
        site.worker.correct(dealer_pb2.CorrectRequest(index=99))


def test_a_flooding_peer_delays_nobody_else(site: Site) -> None:
    for number in range(50):
        site.others[0].send(0, bytes([number]))
    site.others[1].send(0, b"quiet")
    assert site.worker.recv(2, 5) == b"quiet"
    assert site.worker.request("echo", {}) == {"kind": "echo"}
    assert site.mesh.meter.peers()[1].messages_received <= WINDOW_MESSAGES
    assert [site.worker.recv(1, 5)[0] for _ in range(50)] == list(range(50))


def test_threads_of_the_worker_read_for_each_other(site: Site) -> None:
    """One waits long for a peer, others come and go; whoever reads hands over when it has what it came for."""
    with ThreadPoolExecutor(4) as pool:
        slow = pool.submit(site.worker.recv, 1, 10)
        answers = [pool.submit(site.worker.request, "echo", {"n": number}) for number in range(30)]
        corrections = [pool.submit(site.worker.correct, dealer_pb2.CorrectRequest(index=number)) for number in range(9)]
        quick = pool.submit(site.worker.recv, 2, 10)
        assert [answer.result(10)["n"] for answer in answers] == list(range(30))
        assert [correction.result(10)[0] for correction in corrections] == list(range(9))
        site.others[1].send(0, b"quick")
        assert quick.result(10) == b"quick"
        site.others[0].send(0, b"slow")
        assert slow.result(10) == b"slow"


def test_large_messages_cross_though_nobody_reads_while_writing(site: Site) -> None:
    """More than any socket buffer holds in both directions at once: a blocked write lets the other side's through."""
    large = bytes(range(256)) * 2**16  # 16 MiB
    for number in range(3):
        site.others[0].send(0, large[number:])
    for number in range(3):
        site.worker.send(1, large[number:])
    assert site.worker.request("echo", {}) == {"kind": "echo"}
    for number in range(3):
        assert site.worker.recv(1, 10) == large[number:]
        assert site.others[0].recv(0, 10) == large[number:]


def test_the_loss_of_a_peer_reaches_the_worker(site: Site) -> None:
    site.others[0].send(0, b"last words")
    site.others[0].close()
    assert site.worker.recv(1, 5) == b"last words"
    with pytest.raises(PeerLost) as caught:
        site.worker.recv(1, 5)
    assert caught.value.culprits == ("rank-1",)
    site.others[1].send(0, b"here")
    assert site.worker.recv(2, 5) == b"here"


def test_silence_of_a_peer_times_out(site: Site) -> None:
    with pytest.raises(PeerLost, match=r"0.1 s"):
        site.worker.recv(1, 0.1)


def test_the_death_of_the_worker_is_noticed_by_daemon_and_peers() -> None:
    site = Site()
    site.worker.close()  # what the kernel does for a process that dies
    assert site.hub.wait(5) and site.gone.wait(5)
    with pytest.raises(PeerLost):
        site.others[0].recv(0, 5)


def test_the_death_of_the_daemon_is_noticed_by_the_worker() -> None:
    site = Site()
    site.hub.close()
    with pytest.raises(PeerLost, match="daemon"):
        site.worker.recv(1, 5)
    with pytest.raises(PeerLost):
        site.worker.request("echo", {})
    site.close()


@pytest.mark.parametrize(
    "garbage",
    [struct.pack("<IBB", MAX_MESSAGE_BYTES + 1, 1, 1), struct.pack("<IBB", 2**31, 4, 0), struct.pack("<IBB", 0, 1, 9)],
)
def test_a_frame_beyond_its_bound_ends_the_worker_not_the_daemon(garbage: bytes) -> None:
    mesh, _ = loopback(2)
    inside, outside = socket.socketpair()
    hub = RelayHub(outside, mesh, handle)
    hub.start()
    inside.sendall(garbage)
    assert hub.wait(5)
    inside.close()


@pytest.mark.parametrize(
    "error",
    [VeilError("a"), StateError("b", hint="c"), PeerLost("d", culprits=("x", "y")), DataError("e", lines=(1, 2))],
)
def test_errors_keep_class_and_content(error: VeilError) -> None:
    again = from_document(to_document(error))
    assert type(again) is type(error) and str(again) == str(error)
    assert vars(again) == vars(error)


def test_unreadable_errors_become_plain_ones() -> None:
    assert type(from_document({"code": "NEW", "message": 3})) is VeilError
    assert type(from_document(None)) is VeilError
