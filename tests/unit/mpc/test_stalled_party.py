"""A party that is slow, or stands still: the others say in the log whom they wait for, and name it in the end."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from veil.errors import PeerLost
from veil.identity.credentials import Credentials
from veil.mpc.communicator import TensorCommunicator
from veil.mpc.grpc_mesh import GrpcMesh, MeshServicer
from veil.mpc.loopback import loopback
from veil.mpc.relay import RelayHub, RelayTransport
from veil.wire.channel import serve

NAMES = ("alpha", "beta", "gamma")


def test_whom_one_waits_for_is_said_again_and_again(caplog: pytest.LogCaptureFixture) -> None:
    parties = [TensorCommunicator(transport, NAMES, timeout_s=10, warn_after_s=0.2) for transport in loopback(3)]
    late = threading.Event()

    def act(communicator: TensorCommunicator) -> None:
        with communicator.phase("epoch"):
            communicator.barrier()
            if communicator.rank == 2:
                late.wait(1.0)
            communicator.all_reduce(torch.ones(2, dtype=torch.int64))

    with caplog.at_level(logging.WARNING, "veil.mpc"), ThreadPoolExecutor(3) as pool:
        list(pool.map(act, parties))
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) >= 4
    assert all("waiting for gamma since" in line for line in lines)
    assert all(line.endswith("at phase epoch, all_reduce, message 1") for line in lines)
    waited = {row.peer: row.waited_s for row in parties[0].report().peers if row.operation == "all_reduce"}
    assert waited["gamma"] > 0.5 > waited["beta"]


def _stand_still(folder: str, roster: dict[str, str], pipe: socket.socket) -> None:
    """Gamma, in a process of its own: takes part in one barrier, then no more."""
    credentials = Credentials.load(Path(folder))
    mesh = GrpcMesh("job", bytes(32), "gamma", roster, credentials, MeshServicer())
    mesh.connect(30)
    communicator = TensorCommunicator(mesh.transport(), NAMES, timeout_s=60)
    communicator.barrier()
    pipe.sendall(b"1")
    pipe.recv(1)


def test_a_stopped_party_is_named_by_workers_behind_relays(consortium: dict[str, Path]) -> None:
    servicers = [MeshServicer() for _ in range(2)]
    own = [Credentials.load(consortium[f"party-{name}"]) for name in NAMES[:2]]
    servers = [serve("127.0.0.1:0", own[rank], [servicers[rank].service()]) for rank in range(2)]
    roster = {name: f"127.0.0.1:{server.port}" for name, server in zip(NAMES, servers, strict=False)}
    roster["gamma"] = "127.0.0.1:1"  # nobody dials the highest rank
    here, there = socket.socketpair()
    process = multiprocessing.get_context("spawn").Process(
        target=_stand_still, args=(str(consortium["party-gamma"]), roster, there)
    )
    process.start()
    there.close()
    meshes = [GrpcMesh("job", bytes(32), NAMES[rank], roster, own[rank], servicers[rank]) for rank in range(2)]

    def act(rank: int) -> PeerLost:
        meshes[rank].connect(30)
        inside, outside = socket.socketpair()
        hub = RelayHub(outside, meshes[rank].transport(), lambda kind, body: {})
        hub.start()
        worker = RelayTransport(inside, rank, 3)
        communicator = TensorCommunicator(worker, NAMES, timeout_s=2)
        communicator.barrier()
        if rank == 0:
            assert here.recv(1) == b"1" and process.pid is not None
            os.kill(process.pid, signal.SIGSTOP)
        try:
            with pytest.raises(PeerLost) as caught:
                for _ in range(2):
                    communicator.all_reduce(torch.ones(2, dtype=torch.int64))
            return caught.value
        finally:
            worker.close()
            hub.wait(10)

    try:
        with ThreadPoolExecutor(2) as pool:
            errors = list(pool.map(act, range(2)))
    finally:
        process.kill()
        process.join()
        here.close()
        for server in servers:
            server.stop(0)
    assert [error.culprits for error in errors] == [("gamma",)] * 2
    assert all("all_reduce" in error.message for error in errors)
