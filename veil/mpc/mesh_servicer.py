"""The accepting side of the streams between parties: one servicer at a daemon's server for all of its jobs.

Guarantee: a stream reaches a job's mesh only after its caller has said which job it is for, and that mesh checks the
rest (`veil.mpc.grpc_mesh`, step 3); no party holds more than `_MOST_STREAMS` streams, whatever it sends.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import grpc

from veil.errors import PeerLost, ProtocolMismatch, StateError
from veil.identity.names import Identity, Role
from veil.mpc.mesh_pair import HELLO_TIMEOUT_S, Pair
from veil.wire.channel import Service, caller
from veil.wire.v1 import mesh_pb2, mesh_pb2_grpc

SERVICE_NAME = "veil.wire.v1.MeshService"
# Streams that one party may hold open at a server: one for each job, with room for ends and retries.
_MOST_STREAMS = 4


class JobMesh(Protocol):
    """What the servicer needs of a job's mesh (`veil.mpc.grpc_mesh.GrpcMesh` has it)."""

    job_id: str

    def accept(self, peer: Identity, hello: mesh_pb2.MeshHello) -> Pair:
        """Checks a caller's hello and adopts its stream; raises `VeilError` to refuse it."""
        ...

    def hello(self) -> mesh_pb2.MeshHello:
        """What this side states."""
        ...


class MeshServicer(mesh_pb2_grpc.MeshServiceServicer):
    """Registered once at a daemon's server; hands each incoming stream to the mesh of its job."""

    def __init__(self) -> None:
        self._jobs: dict[str, JobMesh] = {}
        self._streams: Counter[str] = Counter()
        self._lock = threading.Lock()

    def service(self) -> Service:
        """What `veil.wire.channel.serve` takes. Every stream occupies one of the server's workers while it lasts."""
        return Service(
            name=SERVICE_NAME,
            add=lambda server: mesh_pb2_grpc.add_MeshServiceServicer_to_server(self, server),
            roles=frozenset({Role.PARTY}),
        )

    def register(self, mesh: JobMesh) -> None:
        """Accepts streams for this mesh's job from now on."""
        with self._lock:
            if mesh.job_id in self._jobs:
                raise StateError(f"got job {mesh.job_id!r} a second time, expected one mesh for a job")
            self._jobs[mesh.job_id] = mesh

    def unregister(self, mesh: JobMesh) -> None:
        """Accepts no more streams for this job."""
        with self._lock:
            if self._jobs.get(mesh.job_id) is mesh:
                del self._jobs[mesh.job_id]

    def Exchange(
        self, request_iterator: Iterator[mesh_pb2.ExchangeRequest], context: grpc.ServicerContext
    ) -> Iterator[mesh_pb2.ExchangeResponse]:
        """One stream. Refusals are `VeilError`s, which the server maps to statuses."""
        peer = caller(context)
        with self._counted(peer.name):
            yield from self._serve(peer, request_iterator, context)

    @contextmanager
    def _counted(self, peer: str) -> Iterator[None]:
        """No party may occupy all of the server's workers."""
        with self._lock:
            if self._streams[peer] >= _MOST_STREAMS:
                raise StateError(f"got more than {_MOST_STREAMS} streams of {peer}, expected one for each job")
            self._streams[peer] += 1
        try:
            yield
        finally:
            with self._lock:
                self._streams[peer] -= 1

    def _serve(
        self, peer: Identity, request_iterator: Iterator[mesh_pb2.ExchangeRequest], context: grpc.ServicerContext
    ) -> Iterator[mesh_pb2.ExchangeResponse]:
        waiting = threading.Timer(HELLO_TIMEOUT_S, context.cancel)
        waiting.daemon = True
        waiting.start()
        first = next(request_iterator, None)
        waiting.cancel()
        if first is None or first.WhichOneof("body") != "hello":
            raise ProtocolMismatch(f"got no hello from {peer.name}, expected one", culprits=(peer.name,))
        with self._lock:
            mesh = self._jobs.get(first.hello.job_id)
        if mesh is None:
            raise StateError("got a stream for a job that does not run here", hint="it may not have started yet")
        pair = mesh.accept(peer, first.hello)
        frames = (request.frame if request.HasField("frame") else None for request in request_iterator)
        threading.Thread(target=pair.read, args=(frames,), name=f"mesh-read-{peer.name}", daemon=True).start()
        lost = PeerLost(f"the stream with {peer.name} broke", culprits=(peer.name,))
        context.add_callback(lambda: pair.end(lost))
        yield mesh_pb2.ExchangeResponse(hello=mesh.hello())
        for frame in pair.frames():
            yield mesh_pb2.ExchangeResponse(frame=frame)
