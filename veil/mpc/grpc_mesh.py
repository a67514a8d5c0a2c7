"""Streams between the parties of a job over gRPC with mutual TLS: one stream a pair, lower rank accepts, higher dials.

Guarantee: a message that `recv(peer)` returns was sent by the holder of that party's certificate, for this job and
this digest, in order and without gaps; a stream that breaks surfaces as `PeerLost` naming the party. Memory is
bounded: frames are at most 1 MiB, messages `MAX_MESSAGE_BYTES`, and when `QUEUE_LIMIT_BYTES` of a peer wait to be
consumed, its stream is not read any further, which gRPC's flow control passes on to the peer.

Steps of a pair (docs/protocol.md):
(1) both daemons register the job at their `MeshServicer`;
(2) the higher rank opens Exchange and sends a MeshHello; it tries again while the other is not there yet;
(3) the lower rank checks caller, rank, job, digest and version, refuses a second stream, answers with its own hello;
(4) the higher rank checks that one; frames flow both ways, numbered from 0 in each direction;
(5) whoever closes first sends what it has queued and ends its direction; the other side's receives then fail.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import grpc

from veil.errors import IdentityError, InputError, PeerLost, ProtocolMismatch, StateError, VeilError
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.mpc.mesh_pair import HELLO_TIMEOUT_S, Pair
from veil.mpc.mesh_servicer import MeshServicer
from veil.mpc.transport import QUEUE_LIMIT_BYTES, Meter
from veil.wire.channel import open_channel
from veil.wire.status import from_rpc
from veil.wire.v1 import mesh_pb2, mesh_pb2_grpc

__all__ = ["PROTOCOL_VERSION", "GrpcMesh", "MeshServicer"]

PROTOCOL_VERSION = 1
_RETRY_S = 0.2
_LINGER_S = 10.0
_AFTERMATH_S = 0.3


class GrpcMesh:
    """One party's streams of one job. `roster` maps every party's name to its host:port, in rank order."""

    def __init__(
        self,
        job_id: str,
        job_digest: bytes,
        party: str,
        roster: Mapping[str, str],
        credentials: Credentials,
        servicer: MeshServicer,
        *,
        queue_limit_bytes: int = QUEUE_LIMIT_BYTES,
    ) -> None:
        self.names = tuple(roster)
        if party not in self.names or len(self.names) < 2:
            raise InputError(f"got party {party!r} and {len(self.names)} names, expected it among at least two")
        if credentials.identity.name != party or credentials.identity.role is not Role.PARTY:
            raise IdentityError(f"got credentials of {credentials.identity}, expected those of party {party!r}")
        self.job_id = job_id
        self.job_digest = job_digest
        self.rank = self.names.index(party)
        self.world_size = len(self.names)
        self.meter = Meter()
        self._roster = dict(roster)
        self._credentials = credentials
        self._servicer = servicer
        self._queue_limit_bytes = queue_limit_bytes
        self._pairs: dict[int, Pair] = {}
        self._calls: list[tuple[grpc.Channel, grpc.Call]] = []
        self._changed = threading.Condition()
        self._fatal: VeilError | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"GrpcMesh(job_id={self.job_id!r}, rank={self.rank}, world_size={self.world_size})"

    def connect(self, timeout_s: float = 60.0) -> None:
        """Returns when every pair is up. Raises `PeerLost` naming who is missing, or why a peer refuses."""
        self._servicer.register(self)
        until = time.monotonic() + timeout_s
        for peer in range(self.rank):
            threading.Thread(target=self._dial, args=(peer, until), name=f"mesh-dial-{peer}", daemon=True).start()
        with self._changed:
            self._changed.wait_for(
                lambda: len(self._pairs) == self.world_size - 1 or self._fatal is not None, timeout_s
            )
            missing = [name for rank, name in enumerate(self.names) if rank != self.rank and rank not in self._pairs]
            fatal = self._fatal
        if fatal is None and not missing:
            return
        self.close()
        raise fatal or PeerLost(
            f"got no mesh stream with {', '.join(missing)} in {timeout_s:g} s, expected one with every party",
            culprits=missing,
            hint="check that the party runs and that its mesh address can be reached",
        )

    def transport(self) -> GrpcMesh:
        """This mesh as a `Transport`; call `connect` first."""
        if len(self._pairs) != self.world_size - 1:
            raise StateError("got a mesh that is not connected, expected connect() first")
        return self

    def send(self, peer: int, payload: bytes | memoryview) -> None:
        with self._root_cause(peer):
            self._pair(peer).outbox.put(payload)
        self.meter.sent(peer, len(payload))

    def recv(self, peer: int, timeout_s: float) -> bytes:
        with self._root_cause(peer):
            message = self._pair(peer).inbox.get(timeout_s)
        self.meter.received(peer, len(message))
        return message

    @contextmanager
    def _root_cause(self, peer: int) -> Iterator[None]:
        """When one party fails, the others leave one after another: blames whoever broke off or ended first."""
        try:
            yield
        except PeerLost:
            ended = self._pair(peer).inbox.ended
            if ended is None or self._closed:
                raise
            if ended.orderly:
                time.sleep(_AFTERMATH_S)  # a peer that left because of another may be heard of before that other
            endings = [pair.inbox.ended for pair in self._pairs.values()]
            first = min((ending for ending in endings if ending is not None), key=lambda ending: ending[:2])
            raise first.error from None

    def _pair(self, peer: int) -> Pair:
        pair = self._pairs.get(peer)
        if pair is None:
            raise StateError(f"got rank {peer}, expected a connected peer")
        return pair

    def close(self) -> None:
        """Sends what is queued, ends every stream, and lets the servicer forget the job."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            # wakes a connect() that still waits
            self._fatal = self._fatal or StateError("the mesh was closed on this side")
            self._changed.notify_all()
            pairs, calls = list(self._pairs.values()), list(self._calls)
        self._servicer.unregister(self)
        for pair in pairs:
            pair.outbox.close()
        until = time.monotonic() + _LINGER_S
        for pair in pairs:
            pair.outbox.drained(max(0.0, until - time.monotonic()))
        for channel, call in calls:
            # The other side answers the end of our direction by ending its own; until then data may be on its way.
            while call.is_active() and time.monotonic() < until:
                time.sleep(0.01)
            call.cancel()  # type: ignore[no-untyped-call]
            channel.close()
        for pair in pairs:
            pair.end(PeerLost("the mesh was closed on this side"))

    # Step (2) and (4): the higher rank ----------------------------------------------------------------------------

    def _dial(self, peer: int, until: float) -> None:
        name = self.names[peer]
        last: VeilError | None = None
        while time.monotonic() < until and not self._closed and self._fatal is None:
            try:
                self._dial_once(peer, name, until)
                return
            except (StateError, PeerLost) as error:
                last = error  # not there yet, or does not know of the job yet
                time.sleep(_RETRY_S)
            except VeilError as error:
                self._fail(error)
                return
        if last is not None and not self._closed:
            self._fail(PeerLost(f"got no mesh stream with {name} in time: {last}", culprits=(name,)))

    def _dial_once(self, peer: int, name: str, until: float) -> None:
        expect = Identity(self._credentials.identity.consortium, Role.PARTY, name)
        channel = open_channel(self._roster[name], self._credentials, expect)
        pair = Pair(name, self._queue_limit_bytes)

        def requests() -> Iterator[mesh_pb2.ExchangeRequest]:
            yield mesh_pb2.ExchangeRequest(hello=self.hello())
            for frame in pair.frames():
                yield mesh_pb2.ExchangeRequest(frame=frame)

        call = mesh_pb2_grpc.MeshServiceStub(channel).Exchange(requests())
        responses = iter(call)
        waiting = threading.Timer(max(0.1, min(HELLO_TIMEOUT_S, until - time.monotonic())), call.cancel)
        waiting.daemon = True
        waiting.start()
        try:
            first = next(responses)
            if first.WhichOneof("body") != "hello":
                raise ProtocolMismatch(f"got no hello from {name}, expected one", culprits=(name,))
            self.check_hello(first.hello, name)
            self._adopt(peer, pair, (channel, call))
        except (grpc.RpcError, StopIteration, VeilError) as error:
            pair.end(PeerLost(f"no stream with {name}", culprits=(name,)))
            call.cancel()  # type: ignore[no-untyped-call]
            refusal = from_rpc(error, name) if isinstance(error, grpc.RpcError) else error
            channel.close()
            if isinstance(refusal, StopIteration):
                raise PeerLost(f"{name} ended the stream before its hello", culprits=(name,)) from None
            raise refusal from None
        finally:
            waiting.cancel()
        pair.read(response.frame if response.HasField("frame") else None for response in responses)

    # Step (3): the lower rank -------------------------------------------------------------------------------------

    def accept(self, peer: Identity, hello: mesh_pb2.MeshHello) -> Pair:
        """Checks a caller's hello and adopts its stream."""
        rank = self.names.index(peer.name) if peer.name in self.names else -1
        if peer.consortium != self._credentials.identity.consortium or rank <= self.rank:
            expected = ", ".join(self.names[self.rank + 1 :]) or "nobody"
            raise IdentityError(f"got a mesh stream from {peer}, expected {expected} to dial here")
        self.check_hello(hello, peer.name)
        pair = Pair(peer.name, self._queue_limit_bytes)
        self._adopt(rank, pair, None)
        return pair

    def _adopt(self, peer: int, pair: Pair, call: tuple[grpc.Channel, grpc.Call] | None) -> None:
        with self._changed:
            if self._closed:
                raise PeerLost("the mesh was closed on this side")
            if peer in self._pairs:
                raise ProtocolMismatch(f"got a second stream of {pair.peer}, expected one", culprits=(pair.peer,))
            self._pairs[peer] = pair
            if call is not None:
                self._calls.append(call)
            self._changed.notify_all()

    def hello(self) -> mesh_pb2.MeshHello:
        """What this side states."""
        return mesh_pb2.MeshHello(job_id=self.job_id, job_digest=self.job_digest, protocol_version=PROTOCOL_VERSION)

    def check_hello(self, hello: mesh_pb2.MeshHello, peer: str) -> None:
        """Raises `ProtocolMismatch` unless the peer states the same."""
        if hello.protocol_version != PROTOCOL_VERSION:
            got, expected = f"mesh protocol {hello.protocol_version}", f"{PROTOCOL_VERSION}"
        elif hello.job_id != self.job_id or hello.job_digest != self.job_digest:
            got, expected = "another job digest", "the one that this party has signed"
        else:
            return
        raise ProtocolMismatch(f"got {got} from {peer}, expected {expected}", culprits=(peer,))

    def _fail(self, error: VeilError) -> None:
        with self._changed:
            self._fatal = self._fatal or error
            self._changed.notify_all()
