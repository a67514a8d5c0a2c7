"""One pair of parties on the mesh: its queues, and the streams, one after another, that fill and empty them.

Guarantee: messages come out whole, once and in the order sent, also across a stream that broke and was resumed; a
frame out of order or malformed ends the pair as `ProtocolMismatch`, a break that is not mended as `PeerLost`, both
naming the peer. A frame that the peer repeats after a break is dropped by its number. When a new stream is attached,
whatever the old one still delivers is ignored: the number of frames that this side claims to have stays true.
"""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import grpc

from veil.errors import PeerLost, ProtocolMismatch, VeilError, WireError
from veil.mpc import mesh_frames
from veil.mpc.link import Assembler, Ending, Inbox
from veil.mpc.mesh_outbox import ACKNOWLEDGE_BYTES, ACKNOWLEDGE_FRAMES, FrameOutbox, Stream
from veil.wire.v1 import mesh_pb2

# Either side waits this long for the other's first message.
HELLO_TIMEOUT_S = 20.0


class Outcome(enum.Enum):
    """How reading a stream ended."""

    ENDED = "the pair has ended, one way or another"
    BROKEN = "the connection broke; the pair can go on with another"
    REPLACED = "another stream has taken its place"


class Break(NamedTuple):
    """A pair without a stream."""

    at_s: float
    reason: str


class Pair:
    """The queues of one pair; outlives its streams."""

    def __init__(self, peer: str, queue_limit_bytes: int) -> None:
        self.peer = peer
        self.peer_session = b""
        """What the peer has drawn for this run of the job; empty before the first stream."""
        self.inbox = Inbox(peer, limit_bytes=queue_limit_bytes)
        self.outbox = FrameOutbox(peer)
        self.broken: Break | None = None
        self.streams = 0
        """Streams so far: one, unless the connection broke."""
        self._assembler = Assembler(peer)
        self._stream: Stream | None = None
        self._state = threading.Lock()
        self._delivery = threading.Lock()
        self._unacknowledged_bytes = 0
        self._acknowledged = 0

    @property
    def ended(self) -> Ending | None:
        """How the peer's direction ended; None while it has not."""
        return self.inbox.ended

    @property
    def received(self) -> int:
        """Frames that have arrived from the peer."""
        return self._assembler.received

    def prepare(self) -> int:
        """Takes the present stream out of service; the number of frames received, to be told in a hello."""
        with self._state:
            before, self._stream = self._stream, None
            received = self._assembler.received
        if before is not None:
            self.outbox.detach(before)
            before.cancel()
        return received

    def attach(self, stream: Stream, received: int) -> None:
        """Goes on with `stream`, on which the peer asks for its frames from `received` on; after `prepare`.

        Raises `ProtocolMismatch`, with which the pair then ends, when that number is impossible.
        """
        try:
            with self._state:
                self.outbox.attach(stream, received)
                self.streams += 1
                self.broken = None
                self._stream = stream
        except ProtocolMismatch as error:
            self.end(error)
            raise

    def items(self, stream: Stream) -> Iterator[bytes]:
        """What to send on `stream`."""
        return self.outbox.items(stream)

    def read(self, messages: Iterator[bytes], stream: Stream) -> Outcome:
        """Puts the peer's messages into the inbox until its stream ends, one way or another."""
        try:
            for raw in messages:
                if not self._take(raw, stream):
                    return Outcome.REPLACED
            # To a gRPC server a connection that breaks can look like a caller that has nothing more to say.
            return self.suspend(stream, "it ended without a goodbye")
        except WireError as error:
            self.end(ProtocolMismatch(f"{self.peer}: {error.message}", culprits=(self.peer,)))
        except ProtocolMismatch as error:
            self.end(error)
        except grpc.RpcError as broken:
            code = getattr(broken, "code", lambda: grpc.StatusCode.CANCELLED)()
            return self.suspend(stream, code.name.lower())
        return Outcome.ENDED

    def suspend(self, stream: Stream, reason: str) -> Outcome:
        """The connection under `stream` has gone; whoever calls sees to another one when the outcome is BROKEN."""
        with self._state:
            if self._stream is not stream:
                return Outcome.REPLACED
            self._stream = None
            self.outbox.detach(stream)
            if self.ended is not None:
                return Outcome.ENDED
            self.broken = Break(time.monotonic(), reason)
            return Outcome.BROKEN

    def is_at(self, broken: Break) -> bool:
        """Whether the pair is still without a stream since this break."""
        return self.broken is broken and self.ended is None

    def end(self, error: VeilError) -> None:
        """Nothing more in either direction, because of `error`."""
        self.inbox.end(error)
        self.outbox.close(error)

    def _take(self, raw: bytes, stream: Stream) -> bool:
        body = mesh_frames.decode(raw)
        if isinstance(body, mesh_pb2.Acknowledgement):
            self.outbox.acknowledge(body.received)
        elif isinstance(body, mesh_pb2.Goodbye):
            if body.frames != self._assembler.received:
                got = f"a goodbye after {body.frames} frames"
                raise ProtocolMismatch(
                    f"got {got} from {self.peer}, expected {self._assembler.received}", culprits=(self.peer,)
                )
            self._left()
        elif isinstance(body, mesh_frames.Frame):
            return self._take_frame(body, stream)
        else:
            raise ProtocolMismatch(f"got no frame from {self.peer}, expected one", culprits=(self.peer,))
        return True

    def _take_frame(self, frame: mesh_frames.Frame, stream: Stream) -> bool:
        # One reader at a time delivers, so that an old one that waits for room cannot be overtaken by its successor.
        with self._delivery:
            with self._state:
                if self._stream is not stream:
                    return False
                if self.streams > 1 and frame.sequence < self._assembler.received:
                    return True  # sent again though it had arrived
                message = self._assembler.add(frame.sequence, frame.payload, frame.last)
                received = self._assembler.received
            self._unacknowledged_bytes += len(frame.payload)
            if self._unacknowledged_bytes >= ACKNOWLEDGE_BYTES or received - self._acknowledged >= ACKNOWLEDGE_FRAMES:
                self._unacknowledged_bytes, self._acknowledged = 0, received
                self.outbox.owe(received)
            return message is None or self.inbox.put(message)

    def _left(self) -> None:
        """The peer has left in order: what it has sent stays readable, and what is queued for it still goes out."""
        self.inbox.end(PeerLost(f"{self.peer} has closed its stream", culprits=(self.peer,)), orderly=True)
        self.outbox.leave_alone()
        self.outbox.close()
