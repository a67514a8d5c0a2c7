"""Everything that CrypTen calls on its communicator, over any `Transport`.

Guarantees: every message is checked against what this step expects (operation, order, dtype, shape, size) before any
of it is used; sums wrap modulo 2^64; nothing is pickled; an error names the peer at fault. All parties must call the
same operations in the same order, as with torch.distributed.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from veil.errors import InputError, ProtocolMismatch, StateError
from veil.mpc import objects
from veil.mpc.header import Operation, Packed, packed
from veil.mpc.messages import WARN_AFTER_S, CheckedMessages
from veil.mpc.meters import CommunicationMeter, CommunicationReport
from veil.mpc.transport import Transport

__all__ = ["Request", "TensorCommunicator", "Transport"]

_log = logging.getLogger("veil.mpc")
LIMIT_BYTES = 64 * 2**20


class Request:
    """A send that has been queued, or a receive that happens on `wait`; receives complete in the order of waiting."""

    def __init__(self, complete: Callable[[], None] | None = None) -> None:
        self._complete = complete

    def wait(self) -> None:
        """Completes the request."""
        if self._complete is not None:
            complete, self._complete = self._complete, None
            complete()


class TensorCommunicator:
    """Collective operations among the parties of one job; `names` are theirs in rank order.

    A peer that sends nothing for `timeout_s` ends the job as `PeerLost` with its name; that it is waited for is logged
    every `warn_after_s` seconds.
    """

    BYTES_PER_ELEMENT = 8

    def __init__(
        self,
        transport: Transport,
        names: Sequence[str],
        timeout_s: float = 300.0,
        *,
        warn_after_s: float = WARN_AFTER_S,
    ) -> None:
        self.meter = CommunicationMeter(names)
        self._messages = CheckedMessages(transport, names, timeout_s, meter=self.meter, warn_after_s=warn_after_s)
        self.transport = transport
        self.names = self._messages.names
        self.rank = transport.rank
        self.world_size = transport.world_size
        self._peers = self._messages.peers
        self._name = self.names[self.rank]
        self.reset_communication_stats()

    def __repr__(self) -> str:
        return f"TensorCommunicator(rank={self.rank}, world_size={self.world_size})"

    # Between two parties ------------------------------------------------------------------------------------------

    def send(self, tensor: Tensor, dst: int) -> None:
        """Sends a tensor to `dst`."""
        with self.meter.operation("send"):
            self._messages.put(dst, Operation.SEND, tensor)

    def recv(self, tensor: Tensor, src: int | None = None) -> Tensor:
        """A new tensor from `src`, of the dtype and shape of `tensor`."""
        with self.meter.operation("recv"):
            if src is None:
                raise InputError("got no source, expected a rank: messages are received from a named party only")
            return self._messages.take(src, Operation.SEND, tensor)

    def isend(self, tensor: Tensor, dst: int) -> Request:
        """Queues a tensor for `dst`."""
        self.send(tensor, dst)
        return Request()

    def irecv(self, tensor: Tensor, src: int | None = None) -> Request:
        """Receives into `tensor` when waited for."""

        def complete() -> None:
            tensor.data.copy_(self.recv(tensor, src))

        return Request(complete)

    # Among all parties --------------------------------------------------------------------------------------------

    def scatter(
        self, scatter_list: Sequence[Tensor] | None, src: int, size: Sequence[int] | None = None, device: object = None
    ) -> Tensor:
        """Party i gets the i-th tensor of `src`'s list; the others give `size` or a list of like-sized tensors."""
        with self.meter.operation("scatter"):
            if src == self.rank:
                if scatter_list is None or len(scatter_list) != self.world_size:
                    raise InputError(f"got a list of another length, expected {self.world_size} tensors to scatter")
                for peer in self._peers:
                    self._messages.put(peer, Operation.SCATTER, scatter_list[peer])
                return scatter_list[self.rank]
            if size is None:
                if not scatter_list:
                    raise InputError("got neither size nor list, expected one of them at the receivers of scatter")
                size = scatter_list[self.rank].shape
            return self._messages.take(src, Operation.SCATTER, torch.empty(tuple(size), dtype=torch.int64))

    def reduce(self, input: Any, dst: int, op: object = "sum", batched: bool = False) -> Any:
        """Sum (mod 2^64) or xor of all parties' tensors, at `dst`; None elsewhere. `batched`: a list of tensors."""
        with self.meter.operation("reduce"):
            operation = _reduction(op, Operation.REDUCE, Operation.REDUCE_XOR)
            own = packed(_flatten(input) if batched else input)
            if dst != self.rank:
                self._messages.put_packed(dst, operation, own)
                return None
            result = self._combine(operation, own)
            return _unflatten(result, input) if batched else result

    def all_reduce(self, input: Any, op: object = "sum", batched: bool = False) -> Any:
        """Sum (mod 2^64) or xor of all parties' tensors, at every party. `batched`: a list, in one message."""
        with self.meter.operation("all_reduce"):
            operation = _reduction(op, Operation.ALL_REDUCE, Operation.ALL_REDUCE_XOR)
            own = packed(_flatten(input) if batched else input)
            for peer in self._peers:
                self._messages.put_packed(peer, operation, own)
            result = self._combine(operation, own)
            return _unflatten(result, input) if batched else result

    def _combine(self, operation: Operation, own: Packed) -> Tensor:
        # Adds up straight from the messages: one pass for each peer and no copy of its tensor.
        xor = operation in (Operation.REDUCE_XOR, Operation.ALL_REDUCE_XOR)
        combine = np.bitwise_xor if xor else np.add
        result = own.array
        for peer in self._peers:
            other = self._messages.take_array(peer, operation, own)
            result = combine(result, other, out=None if result is own.array else result)
        return torch.from_numpy(result).view(own.shape)

    def gather(self, tensor: Tensor, dst: int) -> list[Any]:
        """All parties' tensors in rank order at `dst`; [None] elsewhere."""
        with self.meter.operation("gather"):
            if dst != self.rank:
                self._messages.put(dst, Operation.GATHER, tensor)
                return [None]
            return self._collect(Operation.GATHER, tensor)

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        """All parties' tensors in rank order."""
        with self.meter.operation("all_gather"):
            for peer in self._peers:
                self._messages.put(peer, Operation.ALL_GATHER, tensor)
            return self._collect(Operation.ALL_GATHER, tensor)

    def _collect(self, operation: Operation, own: Tensor) -> list[Tensor]:
        return [
            own.detach().clone() if rank == self.rank else self._messages.take(rank, operation, own)
            for rank in range(self.world_size)
        ]

    def broadcast(self, input: Any, src: int, group: object = None, batched: bool = False) -> Any:
        """`src`'s tensor (or list of tensors), written into everybody's `input`, which is returned."""
        with self.meter.operation("broadcast"):
            for tensor in input if batched else [input]:
                if src == self.rank:
                    for peer in self._peers:
                        self._messages.put(peer, Operation.BROADCAST, tensor)
                else:
                    tensor.data.copy_(self._messages.take(src, Operation.BROADCAST, tensor))
            return input

    def barrier(self) -> None:
        """Returns when every party has called it."""
        with self.meter.operation("barrier"):
            nothing = torch.empty(0, dtype=torch.uint8)
            for peer in self._peers:
                self._messages.put(peer, Operation.BARRIER, nothing)
            for peer in self._peers:
                self._messages.take(peer, Operation.BARRIER, nothing)

    def agree(self, statement: bytes) -> None:
        """Returns when every party has stated the same; raises `ProtocolMismatch` naming those who did not."""
        with self.meter.operation("agree"):
            own = _bytes_tensor(hashlib.sha256(statement).digest())
            for peer in self._peers:
                self._messages.put(peer, Operation.AGREE, own)
            others = {peer: self._messages.take(peer, Operation.AGREE, own) for peer in self._peers}
            culprits = tuple(self.names[peer] for peer, other in others.items() if not torch.equal(other, own))
            if culprits:
                raise ProtocolMismatch(
                    f"got another statement from {', '.join(culprits)}, expected the same next step at every party",
                    culprits=culprits,
                )

    def exchange_keys(self, own: dict[int, bytes]) -> dict[int, bytes]:
        """Sends `own[peer]` to each peer and returns what each peer sent; all of one length."""
        with self.meter.operation("exchange_keys"):
            for peer in self._peers:
                self._messages.put(peer, Operation.KEY, _bytes_tensor(own[peer]))
            like = _bytes_tensor(own[self._peers[0]])
            return {peer: self._messages.take(peer, Operation.KEY, like).numpy().tobytes() for peer in self._peers}

    # Of sizes that only the sender knows --------------------------------------------------------------------------

    def broadcast_public(self, tensor: Tensor | None, src: int, limit_bytes: int = LIMIT_BYTES) -> Tensor:
        """`src`'s tensor at every party, whatever its dtype and shape; the others pass None."""
        with self.meter.operation("broadcast_public"):
            if src != self.rank:
                return self._messages.take_bounded(src, Operation.PUBLIC, limit_bytes)
            if tensor is None:
                raise InputError("got no tensor, expected one at the source of a broadcast")
            for peer in self._peers:
                self._messages.put(peer, Operation.PUBLIC, tensor)
            return tensor

    def all_gather_bytes(self, data: bytes, limit_bytes: int = 2**20) -> list[bytes]:
        """All parties' bytes in rank order."""
        with self.meter.operation("all_gather_bytes"):
            if len(data) > limit_bytes:
                raise InputError(f"got {len(data)} bytes, expected at most {limit_bytes}")
            for peer in self._peers:
                self._messages.put(peer, Operation.BYTES, _bytes_tensor(data))
            return [
                data if rank == self.rank else self._take_bytes(rank, limit_bytes) for rank in range(self.world_size)
            ]

    def _take_bytes(self, peer: int, limit_bytes: int, operation: Operation = Operation.BYTES) -> bytes:
        tensor = self._messages.take_bounded(peer, operation, limit_bytes)
        if tensor.dtype != torch.uint8 or tensor.dim() != 1:
            name = self.names[peer]
            raise ProtocolMismatch(f"got {tensor.dtype} from {name}, expected bytes", culprits=(name,))
        return tensor.numpy().tobytes()

    def send_obj(self, obj: object, dst: int, group: object = None) -> None:
        """Sends a small public object (veil.mpc.objects)."""
        with self.meter.operation("send_obj"):
            self._messages.put(dst, Operation.OBJECT, _bytes_tensor(objects.dumps(obj)))

    def recv_obj(self, src: int, group: object = None) -> object:
        """A small public object."""
        with self.meter.operation("recv_obj"):
            return objects.loads(self._take_bytes(src, objects.MAX_OBJECT_BYTES, Operation.OBJECT), self.names[src])

    def broadcast_obj(self, obj: object, src: int, group: object = None) -> object:
        """`src`'s object at every party."""
        if src != self.rank:
            return self.recv_obj(src)
        for peer in self._peers:
            self.send_obj(obj, peer)
        return obj

    def gather_obj(self, obj: object, dst: int, group: object = None) -> list[object]:
        """All parties' objects in rank order at `dst`; [None] elsewhere."""
        if dst != self.rank:
            self.send_obj(obj, dst)
            return [None]
        return [obj if rank == self.rank else self.recv_obj(rank) for rank in range(self.world_size)]

    def all_gather_obj(self, obj: object, group: object = None) -> list[object]:
        """All parties' objects in rank order."""
        for peer in self._peers:
            self.send_obj(obj, peer)
        return [obj if rank == self.rank else self.recv_obj(rank) for rank in range(self.world_size)]

    # Accessors ----------------------------------------------------------------------------------------------------

    def is_initialized(self) -> bool:
        """Always: the transport was connected before this object was made."""
        return True

    def get(self) -> Self:
        """This communicator."""
        return self

    def get_world_size(self) -> int:
        """Number of parties."""
        return self.world_size

    def get_rank(self) -> int:
        """Own rank."""
        return self.rank

    def get_ttp_rank(self) -> int:
        """There is no trusted third party on the mesh: the dealer is reached by the daemon."""
        raise StateError("got a request for the rank of a trusted third party, expected the dealer service")

    def get_distributed_backend(self) -> str:
        """Name of what carries the messages."""
        return f"veil/{type(self.transport).__name__}"

    def set_name(self, name: str) -> None:
        """Another label for this process; peers keep the name that the job gives."""
        self._name = name

    def get_name(self) -> str:
        """Label of this process."""
        return self._name

    def reset_communication_stats(self) -> None:
        """Sets the counters to zero."""
        self.meter.rounds = 0
        self._messages.bytes_sent = self._messages.messages_sent = 0
        self._messages.waited_s = 0.0

    def get_communication_stats(self) -> dict[str, float]:
        """Bytes and messages sent with headers, rounds (collective calls), seconds spent waiting for peers."""
        return {
            "rounds": self.meter.rounds,
            "bytes": self._messages.bytes_sent,
            "messages": self._messages.messages_sent,
            "time": self._messages.waited_s,
        }

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Within the block, what is exchanged counts under phase `name` (nested: "outer/name")."""
        return self.meter.phase(name)

    def report(self) -> CommunicationReport:
        """Bytes, messages, rounds and seconds by phase, operation and peer since the beginning, whatever was reset."""
        return self.meter.report(self.names[self.rank])

    def print_communication_stats(self) -> None:
        """Logs the counters."""
        _log.info("communication: %s", self.get_communication_stats())


def _reduction(op: object, plain: Operation, xor: Operation) -> Operation:
    """Reads "sum", "bxor" or torch.distributed.ReduceOp.{SUM,BXOR}."""
    if isinstance(op, str) and op == "sum":
        return plain
    name = str(getattr(op, "name", op)).rsplit(".", 1)[-1].lower()
    if name == "sum":
        return plain
    if name == "bxor":
        return xor
    raise InputError(f"got reduction {name!r}, expected sum or bxor")


def _flatten(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def _unflatten(flat: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    parts = torch.split(flat.reshape(-1), [tensor.numel() for tensor in like])
    return [part.reshape(tensor.shape) for part, tensor in zip(parts, like, strict=True)]


def _bytes_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
