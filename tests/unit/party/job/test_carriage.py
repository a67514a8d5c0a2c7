"""Messages through carriers: whole and in order between workers, none at daemons; whoever fails is named.

Carriers are threads here; tests/integration/test_joint_training.py runs a job through real ones.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import pytest
import torch

from party.job import carriage as daemons_part
from party.job.carriage import Carriage
from party.job.carrier import carry
from veil.errors import ConfigError, PeerError, PeerLost, StateError, VeilError, WireError
from veil.mpc.communicator import TensorCommunicator
from veil.mpc.loopback import LoopbackTransport, loopback
from veil.mpc.relay_divided import DividedRelay, NoPeers
from veil.mpc.relay_hub import RelayHub
from veil.mpc.transport import Traffic

NAMES = ("alpha", "beta")


class Threaded:
    """A carrier in a thread, in the place of a process."""

    def __init__(self, source: socket.socket, messages: socket.socket, rank: int, parties: int) -> None:
        self.failed: VeilError | None = None
        self._thread = threading.Thread(target=self._run, args=(source, messages, rank, parties))
        self._thread.start()

    def _run(self, *arguments: Any) -> None:
        try:
            carry(*arguments)
        except VeilError as error:
            self.failed = error

    def wait(self, timeout_s: float | None = None) -> None:
        self._thread.join(timeout_s)
        assert not self._thread.is_alive()


@pytest.fixture(autouse=True)
def in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(end: socket.socket, *, rank: int, parties: int, messages: socket.socket, module: str) -> Threaded:
        assert module == "party.job.carrier"
        return Threaded(end.dup(), messages.dup(), rank, parties)

    monkeypatch.setattr(daemons_part, "launch", launch)


def each(act: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    with ThreadPoolExecutor(len(items)) as pool:
        return list(pool.map(act, items))


def carried(meshes: list[LoopbackTransport]) -> tuple[list[Carriage], list[DividedRelay]]:
    """Carriers that are connected, and a worker at each, in this process."""
    carriages: list[Carriage] = [Carriage(mesh, NAMES, "127.0.0.1") for mesh in meshes]
    each(Carriage.wait_ready, carriages)
    workers = []
    for rank, carriage in enumerate(carriages):
        own_end, worker_end = socket.socketpair()
        RelayHub(own_end, NoPeers(), lambda kind, body: {"told": kind}).start()
        workers.append(DividedRelay(worker_end, carriage.messages.dup(), rank, len(meshes)))
        carriage.messages.close()
    return carriages, workers


def test_workers_meet_through_carriers_and_daemons_see_no_message() -> None:
    meshes = loopback(2)
    carriages, workers = carried(meshes)
    met = [mesh.meter.total() for mesh in meshes]
    assert [traffic.messages_sent for traffic in met] == [1, 1]  # the addresses
    messages = [b"", b"x", bytes(range(256)) * 4000]
    for worker in workers:
        for message in messages:
            worker.send(1 - worker.rank, message[:1], message[1:])
    for worker in workers:
        assert [bytes(worker.recv(1 - worker.rank, 10)) for _ in messages] == messages
        assert worker.request("init", {}) == {"told": "init"}
        assert worker.meter.total().messages_received == len(messages)
    assert [mesh.meter.total() for mesh in meshes] == met

    # beta leaves in order: what it has sent last arrives, then alpha hears that it has gone
    workers[1].send(0, b"last")
    workers[1].close()
    carriages[1].close()
    assert bytes(workers[0].recv(1, 10)) == b"last"
    with pytest.raises(PeerLost) as lost:
        workers[0].recv(1, 10)
    assert lost.value.culprits == ("beta",)
    workers[0].close()
    carriages[0].close()
    with pytest.raises(PeerLost):
        meshes[1].recv(0, 1)  # a carrier that ends takes its mesh with it


def test_a_worker_hears_of_a_peer_that_its_mesh_loses_and_of_the_end_of_its_carrier() -> None:
    meshes = loopback(2)
    carriages, workers = carried(meshes)
    meshes[1].close()
    with pytest.raises(PeerLost, match="has closed"):
        workers[0].recv(1, 10)
    carriages[1]._hub.close()  # as when its daemon dies
    with pytest.raises(PeerLost, match=r"gone|closed"):
        workers[1].recv(0, 10)
    workers[0]._carrier.close()
    with pytest.raises(StateError, match="carries this party's messages has gone"):
        workers[0].send(1, b"x")
    each(lambda worker: worker.close(), workers)
    each(Carriage.close, carriages)


def test_a_carrier_that_ends_is_not_taken_for_the_loss_of_a_peer() -> None:
    own_end, worker_end = socket.socketpair()
    RelayHub(own_end, NoPeers(), lambda kind, body: {}).start()
    messages, carrier_end = socket.socketpair()
    worker = DividedRelay(worker_end, messages, 0, 2)
    communicator = TensorCommunicator(worker, NAMES, 10.0)
    carrier_end.close()
    for act in (lambda: communicator.recv(torch.zeros(1), 1), communicator.barrier):
        with pytest.raises(StateError, match="carries this party's messages has gone"):
            act()
    worker.close()


def test_a_carrier_that_cannot_listen_tells_why() -> None:
    carriage = Carriage(loopback(2)[0], NAMES, "192.0.2.1")
    with pytest.raises(ConfigError, match="gloo"):
        carriage.wait_ready()
    carriage.close()


def test_a_carrier_that_ends_without_a_word_is_the_partys_own_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    class Dead:
        def wait(self, timeout_s: float | None = None) -> None:
            pass

    monkeypatch.setattr(daemons_part, "launch", lambda *ends, **options: Dead())
    mesh = loopback(2)[1]
    carriage = Carriage(mesh, NAMES, "127.0.0.1")
    with pytest.raises(PeerError) as caught:
        carriage.wait_ready()
    assert caught.value.culprits == ("beta",)
    carriage.close()


def test_neither_daemon_nor_carrier_takes_what_is_for_the_other() -> None:
    carriages, workers = carried(loopback(2))
    with pytest.raises(WireError):
        carriages[0]._answer("permit", {})
    workers[0].send(1, b"12345678")
    carriages[0].count(asdict(workers[0].meter.total()))
    assert carriages[0].passed == Traffic(8, 1, 0, 0)
    for passed in (None, {}, {**asdict(Traffic()), "bytes_sent": -1}, {**asdict(Traffic()), "bytes_sent": "8"}):
        with pytest.raises(WireError):
            carriages[0].count(passed)
    with pytest.raises(StateError, match="carrier"):
        workers[0]._carrier.request("permit", {})
    nobody = NoPeers()
    for act in (lambda: nobody.send(1, b"x"), lambda: nobody.recv(1, 0), lambda: nobody.listen(1, print)):
        with pytest.raises(StateError):
            act()
    each(lambda worker: worker.close(), workers)
    each(Carriage.close, carriages)
