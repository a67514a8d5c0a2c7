"""A connection that breaks within a job: what comes through, byte for byte, and who is named when it does not."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from tests.unit.mpc.network import Proxy
from veil.errors import PeerLost, ProtocolMismatch
from veil.identity.credentials import Credentials
from veil.mpc.communicator import TensorCommunicator
from veil.mpc.grpc_mesh import GrpcMesh, MeshServicer
from veil.wire.channel import RunningServer, serve

NAMES = ("alpha", "beta")
DIGEST = bytes(32)


class Path:
    """Alpha accepts and beta dials, through a proxy that the test controls."""

    def __init__(self, credentials: dict[str, Credentials]) -> None:
        self.credentials = [credentials[f"party-{name}"] for name in NAMES]
        self.servicers = [MeshServicer() for _ in NAMES]
        self.servers: list[RunningServer] = [
            serve("127.0.0.1:0", own, [servicer.service()])
            for own, servicer in zip(self.credentials, self.servicers, strict=True)
        ]
        self.proxy = Proxy(f"127.0.0.1:{self.servers[0].port}")
        self.meshes: list[GrpcMesh] = []

    def mesh(self, rank: int, **options: Any) -> GrpcMesh:
        roster = {"alpha": self.proxy.address, "beta": f"127.0.0.1:{self.servers[1].port}"}
        return GrpcMesh("job", DIGEST, NAMES[rank], roster, self.credentials[rank], self.servicers[rank], **options)

    def connect(self, **options: Any) -> list[GrpcMesh]:
        self.meshes = [self.mesh(rank, **options) for rank in range(2)]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda mesh: mesh.connect(20), self.meshes))
        return self.meshes

    def close(self) -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda mesh: mesh.close(), self.meshes))
        self.proxy.close()
        for server in self.servers:
            server.stop(0)


@pytest.fixture
def path(credentials: dict[str, Credentials]) -> Iterator[Path]:
    path = Path(credentials)
    yield path
    path.close()


def test_messages_arrive_once_and_in_order_across_many_cuts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("veil.mpc.pauses.MOST_S", 0.02)  # many cuts, not much waiting between them
    meshes = path.connect()
    count, done = 200, threading.Event()

    def payload(sender: int, number: int) -> bytes:
        size = (0, 17, 9_000, 300_000, 2_500_000)[number % 5]
        return hashlib.shake_128(bytes([sender, number % 256])).digest(size)

    def cut() -> None:
        while not done.wait(0.25):
            path.proxy.cut()

    def act(rank: int) -> None:
        for number in range(count):
            meshes[rank].send(1 - rank, payload(rank, number))
            assert meshes[rank].recv(1 - rank, 30) == payload(1 - rank, number)

    cutter = threading.Thread(target=cut)
    cutter.start()
    try:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(act, range(2)))
    finally:
        done.set()
        cutter.join()
    pair = meshes[1]._pairs[0]
    assert pair.streams > 1 and path.proxy.connections >= pair.streams


def test_a_stream_that_breaks_whenever_it_is_up_is_not_dialled_without_a_pause(path: Path) -> None:
    meshes, began = path.connect(), time.monotonic()
    pair, streams = meshes[1]._pairs[0], 0
    while pair.streams < 5:
        if pair.streams > streams:
            streams = pair.streams
            path.proxy.cut()
        time.sleep(0.005)
    # Before the fifth stream lie at least halves of 0.05, 0.1, 0.2 and 0.4 s.
    assert time.monotonic() - began >= 0.375


def test_a_long_path_comes_up_and_comes_back(path: Path) -> None:
    """A connection takes three round trips and more: here about a second and a half, as on a machine that is busy."""
    path.proxy.delay_s = 0.25
    meshes = path.connect()
    for message in (b"before", b"after a break"):
        meshes[1].send(0, message)
        assert meshes[0].recv(1, 20) == message
        path.proxy.cut()


def test_what_goes_out_again_is_the_same_bytes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every frame that either end ever hands to gRPC, by number: no number with two contents."""
    from veil.mpc import mesh_frames
    from veil.mpc.mesh_outbox import FrameOutbox

    seen: dict[tuple[int, int], set[bytes]] = {}
    repeated = 0
    original = FrameOutbox.items

    def items(self: FrameOutbox, stream: Any) -> Iterator[bytes]:
        nonlocal repeated
        for item in original(self, stream):
            body = mesh_frames.decode(item)
            if isinstance(body, mesh_frames.Frame):
                frames = seen.setdefault((id(self), body.sequence), set())
                repeated += bool(frames)
                frames.add(item)
            yield item

    monkeypatch.setattr(FrameOutbox, "items", items)
    meshes = path.connect()
    secret = torch.arange(300_000)
    parties = [TensorCommunicator(mesh.transport(), NAMES, timeout_s=30) for mesh in meshes]

    def act(communicator: TensorCommunicator) -> list[int]:
        sums = []
        for number in range(12):
            if communicator.rank == 1 and number % 3 == 1:
                path.proxy.cut_after_bytes = path.proxy.passed_bytes + 1_000_000
            own = secret * (number + 1)
            sums.append(int(communicator.all_reduce(own)[-1]))
            own.zero_()  # the caller may write into what it has sent
        return sums

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(act, parties))
    assert results[0] == results[1] == [2 * 299_999 * (number + 1) for number in range(12)]
    assert repeated > 0 and path.proxy.connections > 1
    assert all(len(frames) == 1 for frames in seen.values())


def test_a_message_sent_while_there_is_no_connection_arrives_when_there_is_one(path: Path) -> None:
    meshes = path.connect()
    path.proxy.refuse()
    path.proxy.cut()
    for number in range(3):
        meshes[0].send(1, bytes([number]))
        meshes[1].send(0, bytes([number]))
    time.sleep(1)
    path.proxy.refuse(False)
    for rank in range(2):
        assert [bytes(meshes[rank].recv(1 - rank, 20)) for _ in range(3)] == [b"\0", b"\1", b"\2"]


def test_the_last_message_arrives_though_the_connection_breaks_under_it(path: Path) -> None:
    for leaver in (0, 1):
        meshes = path.connect()
        path.proxy.cut_after_bytes = path.proxy.passed_bytes + 2_000_000
        meshes[leaver].send(1 - leaver, b"x" * 5_000_000)
        meshes[leaver].close()
        assert len(meshes[1 - leaver].recv(leaver, 10)) == 5_000_000
        with pytest.raises(PeerLost, match="closed"):
            meshes[1 - leaver].recv(leaver, 10)
        meshes[1 - leaver].close()


def test_a_party_that_does_not_come_back_is_named_by_both(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("veil.mpc.grpc_mesh._ACCEPT_GRACE_S", 0.5)
    meshes = path.connect(reconnect_s=1.0)
    path.proxy.refuse()
    path.proxy.cut()
    for rank in range(2):
        with pytest.raises(PeerLost, match="did not come back in 1") as caught:
            meshes[rank].recv(1 - rank, 20)
        assert caught.value.culprits == (NAMES[1 - rank],)


def test_another_run_of_the_party_cannot_take_the_place_of_the_one_that_broke_off(path: Path) -> None:
    meshes = path.connect()
    meshes[1].send(0, b"before")
    assert meshes[0].recv(1, 5) == b"before"
    # beta's process dies and starts again: new mesh, same job, same certificate
    path.proxy.refuse()
    path.proxy.cut()
    meshes[1].finished = True
    path.servicers[1] = MeshServicer()
    path.proxy.refuse(False)
    again = path.mesh(1)
    with pytest.raises(ProtocolMismatch, match="another run"):
        again.connect(5)


def test_a_resumed_stream_states_the_digest_again(path: Path) -> None:
    meshes = path.connect()
    path.proxy.refuse()
    path.proxy.cut()
    meshes[1].job_digest = b"\x01" * 32  # as if beta had come to another decision in the meantime
    path.proxy.refuse(False)
    with pytest.raises(ProtocolMismatch, match="another job digest"):
        meshes[1].recv(0, 10)
