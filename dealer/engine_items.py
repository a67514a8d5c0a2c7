"""The engine's items of one job at the dealer: which masks there are, and what corrections they give.

Guarantee: numbers are served in order and never twice, also when a request fails after it was admitted; every item is
checked against bounds before anything is computed, and what a job can make the dealer remember is bounded.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Sequence

from torch import Tensor

from veil.errors import StateError
from veil.mpc.engine.expand import Expander, Totals, correction
from veil.mpc.engine.items import EngineItem, check, multiplications

# Descriptions of masks that a later product may name, some 200 bytes each.
MOST_MASKS = 2**18


class EngineItems:
    """One job's; `seeds` are the parties', in rank order."""

    def __init__(self, seeds: Sequence[bytes], *, max_items: int) -> None:
        self._totals = Totals([Expander(rank, seed) for rank, seed in enumerate(seeds)])
        self._max_items = max_items
        self._masks: dict[int, EngineItem] = {}
        self._next = 0

    def __repr__(self) -> str:
        return f"EngineItems(parties={len(self._totals.expanders)}, items={self._next})"

    def admit(self, first: int, items: Sequence[EngineItem], *, max_elements: int, max_work: int) -> None:
        """Spends the numbers from `first` on. Raises `StateError` out of order, `WireError` beyond a bound."""
        if first != self._next or first + len(items) > self._max_items:
            raise StateError(f"got items from number {first}, expected {self._next} on, below {self._max_items}")
        masks = dict[int, EngineItem]()
        known = ChainMap(masks, self._masks)
        elements = work = 0
        for number, item in enumerate(items, first):
            check(item, known, len(self._totals.expanders), max_elements=max_elements, max_work=max_work)
            elements += item.correction_bytes // 8
            work += multiplications(item, known)
            if item.kind == "mask":
                masks[number] = item
        if elements > max_elements:
            raise StateError(f"got {elements} elements in one request, expected at most {max_elements}")
        if work > max_work:
            raise StateError(f"got {work} multiplications in one request, expected at most {max_work}")
        if len(self._masks) + len(masks) > MOST_MASKS:
            raise StateError(f"got more than {MOST_MASKS} masks in one job, expected fewer", hint="split the job")
        self._masks.update(masks)
        self._next += len(items)

    def correction(self, number: int, item: EngineItem, noise: Tensor | None) -> Tensor:
        """The correction of an admitted item, int64 of its dependent shape."""
        return correction(number, item, self._totals, self._masks, noise)
