"""Streams between the parties of a job over gRPC with mutual TLS: one stream a pair, lower rank accepts, higher dials.

Guarantee: a message that `recv(peer)` returns was sent by the holder of that party's certificate, for this job and
this digest, in order and without gaps. A connection that breaks is dialled again for `reconnect_s` seconds; frames that
the peer had not acknowledged are sent again, with the same bytes, and it drops those that it has: no mask ever covers
two different messages. What is not mended surfaces as `PeerLost` naming the party. Memory is bounded: frames are at
most 1 MiB, messages `MAX_MESSAGE_BYTES`, `veil.mpc.mesh_outbox.KEPT_BYTES` are kept for a resumed stream, and when
`QUEUE_LIMIT_BYTES` of a peer wait to be consumed, its stream is not read any further, which gRPC's flow control passes
on to the peer.

Steps of a pair (docs/protocol.md):
(1) both daemons register the job at their `MeshServicer`;
(2) the higher rank opens Exchange and sends a MeshHello; it tries again while the other is not there yet;
(3) the lower rank checks caller, rank, job, digest and version, refuses a second stream, answers with its own hello;
(4) the higher rank checks that one; frames flow both ways, numbered from 0 in each direction;
(5) when the connection breaks, the higher rank repeats (2); both hellos then name both sides' sessions of this run
    (random, so that a party that has started anew cannot take part) and how many frames have arrived; (3), (4) as ever;
    so it does, too, when both have a port beside gRPC, to go on there with the same frames (`veil.wire.direct`);
(6) whoever closes first sends what it has queued, then a Goodbye; the other side answers with its own, and the stream
    ends. Receives from a peer that has said goodbye fail once its messages are read.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping

from veil.errors import IdentityError, InputError, PeerLost, ProtocolMismatch, StateError, VeilError
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.mpc.mesh_dialler import Dialler
from veil.mpc.mesh_outbox import Stream
from veil.mpc.mesh_pair import Outcome, Pair
from veil.mpc.mesh_servicer import Accepted, Carrier, MeshServicer
from veil.mpc.transport import QUEUE_LIMIT_BYTES, Meter, Payload
from veil.wire.v1 import mesh_pb2

__all__ = ["PROTOCOL_VERSION", "RECONNECT_S", "GrpcMesh", "MeshServicer"]

PROTOCOL_VERSION = 2
RECONNECT_S = 15.0
"""How long a broken connection is dialled again before its party counts as lost."""
# The accepting side may see a break before the dialling side does.
_ACCEPT_GRACE_S = 5.0
_LINGER_S = 10.0
_LINGER_BROKEN_S = 3.0
_AFTERMATH_S = 0.3
_SESSION_BYTES = 16
_log = logging.getLogger("veil.mpc")


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
        reconnect_s: float = RECONNECT_S,
        plane: str = "",
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
        self.reconnect_s = reconnect_s
        # What carries messages once the streams are up, "" for the streams; all parties of a job have the same.
        self.plane = plane
        self.direct_port = servicer.direct_port
        self._session = os.urandom(_SESSION_BYTES)
        self._roster = dict(roster)
        self._credentials = credentials
        self._servicer = servicer
        self._queue_limit_bytes = queue_limit_bytes
        self._pairs: dict[int, Pair] = {}
        self._diallers: list[Dialler] = []
        self._waits: list[threading.Timer] = []
        self._accepting = threading.Lock()
        self._changed = threading.Condition()
        self._fatal: VeilError | None = None
        self._closed = False
        self.finished = False

    def __repr__(self) -> str:
        return f"GrpcMesh(job_id={self.job_id!r}, rank={self.rank}, world_size={self.world_size})"

    def connect(self, timeout_s: float = 60.0) -> None:
        """Returns when every pair is up. Raises `PeerLost` naming who is missing, or why a peer refuses."""
        self._servicer.register(self)
        until = time.monotonic() + timeout_s
        for peer, name in enumerate(self.names[: self.rank]):
            dialler = Dialler(self, Pair(name, self._queue_limit_bytes), self._roster[name], self._credentials)
            self._diallers.append(dialler)
            threading.Thread(target=dialler.run, args=(until,), name=f"mesh-dial-{peer}", daemon=True).start()
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

    def send(self, peer: int, *parts: Payload) -> None:
        try:
            self._pair(peer).outbox.put(*parts)
        except PeerLost as error:
            raise self._root_cause(peer, error) from None
        self.meter.sent(peer, sum(len(part) for part in parts))

    def recv(self, peer: int, timeout_s: float) -> Payload:
        try:
            message = self._pair(peer).inbox.get(timeout_s)
        except PeerLost as error:
            raise self._root_cause(peer, error) from None
        self.meter.received(peer, len(message))
        return message

    def listen(self, peer: int, arrived: Callable[[bool], None]) -> None:
        self._pair(peer).inbox.listen(arrived)

    def _root_cause(self, peer: int, error: PeerLost) -> VeilError:
        """When one party fails, the others leave one after another: blames whoever broke off or ended first."""
        ended = self._pair(peer).ended
        if ended is None or self._closed:
            return error
        if ended.orderly:
            time.sleep(_AFTERMATH_S)  # a peer that left because of another may be heard of before that other
        causes: list[tuple[bool, float, VeilError]] = []
        for pair in self._pairs.values():
            broken, ending = pair.broken, pair.ended
            if broken is not None:
                lost = PeerLost(f"the stream with {pair.peer} broke: {broken.reason}", culprits=(pair.peer,))
                causes.append((False, broken.at_s, lost if ending is None else ending.error))
            elif ending is not None:
                causes.append(ending)
        return min(causes, key=lambda cause: cause[:2])[2]

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
            pairs, diallers = list(self._pairs.values()), list(self._diallers)
        for pair in pairs:
            pair.outbox.close()
        until = time.monotonic() + _LINGER_S
        for pair in pairs:
            pair.outbox.settled(max(0.0, until - time.monotonic()), _LINGER_BROKEN_S)
        self.finished = True
        self._servicer.unregister(self)
        # What this side has not heard of by now it does not wait for; the other side's end is a matter of milliseconds.
        until = min(until, time.monotonic() + 1.0)
        for dialler in diallers:
            dialler.close(until)
        for pair in pairs:
            pair.end(PeerLost("the mesh was closed on this side"))
        with self._changed:
            for wait in self._waits:
                wait.cancel()

    # What both ends of a pair state and check ---------------------------------------------------------------------

    def hello(self, pair: Pair, received: int) -> mesh_pb2.MeshHello:
        """What this side states."""
        return mesh_pb2.MeshHello(
            job_id=self.job_id,
            job_digest=self.job_digest,
            protocol_version=PROTOCOL_VERSION,
            session=self._session,
            peer_session=pair.peer_session,
            received=received,
            direct_port=self.direct_port,
            plane=self.plane,
        )

    def check_hello(self, hello: mesh_pb2.MeshHello, pair: Pair) -> None:
        """Raises `ProtocolMismatch` unless the peer states the same, in the same run as before."""
        if hello.protocol_version != PROTOCOL_VERSION:
            got, expected = f"mesh protocol {hello.protocol_version}", f"{PROTOCOL_VERSION}"
        elif hello.job_id != self.job_id or hello.job_digest != self.job_digest:
            got, expected = "another job digest", "the one that this party has signed"
        elif hello.plane != self.plane:
            got, expected = (f"data plane {name[:16] or 'grpc'!r}" for name in (hello.plane, self.plane))
            expected += ", the [mesh] plane here"
        elif len(hello.session) != _SESSION_BYTES:
            got, expected = f"a session of {len(hello.session)} bytes", f"{_SESSION_BYTES}"
        elif pair.peer_session and not self._resumes(hello, pair):
            got, expected = "a second stream or another run of the job", "the stream that broke to be resumed"
        else:
            return
        raise ProtocolMismatch(f"got {got} from {pair.peer}, expected {expected}", culprits=(pair.peer,))

    def _resumes(self, hello: mesh_pb2.MeshHello, pair: Pair) -> bool:
        """Whether it comes from the run that the pair has met before."""
        # The answer to a first hello can be lost with its connection: who repeats it knows no session of this side yet,
        # and has sent nothing.
        unanswered = not hello.peer_session and hello.received == pair.received == 0
        return hello.session == pair.peer_session and (hello.peer_session == self._session or unanswered)

    # Step (2), (4): the higher rank -------------------------------------------------------------------------------

    def adopt(self, pair: Pair) -> None:
        """Takes in a pair whose first stream is up; one that is resumed is in already."""
        peer = self.names.index(pair.peer)
        with self._changed:
            if self._pairs.get(peer) is pair:
                return
            if self._closed:
                raise PeerLost("the mesh was closed on this side")
            self._pairs[peer] = pair
            self._changed.notify_all()

    def fail(self, error: VeilError) -> None:
        """A pair cannot come up."""
        with self._changed:
            self._fatal = self._fatal or error
            self._changed.notify_all()

    # Step (3): the lower rank -------------------------------------------------------------------------------------

    def accept(self, peer: Identity, hello: mesh_pb2.MeshHello, carrier: Carrier) -> Accepted:
        """Checks a caller's hello and adopts its stream, the first of its pair or one that resumes it."""
        rank = self.names.index(peer.name) if peer.name in self.names else -1
        if peer.consortium != self._credentials.identity.consortium or rank <= self.rank:
            expected = ", ".join(self.names[self.rank + 1 :]) or "nobody"
            raise IdentityError(f"got a mesh stream from {peer}, expected {expected} to dial here")
        with self._accepting:
            pair = self._pairs.get(rank) or Pair(peer.name, self._queue_limit_bytes)
            self.check_hello(hello, pair)
            if not pair.peer_session and hello.peer_session:
                raise ProtocolMismatch(
                    f"got a stream of {peer.name} that resumes another run of the job, expected a first one",
                    culprits=(peer.name,),
                )
            if pair.ended is not None:
                raise ProtocolMismatch(f"got a stream of {peer.name} again, expected none: the pair has ended here")
            pair.peer_session = hello.session
            broken, stream = pair.broken, Stream(*carrier)
            received = pair.prepare()
            pair.attach(stream, hello.received)
            self.adopt(pair)
        if broken is not None:
            _log.warning("the stream with %s is up again after %.1f s", pair.peer, time.monotonic() - broken.at_s)
        return Accepted(pair, stream, self.hello(pair, received))

    def broke(self, pair: Pair, stream: Stream) -> None:
        """The connection of an accepted stream has ended; gives the peer some time to dial again."""
        if pair.suspend(stream, "connection lost") is Outcome.BROKEN:
            self.await_return(pair)

    def await_return(self, pair: Pair) -> None:
        """Ends a pair without a stream unless its peer comes back in time."""
        broken, wait_s = pair.broken, self.reconnect_s + _ACCEPT_GRACE_S
        if broken is None or self.finished:
            return
        _log.warning("the stream with %s broke: waiting up to %g s for it to come back", pair.peer, wait_s)

        def give_up() -> None:
            if pair.is_at(broken):
                what = f"the stream with {pair.peer} broke and {pair.peer} did not come back in {wait_s:g} s"
                pair.end(PeerLost(what, culprits=(pair.peer,)))

        wait = threading.Timer(wait_s, give_up)
        wait.daemon = True
        with self._changed:
            self._waits = [other for other in self._waits if other.is_alive()] + [wait]
        wait.start()
