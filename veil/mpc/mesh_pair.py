"""One pair of parties on the mesh: its queues, and the frames of its stream that fill and empty them.

Guarantee: messages come out whole and in the order sent; a frame out of order or malformed ends the stream as
`ProtocolMismatch`, a stream that breaks as `PeerLost`, both naming the peer.
"""

from __future__ import annotations

from collections.abc import Iterator

import grpc

from veil.errors import PeerLost, ProtocolMismatch, VeilError
from veil.mpc.link import Assembler, Inbox, Outbox
from veil.wire.v1 import mesh_pb2

# Either side waits this long for the other's first message.
HELLO_TIMEOUT_S = 20.0


class Pair:
    """The queues of one pair and their frames."""

    def __init__(self, peer: str, queue_limit_bytes: int) -> None:
        self.peer = peer
        self.inbox = Inbox(peer, limit_bytes=queue_limit_bytes)
        self.outbox = Outbox(peer)
        self._assembler = Assembler(peer)

    def frames(self) -> Iterator[mesh_pb2.Frame]:
        for sequence, (payload, last) in enumerate(self.outbox.pieces()):
            yield mesh_pb2.Frame(sequence=sequence, payload=payload, last=last)

    def read(self, frames: Iterator[mesh_pb2.Frame | None]) -> None:
        """Puts the peer's messages into the inbox until its direction ends, one way or another."""
        error: VeilError = PeerLost(f"{self.peer} has closed its stream", culprits=(self.peer,))
        orderly = False
        try:
            for frame in frames:
                if frame is None:
                    raise ProtocolMismatch(f"got no frame from {self.peer}, expected one", culprits=(self.peer,))
                message = self._assembler.add(frame.sequence, frame.payload, frame.last)
                if message is not None and not self.inbox.put(message):
                    break
            orderly = True
        except ProtocolMismatch as mismatch:
            error = mismatch
        except grpc.RpcError as broken:
            code = getattr(broken, "code", lambda: grpc.StatusCode.CANCELLED)()
            error = PeerLost(f"the stream with {self.peer} broke: {code.name.lower()}", culprits=(self.peer,))
        self.inbox.end(error, orderly=orderly)
        self.outbox.close(error if isinstance(error, ProtocolMismatch) else None)

    def end(self, error: VeilError) -> None:
        self.inbox.end(error)
        self.outbox.close(error)
