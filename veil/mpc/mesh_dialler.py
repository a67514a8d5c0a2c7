"""The dialling side of one pair: opens the stream, reads it, and opens another one when the connection breaks.

Guarantee: on every stream, also one that resumes, both ends have shown their certificates (mutual TLS) and stated job,
digest and protocol version; a resumed stream reaches the same run of the same party or ends as `ProtocolMismatch`. A
party that cannot be reached for `reconnect_s` seconds is given up and named.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from typing import Protocol

import grpc

from veil.errors import PeerLost, ProtocolMismatch, StateError, VeilError
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.mpc import mesh_frames
from veil.mpc.mesh_outbox import Stream
from veil.mpc.mesh_pair import HELLO_TIMEOUT_S, Outcome, Pair
from veil.wire.channel import open_channel
from veil.wire.status import from_rpc
from veil.wire.v1 import mesh_pb2

EXCHANGE = "/veil.wire.v1.MeshService/Exchange"
_RETRY_S = 0.2
_log = logging.getLogger("veil.mpc")


class DiallingMesh(Protocol):
    """What the dialler needs of a job's mesh (`veil.mpc.grpc_mesh.GrpcMesh` has it)."""

    reconnect_s: float

    @property
    def finished(self) -> bool:
        """Whether nobody needs the stream any more."""
        ...

    def hello(self, pair: Pair, received: int) -> mesh_pb2.MeshHello:
        """What this side states to the peer of `pair`."""
        ...

    def check_hello(self, hello: mesh_pb2.MeshHello, pair: Pair) -> None:
        """Raises `ProtocolMismatch` unless the peer states the same, and is the one that it was before."""
        ...

    def adopt(self, pair: Pair) -> None:
        """Takes the pair in when its first stream is up."""
        ...

    def fail(self, error: VeilError) -> None:
        """The pair cannot come up, because of `error`."""
        ...


class Dialler:
    """Keeps the stream to one accepting peer; `run` is a thread of its own."""

    def __init__(self, mesh: DiallingMesh, pair: Pair, address: str, credentials: Credentials) -> None:
        self._mesh = mesh
        self._pair = pair
        self._address = address
        self._credentials = credentials
        self._open: tuple[grpc.Channel, grpc.Call] | None = None

    def run(self, until: float) -> None:
        """Connects until the time `until` of the monotonic clock, then keeps the stream up until the pair ends."""
        pair, mesh = self._pair, self._mesh
        error = self._dial(until, first=True)
        if error is not None:
            mesh.fail(error)
            return
        while self._read() is Outcome.BROKEN and pair.broken is not None and not mesh.finished:
            _log.warning(
                "the stream with %s broke (%s): dialling again for up to %g s",
                pair.peer,
                pair.broken.reason,
                mesh.reconnect_s,
            )
            broken_at_s = pair.broken.at_s
            error = self._dial(broken_at_s + mesh.reconnect_s, first=False)
            if error is not None:
                pair.end(error)
                return
            _log.warning("the stream with %s is up again after %.1f s", pair.peer, time.monotonic() - broken_at_s)

    def close(self, until: float) -> None:
        """Ends the stream; waits until the time `until` for the other side's end of it."""
        if self._open is None:
            return
        channel, call = self._open
        while call.is_active() and time.monotonic() < until:
            time.sleep(0.005)
        call.cancel()  # type: ignore[no-untyped-call]
        channel.close()

    def _dial(self, until: float, *, first: bool) -> VeilError | None:
        """None when a stream is up; otherwise why there is none."""
        name = self._pair.peer
        last: VeilError | None = None
        while not self._mesh.finished and self._pair.ended is None:
            try:
                self._dial_once(until)
                return None
            except (StateError, PeerLost) as error:
                last = error  # not there yet, or does not know of the job yet
            except VeilError as error:
                return error
            if time.monotonic() + _RETRY_S >= until:
                break
            time.sleep(_RETRY_S)
        what = f"got no mesh stream with {name} in time"
        if not first:
            what = f"the stream with {name} broke and {name} did not come back in {self._mesh.reconnect_s:g} s"
        return PeerLost(f"{what}: {last.message}" if last is not None else what, culprits=(name,))

    def _dial_once(self, until: float) -> None:
        pair, name = self._pair, self._pair.peer
        expect = Identity(self._credentials.identity.consortium, Role.PARTY, name)
        channel = open_channel(self._address, self._credentials, expect)
        up = threading.Event()
        stream = Stream(lambda: call.cancel())  # type: ignore[no-untyped-call]
        received = pair.prepare()

        def requests() -> Iterator[bytes]:
            yield mesh_frames.hello(self._mesh.hello(pair, received))
            up.wait()
            yield from pair.items(stream)

        # Bytes in, bytes out: frames are encoded once and read without copies (veil.mpc.mesh_frames).
        call = channel.stream_stream(EXCHANGE, None, None)(requests())
        self._responses: Iterator[bytes] = iter(call)
        self._stream = stream
        waiting = threading.Timer(max(0.1, min(HELLO_TIMEOUT_S, until - time.monotonic())), call.cancel)
        waiting.daemon = True
        waiting.start()
        try:
            first = mesh_frames.decode(next(self._responses))
            if not isinstance(first, mesh_pb2.MeshHello):
                raise ProtocolMismatch(f"got no hello from {name}, expected one", culprits=(name,))
            self._mesh.check_hello(first, pair)
            pair.peer_session = first.session
            pair.attach(stream, first.received)
            self._mesh.adopt(pair)
            self._open = (channel, call)
        except (grpc.RpcError, StopIteration, VeilError) as error:
            pair.prepare()
            call.cancel()  # type: ignore[no-untyped-call]
            refusal = from_rpc(error, name) if isinstance(error, grpc.RpcError) else error
            channel.close()
            if isinstance(refusal, StopIteration):
                raise PeerLost(f"{name} ended the stream before its hello", culprits=(name,)) from None
            raise refusal from None
        finally:
            waiting.cancel()
            up.set()

    def _read(self) -> Outcome:
        outcome = self._pair.read(self._responses, self._stream)
        if outcome is Outcome.BROKEN and self._open is not None:
            self._open[0].close()
        return outcome
