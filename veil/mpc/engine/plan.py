"""A program without its data: which items it asks for, how many rounds and bytes it takes, whether its numbers fit.

The program runs once on shapes in place of tensors (`veil.mpc.engine.outline`). What it asks for cannot depend on data,
so this is what the real run asks for, item by item; bounds on numbers are checked by the same arithmetic on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from veil.mpc.communicator import TensorCommunicator
from veil.mpc.engine.correlations import Taken
from veil.mpc.engine.engine import Engine
from veil.mpc.engine.items import EngineItem, check, multiplications
from veil.mpc.engine.outline import outline

_HEADER_BYTES = 16  # veil.mpc.header, without extents
_META = torch.device("meta")


@dataclass(frozen=True)
class Plan:
    """What one party sends in a program, and what it asks of the dealer. Bytes count headers of messages."""

    items: tuple[EngineItem, ...]
    rounds: int
    messages: int
    sent_bytes: int
    correction_bytes: int
    dealer_multiplications: int


class _Recorder:
    def __init__(self, parties: int) -> None:
        self.items: list[EngineItem] = []
        self._masks: dict[int, EngineItem] = {}
        self._parties = parties
        self.multiplications = 0

    def take(self, item: EngineItem) -> Taken:
        check(item, self._masks, self._parties)
        number = len(self.items)
        self.items.append(item)
        if item.kind == "mask":
            self._masks[number] = item
        self.multiplications += multiplications(item, self._masks)
        dependent = item.dependent_shape
        return number, _nothing(item.shape), None if dependent is None else _nothing(dependent)


class _Silence:
    """A communicator that counts."""

    def __init__(self, rank: int, parties: int) -> None:
        self.rank = rank
        self.world_size = parties
        self.rounds = 0
        self.messages = 0
        self.sent_bytes = 0

    def all_reduce(self, tensor: Tensor) -> Tensor:
        self._count(tensor)
        return _nothing(tensor.shape)

    def broadcast(self, tensor: Tensor, source: int) -> Tensor:
        if source == self.rank:
            self._count(tensor)
        else:
            self.rounds += 1
        return _nothing(tensor.shape)

    def reduce(self, tensor: Tensor, recipient: int) -> Tensor | None:
        self._count(tensor, 0 if recipient == self.rank else 1)
        return _nothing(tensor.shape) if recipient == self.rank else None

    def agree(self, statement: bytes) -> None:
        self._count(torch.zeros(32, dtype=torch.uint8))

    def _count(self, tensor: Tensor, peers: int | None = None) -> None:
        peers = self.world_size - 1 if peers is None else peers
        self.rounds += 1
        self.messages += peers
        size_bytes = tensor.numel() * tensor.element_size() + _HEADER_BYTES + 8 * tensor.dim()
        self.sent_bytes += peers * size_bytes


def plan(program: Callable[[Engine], Any], rank: int, parties: int) -> Plan:
    """What `program` takes at the party of `rank`. Raises `ConfigError` when its numbers may leave 63 bits."""
    recorder, silence = _Recorder(parties), _Silence(rank, parties)
    program(Engine(cast(TensorCommunicator, silence), recorder, device=_META))
    return Plan(
        items=tuple(recorder.items),
        rounds=silence.rounds,
        messages=silence.messages,
        sent_bytes=silence.sent_bytes,
        correction_bytes=sum(item.correction_bytes for item in recorder.items),
        dealer_multiplications=recorder.multiplications,
    )


def _nothing(shape: Sequence[int]) -> Tensor:
    return outline(shape)
