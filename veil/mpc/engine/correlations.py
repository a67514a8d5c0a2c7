"""Where an engine's items come from: the seam, and its simplest form, one item at a time.

`Correlations.take(item)` gives (number, share of the mask, share of the dependent tensor). All parties ask for the same
items in the same order; the number of an item is its place in that order, so no stretch of any key serves twice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from veil.errors import InputError, ProtocolMismatch
from veil.mpc.engine.expand import Expander
from veil.mpc.engine.items import EngineItem, check

Correct = Callable[[int, EngineItem], bytes]
Taken = tuple[int, Tensor, Tensor | None]
_NOTHING = torch.empty(0, dtype=torch.int64)


class Correlations(Protocol):
    """What an engine needs of its dealer."""

    def take(self, item: EngineItem) -> Taken:
        """(number, share of the independent tensor, share of the dependent tensor or None for a mask)."""
        ...


class SeededCorrelations:
    """Expands from `seed`. At rank 0, `correct` fetches each correction when it is needed; elsewhere it is None."""

    def __init__(self, rank: int, parties: int, seed: bytes, correct: Correct | None) -> None:
        if (rank == 0) != (correct is not None):
            raise InputError("got a way to ask for corrections at the wrong party, expected it at rank 0 only")
        self._expander = Expander(rank, seed)
        self._parties = parties
        self._correct = correct
        self._masks: dict[int, EngineItem] = {}
        self._next = 0

    def __repr__(self) -> str:
        return f"SeededCorrelations(rank={self._expander.rank}, items={self._next})"

    def take(self, item: EngineItem) -> Taken:
        """See `Correlations.take`."""
        check(item, self._masks, self._parties)
        number, self._next = self._next, self._next + 1
        if item.kind == "mask":
            self._masks[number] = item
        return number, expand_independent(self._expander, number, item), self._dependent(number, item)

    def _dependent(self, number: int, item: EngineItem) -> Tensor | None:
        if item.dependent_shape is None:
            return None
        if self._correct is None:
            return self._expander.dependent(number, item)
        return correction_tensor(item, self._correct(number, item))


def expand_independent(expander: Expander, number: int, item: EngineItem) -> Tensor:
    """The share of an item's own mask; empty for products and noise, which have none."""
    return expander.independent(number, item) if item.kind in ("mask", "truncation", "waves") else _NOTHING


def correction_tensor(item: EngineItem, data: bytes | memoryview) -> Tensor:
    """A correction from its bytes, little-endian int64. Raises `ProtocolMismatch` on another length."""
    if item.dependent_shape is None or len(data) != item.correction_bytes:
        raise ProtocolMismatch(f"got a correction of {len(data)} bytes, expected {item.correction_bytes}")
    return torch.from_numpy(np.frombuffer(data, dtype="<i8").astype(np.int64)).reshape(item.dependent_shape)
