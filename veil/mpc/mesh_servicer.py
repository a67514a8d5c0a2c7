"""The accepting side of the streams between parties: one servicer at a daemon's server for all of its jobs.

Guarantee: a stream reaches a job's mesh only after its caller has said which job it is for, and that mesh checks the
rest (`veil.mpc.grpc_mesh`, step 3); no party holds more than `_MOST_STREAMS` streams of a kind, whatever it sends. The
same holds for streams beside gRPC (`veil.wire.direct`), which carry the same bytes.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import grpc

from veil.errors import IdentityError, ProtocolMismatch, StateError, VeilError
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.mpc import mesh_frames
from veil.mpc.mesh_outbox import Stream
from veil.mpc.mesh_pair import HELLO_TIMEOUT_S, Outcome, Pair
from veil.wire.channel import Service, caller
from veil.wire.direct import DirectStream
from veil.wire.direct_listener import DirectListener
from veil.wire.v1 import mesh_pb2

SERVICE_NAME = "veil.wire.v1.MeshService"
# Streams that one party may hold open at a server: one for each job, with room for ends and retries.
_MOST_STREAMS = 4
_log = logging.getLogger("veil.mpc")


class Carrier(NamedTuple):
    """What an accepted stream runs on: how to end it, and the `write` of `veil.mpc.mesh_outbox.Stream`."""

    cancel: Callable[[], object]
    write: Callable[[bytes], bool] | None = None


class Accepted(NamedTuple):
    """A stream that a mesh has adopted, and the hello that answers the caller's."""

    pair: Pair
    stream: Stream
    hello: mesh_pb2.MeshHello


class _Admitted(NamedTuple):
    """As `Accepted`, with the thread that reads the stream."""

    pair: Pair
    stream: Stream
    hello: mesh_pb2.MeshHello
    read: threading.Thread


class JobMesh(Protocol):
    """What the servicer needs of a job's mesh (`veil.mpc.grpc_mesh.GrpcMesh` has it)."""

    job_id: str

    def accept(self, peer: Identity, hello: mesh_pb2.MeshHello, carrier: Carrier) -> Accepted:
        """Checks a caller's hello and adopts its stream; raises `VeilError` to refuse it."""
        ...

    def broke(self, pair: Pair, stream: Stream) -> None:
        """The call of an accepted stream has ended, one way or another."""
        ...

    def await_return(self, pair: Pair) -> None:
        """The stream of an accepted pair broke."""
        ...


class MeshServicer:
    """Registered once at a daemon's server; hands each incoming stream to the mesh of its job."""

    def __init__(self) -> None:
        self._jobs: dict[str, JobMesh] = {}
        self._streams: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.direct_port = 0
        """Where streams beside gRPC are taken, which every hello says; 0: nowhere."""

    def listen_direct(self, address: str, credentials: Credentials) -> DirectListener:
        """Takes streams beside gRPC, too, at "host:port" (0: the system chooses). Raises `ConfigError`."""
        listener = DirectListener(address, credentials, self.serve_direct, most_bytes=mesh_frames.MOST_BYTES)
        self.direct_port = listener.port
        return listener

    def service(self) -> Service:
        """What `veil.wire.channel.serve` takes. Every stream occupies one of the server's workers while it lasts."""
        # Bytes in, bytes out: frames are encoded once and read without copies (veil.mpc.mesh_frames).
        exchange = grpc.stream_stream_rpc_method_handler(self.exchange)
        handlers = grpc.method_handlers_generic_handler(SERVICE_NAME, {"Exchange": exchange})
        return Service(
            name=SERVICE_NAME,
            add=lambda server: server.add_generic_rpc_handlers((handlers,)),
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

    def exchange(self, messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """One stream. Refusals are `VeilError`s, which the server maps to statuses."""
        peer = caller(context)
        with self._counted(peer.name):
            mesh, accepted = self._admit(peer, messages, Carrier(context.cancel))
            # does not take back what follows when the call has ended by now: the callback is not called then
            if not context.add_callback(lambda: mesh.broke(accepted.pair, accepted.stream)):
                mesh.broke(accepted.pair, accepted.stream)
            yield mesh_frames.hello(accepted.hello)
            yield from accepted.pair.items(accepted.stream)

    def serve_direct(self, peer: Identity, connection: DirectStream) -> None:
        """One stream beside gRPC; returns when it has ended. What `DirectListener` calls."""
        try:
            if peer.role is not Role.PARTY:
                raise IdentityError(f"got a mesh stream from {peer}, expected a party")
            with self._counted(f"{peer.name} direct"):
                carrier = Carrier(connection.close, connection.send_at_once)
                mesh, accepted = self._admit(peer, connection.frames(), carrier)
                try:
                    connection.send(mesh_frames.hello(accepted.hello))
                    for frame in accepted.pair.items(accepted.stream):
                        connection.send(frame)
                    connection.finish()
                    accepted.read.join(HELLO_TIMEOUT_S)
                except OSError:
                    pass  # the reader finds the same
                finally:
                    mesh.broke(accepted.pair, accepted.stream)
        except VeilError as error:
            _log.warning("refused a direct stream of %s: %s", peer, error)

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

    def _admit(self, peer: Identity, messages: Iterator[bytes], carrier: Carrier) -> tuple[JobMesh, _Admitted]:
        """The job's mesh and the stream, of which a thread reads from now on."""
        waiting = threading.Timer(HELLO_TIMEOUT_S, carrier.cancel)
        waiting.daemon = True
        waiting.start()
        try:
            first = next(messages, None)
        finally:
            waiting.cancel()  # its thread too, when what came is no message
        hello = mesh_frames.decode(first) if first is not None else None
        if not isinstance(hello, mesh_pb2.MeshHello):
            raise ProtocolMismatch(f"got no hello from {peer.name}, expected one", culprits=(peer.name,))
        with self._lock:
            mesh = self._jobs.get(hello.job_id)
        if mesh is None:
            raise StateError("got a stream for a job that does not run here", hint="it may not have started yet")
        pair, stream, answer = mesh.accept(peer, hello, carrier)

        def read() -> None:
            if pair.read(messages, stream) is Outcome.BROKEN:
                if carrier.write is not None:  # a call of gRPC may still take answers, and ends by itself
                    carrier.cancel()  # whoever still sends would wait for a peer that is gone
                mesh.await_return(pair)

        reader = threading.Thread(target=read, name=f"mesh-read-{peer.name}", daemon=True)
        reader.start()
        return mesh, _Admitted(pair, stream, answer, reader)
