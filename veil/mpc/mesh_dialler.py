"""The dialling side of one pair: opens the stream, reads it, and opens another one when the connection breaks.

Guarantee: on every stream, also one that resumes, both ends have shown their certificates (mutual TLS) and stated job,
digest and protocol version; a resumed stream reaches the same run of the same party or ends as `ProtocolMismatch`. A
party that cannot be reached for `reconnect_s` seconds is given up and named. Dials keep the distance of
`veil.mpc.pauses`, also to a party whose streams come up and break at once. A pair whose streams beside gRPC break soon
goes on over gRPC alone.
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
from veil.mpc.pauses import Pauses
from veil.wire.channel import open_channel
from veil.wire.direct import DirectStream, dial
from veil.wire.limits import split_address
from veil.wire.status import from_rpc
from veil.wire.v1 import mesh_pb2

EXCHANGE = "/veil.wire.v1.MeshService/Exchange"
# So many streams beside gRPC in a row that break within so long are enough: something on the way lets little pass.
_MOST_DIRECT_BREAKS = 4
_DIRECT_STEADY_S = 60.0
# Nobody reads the stream over gRPC meanwhile.
_DIRECT_CONNECT_S = 3.0
_log = logging.getLogger("veil.mpc")


class DiallingMesh(Protocol):
    """What the dialler needs of a job's mesh (`veil.mpc.grpc_mesh.GrpcMesh` has it)."""

    reconnect_s: float
    direct_port: int

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
        self._open: _OverGrpc | _Direct | None = None
        self._peer_direct_port = 0
        self._direct_breaks = 0
        self._pauses = Pauses()
        self._up_since_s = 0.0

    def run(self, until: float) -> None:
        """Connects until the time `until` of the monotonic clock, then keeps the stream up until the pair ends."""
        self._keep_up(until)
        self._close_late()

    def _keep_up(self, until: float) -> None:
        pair, mesh = self._pair, self._mesh
        error = self._dial(until, first=True)
        if error is not None:
            mesh.fail(error)
            return
        self._go_direct()
        while self._read() is Outcome.BROKEN and pair.broken is not None and not mesh.finished:
            _log.warning(
                "the stream with %s broke (%s): dialling again for up to %g s",
                pair.peer,
                pair.broken.reason,
                mesh.reconnect_s,
            )
            broken_at_s = pair.broken.at_s
            self._pauses.lasted(broken_at_s - self._up_since_s)
            if isinstance(self._open, _Direct):
                soon = broken_at_s - self._up_since_s < _DIRECT_STEADY_S
                self._direct_breaks = self._direct_breaks + 1 if soon else 0
            error = self._dial(broken_at_s + mesh.reconnect_s, first=False)
            if error is not None:
                pair.end(error)
                return
            _log.warning("the stream with %s is up again after %.1f s", pair.peer, time.monotonic() - broken_at_s)
            self._go_direct()

    def close(self, until: float) -> None:
        """Ends the stream; waits until the time `until` for the other side's end of it."""
        if self._open is None:
            return
        while self._open.active() and time.monotonic() < until:
            time.sleep(0.005)
        self._open.close()

    def _dial(self, until: float, *, first: bool) -> VeilError | None:
        """None when a stream is up; otherwise why there is none."""
        name = self._pair.peer
        last: VeilError | None = None
        while not self._mesh.finished and self._pair.ended is None:
            time.sleep(max(0.0, min(self._pauses.next_s(), until - time.monotonic())))
            try:
                self._dial_once(until)
                self._up_since_s = time.monotonic()
                return None
            except (StateError, PeerLost) as error:
                last = error  # not there yet, or does not know of the job yet
            except VeilError as error:
                return error
            if time.monotonic() >= until:
                break
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
            self._peer_direct_port = first.direct_port
            self._open = _OverGrpc(channel, call)
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

    def _close_late(self) -> None:
        """Ends a stream that came up after `close` had ended the one before it."""
        if self._mesh.finished and self._open is not None:
            self._open.close()

    def _read(self) -> Outcome:
        self._close_late()
        outcome = self._pair.read(self._responses, self._stream)
        if outcome is Outcome.BROKEN and self._open is not None:
            self._open.close()
        return outcome

    def _go_direct(self) -> None:
        """Goes on beside gRPC, as a stream that resumes; nobody reads the present one while this runs."""
        pair, mesh = self._pair, self._mesh
        if not mesh.direct_port or not 0 < self._peer_direct_port < 2**16 or mesh.finished:
            return
        if self._direct_breaks >= _MOST_DIRECT_BREAKS:
            _log.warning("streams with %s beside gRPC keep breaking, going on over gRPC", pair.peer)
            return
        host, _ = split_address(self._address)
        address = f"[{host}]:{self._peer_direct_port}" if ":" in host else f"{host}:{self._peer_direct_port}"
        expect = Identity(self._credentials.identity.consortium, Role.PARTY, pair.peer)
        try:
            connection = dial(
                address, self._credentials, expect, most_bytes=mesh_frames.MOST_BYTES, timeout_s=_DIRECT_CONNECT_S
            )
        except VeilError as error:
            self._direct_breaks += 1
            _log.warning("%s is not reached at its direct port, going on over gRPC: %s", pair.peer, error)
            return
        messages = connection.frames()
        waiting = threading.Timer(HELLO_TIMEOUT_S, connection.close)
        waiting.daemon = True
        waiting.start()
        try:
            # The present stream stays in service until the other side has taken this one: nothing is lost between.
            connection.send(mesh_frames.hello(mesh.hello(pair, pair.received)))
            first = mesh_frames.decode(next(messages, b""))
            if not isinstance(first, mesh_pb2.MeshHello):
                raise ProtocolMismatch(f"got no hello from {pair.peer} at its direct port, expected one")
            mesh.check_hello(first, pair)
            pair.prepare()
            stream = Stream(connection.close, connection.send_at_once)
            pair.attach(stream, first.received)
        except (VeilError, OSError) as error:
            self._direct_breaks += 1
            _log.warning("%s does not go on at its direct port: %s", pair.peer, error)
            connection.close()
            return
        finally:
            waiting.cancel()
        if self._open is not None:
            self._open.close()
        self._open = _Direct(connection, pair, stream)
        self._responses, self._stream = messages, stream


class _OverGrpc:
    """A stream over gRPC."""

    def __init__(self, channel: grpc.Channel, call: grpc.Call) -> None:
        self._channel, self._call = channel, call

    def active(self) -> bool:
        """Whether the other side has not ended it."""
        return bool(self._call.is_active())

    def close(self) -> None:
        """Ends it, whatever is under way."""
        self._call.cancel()  # type: ignore[no-untyped-call]
        self._channel.close()


class _Direct:
    """A stream beside gRPC, and the thread that writes to it."""

    def __init__(self, connection: DirectStream, pair: Pair, stream: Stream) -> None:
        self._connection, self._pair, self._stream = connection, pair, stream
        self._writer = threading.Thread(target=self._write, name=f"mesh-write-{pair.peer}", daemon=True)
        self._writer.start()

    def _write(self) -> None:
        try:
            for frame in self._pair.items(self._stream):
                self._connection.send(frame)
            self._connection.finish()
        except OSError:
            self._connection.close()  # the reader finds that it has ended

    def active(self) -> bool:
        """Whether something is still to be sent."""
        return self._writer.is_alive()

    def close(self) -> None:
        """Ends it, whatever is under way."""
        self._connection.close()
