"""Tensors to and from one peer, each checked against what this step expects.

The layer between `veil.mpc.transport` (bytes) and `veil.mpc.communicator` (collective operations): it numbers the
messages of every pair, insists on operation, order, dtype, shape and size, and puts names to ranks in errors.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from veil.errors import InputError, PeerLost, ProtocolMismatch
from veil.mpc.header import Header, Operation, pack, to_tensor, unpack
from veil.mpc.transport import Transport


class CheckedMessages:
    """One party's numbered, checked messages; `names` are the parties' in rank order."""

    def __init__(self, transport: Transport, names: Sequence[str], timeout_s: float) -> None:
        if len(names) != transport.world_size:
            raise InputError(f"got {len(names)} names, expected one for each of {transport.world_size} parties")
        self.transport = transport
        self.names = tuple(names)
        self.rank = transport.rank
        self.world_size = transport.world_size
        self.peers = tuple(rank for rank in range(self.world_size) if rank != self.rank)
        self.timeout_s = timeout_s
        self.bytes_sent = 0
        self.messages_sent = 0
        self.waited_s = 0.0
        self._sent = [0] * self.world_size
        self._received = [0] * self.world_size

    def put(self, peer: int, operation: Operation, tensor: Tensor) -> None:
        """Queues a tensor for `peer`."""
        self._check_peer(peer)
        message = pack(operation, self._sent[peer], tensor)
        with self._named(peer):
            self.transport.send(peer, message)
        self._sent[peer] += 1
        self.bytes_sent += len(message)
        self.messages_sent += 1

    def take(self, peer: int, operation: Operation, like: Tensor) -> Tensor:
        """The next message of `peer`, which must carry a tensor of the dtype and shape of `like`."""
        header, data = self._next(peer)
        expected = Header(operation, self._received[peer], like.dtype, tuple(like.shape))
        if header != expected:
            raise self._mismatch(peer, str(header), str(expected))
        self._received[peer] += 1
        return to_tensor(header, data)

    def take_bounded(self, peer: int, operation: Operation, limit_bytes: int) -> Tensor:
        """The next message of `peer`, of a shape that only the peer knows and of at most `limit_bytes`."""
        header, data = self._next(peer)
        if header.operation != operation or header.sequence != self._received[peer] or len(data) > limit_bytes:
            expected = f"{operation.name.lower()} of at most {limit_bytes} bytes as message {self._received[peer]}"
            raise self._mismatch(peer, str(header), expected)
        self._received[peer] += 1
        return to_tensor(header, data)

    def _next(self, peer: int) -> tuple[Header, memoryview]:
        self._check_peer(peer)
        started = time.monotonic()
        try:
            with self._named(peer):
                message = self.transport.recv(peer, self.timeout_s)
        finally:
            self.waited_s += time.monotonic() - started
        return unpack(message, self.names[peer])

    @contextmanager
    def _named(self, peer: int) -> Iterator[None]:
        """Transports that know ranks only blame "rank-2"; the job knows the name."""
        try:
            yield
        except PeerLost as error:
            if error.culprits and error.culprits != (f"rank-{peer}",):
                raise
            message = error.message.replace(f"rank-{peer}", self.names[peer])
            raise PeerLost(message, culprits=(self.names[peer],), hint=error.hint) from None

    def _check_peer(self, peer: int) -> None:
        if peer not in self.peers:
            raise InputError(f"got rank {peer}, expected one of {self.peers}")

    def _mismatch(self, peer: int, got: str, expected: str) -> ProtocolMismatch:
        name = self.names[peer]
        return ProtocolMismatch(
            f"got {got} from {name}, expected {expected}",
            culprits=(name,),
            hint="the parties do not run the same steps; compare software versions and job texts",
        )
