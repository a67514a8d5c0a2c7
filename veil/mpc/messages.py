"""Tensors to and from one peer, each checked against what this step expects.

The layer between `veil.mpc.transport` (bytes) and `veil.mpc.communicator` (collective operations): it numbers the
messages of every pair, insists on operation, order, dtype, shape and size, and puts names to ranks in errors.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from veil.errors import InputError, PeerLost, ProtocolMismatch
from veil.mpc.header import Header, Operation, Packed, pack_header, packed, to_array, to_tensor, unpack
from veil.mpc.meters import CommunicationMeter
from veil.mpc.transport import Payload, PeerSilent, Transport

# How often a wait for a peer is mentioned in the log.
WARN_AFTER_S = 10.0
_log = logging.getLogger("veil.mpc")


class CheckedMessages:
    """One party's numbered, checked messages; `names` are the parties' in rank order."""

    def __init__(
        self,
        transport: Transport,
        names: Sequence[str],
        timeout_s: float,
        *,
        meter: CommunicationMeter,
        warn_after_s: float,
    ) -> None:
        if len(names) != transport.world_size:
            raise InputError(f"got {len(names)} names, expected one for each of {transport.world_size} parties")
        self.transport = transport
        self.names = tuple(names)
        self.rank = transport.rank
        self.world_size = transport.world_size
        self.peers = tuple(rank for rank in range(self.world_size) if rank != self.rank)
        self.timeout_s = timeout_s
        self._meter = meter
        self._warn_after_s = warn_after_s
        self.bytes_sent = 0
        self.messages_sent = 0
        self.waited_s = 0.0
        self._sent = [0] * self.world_size
        self._received = [0] * self.world_size

    def put(self, peer: int, operation: Operation, tensor: Tensor) -> None:
        """Queues a tensor for `peer`; the caller may write into it afterwards."""
        self.put_packed(peer, operation, packed(tensor))

    def put_packed(self, peer: int, operation: Operation, tensor: Packed) -> None:
        """As `put`, for a tensor that goes to several peers."""
        self._check_peer(peer)
        head = pack_header(operation, self._sent[peer], tensor.dtype, tensor.shape)
        size_bytes = len(head) + len(tensor.data)
        self._sent[peer] += 1
        self.bytes_sent += size_bytes
        self.messages_sent += 1
        self._meter.sent(peer, size_bytes)
        try:
            self.transport.send(peer, head, tensor.data)
        except PeerLost as error:
            raise self._named(peer, error) from None

    def take(self, peer: int, operation: Operation, like: Tensor) -> Tensor:
        """The next message of `peer`, which must carry a tensor of the dtype and shape of `like`."""
        shape = tuple(like.shape)
        data = self._expected(peer, operation, like.dtype, shape, like.numel() * like.element_size())
        return to_tensor(Header(operation, self._received[peer] - 1, like.dtype, shape), data)

    def take_array(self, peer: int, operation: Operation, like: Packed) -> np.ndarray[Any, Any]:
        """As `take`, in one dimension, as a view of the message: to be read at once and not to be written to."""
        return to_array(like.dtype, self._expected(peer, operation, like.dtype, like.shape, len(like.data)))

    def take_bounded(self, peer: int, operation: Operation, limit_bytes: int) -> Tensor:
        """The next message of `peer`, of a shape that only the peer knows and of at most `limit_bytes`."""
        header, data = unpack(self._next(peer, operation), self.names[peer])
        if header.operation != operation or header.sequence != self._received[peer] or len(data) > limit_bytes:
            expected = f"{operation.name.lower()} of at most {limit_bytes} bytes as message {self._received[peer]}"
            raise self._mismatch(peer, str(header), expected)
        self._received[peer] += 1
        return to_tensor(header, data)

    def _expected(
        self, peer: int, operation: Operation, dtype: torch.dtype, shape: tuple[int, ...], size_bytes: int
    ) -> memoryview:
        """The data of the next message of `peer`, whose header must be, byte for byte, what this step expects."""
        message = self._next(peer, operation)
        head = pack_header(operation, self._received[peer], dtype, shape)
        view = memoryview(message)
        if view[: len(head)] != head or len(view) - len(head) != size_bytes:
            header, _ = unpack(message, self.names[peer])
            expected = Header(operation, self._received[peer], dtype, shape)
            raise self._mismatch(peer, str(header), str(expected))
        self._received[peer] += 1
        return view[len(head) :]

    def _next(self, peer: int, operation: Operation) -> Payload:
        self._check_peer(peer)
        started = time.monotonic()
        try:
            message = self._wait(peer, operation, started)
        except PeerLost as error:
            self.waited_s += time.monotonic() - started
            raise self._named(peer, error) from None
        waited_s = time.monotonic() - started
        self.waited_s += waited_s
        self._meter.received(peer, len(message), waited_s)
        return message

    def _wait(self, peer: int, operation: Operation, started: float) -> Payload:
        """The next message; says in the log, again and again, whom it waits for and why."""
        while True:
            waited_s = time.monotonic() - started
            left_s = self.timeout_s - waited_s
            try:
                return self.transport.recv(peer, min(left_s, self._warn_after_s))
            except PeerSilent as silence:
                waited_s = time.monotonic() - started
                step = f"{operation.name.lower()}, message {self._received[peer]}"
                if self._meter.phase_name:
                    step = f"phase {self._meter.phase_name}, {step}"
                if waited_s < self.timeout_s:
                    _log.warning("waiting for %s since %.0f s at %s", self.names[peer], waited_s, step)
                    continue
                raise PeerLost(
                    f"got nothing from {self.names[peer]} in {self.timeout_s:g} s, expected {step}",
                    culprits=silence.culprits,
                    hint=f"see whether {self.names[peer]} runs, is overloaded or waits for somebody else",
                ) from None

    def _named(self, peer: int, error: PeerLost) -> PeerLost:
        """Transports that know ranks only blame "rank-2"; the job knows the name."""
        if error.culprits and error.culprits != (f"rank-{peer}",):
            return error
        message = error.message.replace(f"rank-{peer}", self.names[peer])
        return PeerLost(message, culprits=(self.names[peer],), hint=error.hint)

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
