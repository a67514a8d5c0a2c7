"""Correlated randomness ahead of need: a thread expands and fetches what the plan says will be asked for next.

Which items a program asks for, and in which order, does not depend on data; a dry run tells (`veil.mpc.engine.plan`).
So while the program waits for its peers, its next items are made. What has been made and not yet taken is bounded.

Guarantee: items are handed out in the order of the plan, each once; a program that asks for another item than planned
is stopped, since its parties would no longer agree on numbers.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Self

from veil.errors import ProtocolMismatch, StateError
from veil.mpc.engine.correlations import Taken, correction_tensor, expand_independent
from veil.mpc.engine.expand import Expander
from veil.mpc.engine.items import EngineItem, check, multiplications
from veil.mpc.engine.wire import MOST_CORRECTION_BYTES, MOST_ITEMS

Fetch = Callable[[int, Sequence[EngineItem]], bytes]
AHEAD_BYTES = 256 * 2**20
_BATCH_BYTES = 4 * 2**20
# Some tenth of a second of the dealer's time; its limit is on a whole request.
_BATCH_WORK = 2**30


class PooledCorrelations:
    """`Correlations` from a plan. At rank 0, `fetch` asks the dealer for the corrections of items in a row.

    Use as a context manager: leaving it ends the thread. ahead_bytes bounds what waits to be taken; one item larger
    than that is made alone.
    """

    def __init__(
        self,
        rank: int,
        parties: int,
        seed: bytes,
        fetch: Fetch | None,
        items: Sequence[EngineItem],
        *,
        ahead_bytes: int = AHEAD_BYTES,
    ) -> None:
        if (rank == 0) != (fetch is not None):
            raise StateError("got a way to the dealer at the wrong party, expected it at rank 0 only")
        masks: dict[int, EngineItem] = {}
        for number, item in enumerate(items):
            check(item, masks, parties)
            if item.kind == "mask":
                masks[number] = item
        self._expander = Expander(rank, seed)
        self._fetch = fetch
        self._items = tuple(items)
        self._ahead_bytes = ahead_bytes
        self._ready: deque[tuple[int, Taken]] = deque()
        self._waiting_bytes = 0
        self._taken = 0
        self._made = 0
        self._error: BaseException | None = None
        self._closed = False
        self._blocked = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="correlations", daemon=True)

    def __repr__(self) -> str:
        return f"PooledCorrelations(taken={self._taken}, made={self._made}, planned={len(self._items)})"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self._ready.clear()

    def wait_full(self) -> None:
        """Returns when everything planned is made, or as much as may wait: for measuring the rest alone."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._error or self._made == len(self._items) or (self._blocked and bool(self._ready))
            )

    def take(self, item: EngineItem) -> Taken:
        """See `veil.mpc.engine.correlations.Correlations.take`. Raises what the thread ended with."""
        if self._taken >= len(self._items) or self._items[self._taken] != item:
            planned = self._items[self._taken].kind if self._taken < len(self._items) else "nothing"
            raise StateError(
                f"got a request for {item.kind} {item.shape} as item {self._taken}, expected {planned} as planned",
                hint="a program must not depend on data in what it asks for",
            )
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._error or self._closed)
            if not self._ready:
                raise self._error or StateError("got a request after the end, expected none")
            size_bytes, taken = self._ready.popleft()
            self._taken += 1
            self._waiting_bytes -= size_bytes
            if self._blocked:
                self._changed.notify_all()
        return taken

    def _run(self) -> None:
        try:
            for first, items in batches(self._items):
                fetched = memoryview(b"")
                if self._fetch is not None:  # also for masks alone: the dealer must know of them
                    fetched = memoryview(self._fetch(first, items))
                    expected = sum(item.correction_bytes for item in items)
                    if len(fetched) != expected:
                        raise ProtocolMismatch(f"got corrections of {len(fetched)} bytes, expected {expected}")
                at = 0
                for number, item in enumerate(items, first):
                    taken, at = self._make(number, item, fetched, at)
                    if not self._put(item, taken):
                        return
        except BaseException as error:  # noqa: BLE001 - raised again in the thread of the program, which would wait for ever
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _make(self, number: int, item: EngineItem, fetched: memoryview, at: int) -> tuple[Taken, int]:
        own = expand_independent(self._expander, number, item)
        if item.dependent_shape is None:
            return (number, own, None), at
        if self._fetch is None:
            return (number, own, self._expander.dependent(number, item)), at
        stop = at + item.correction_bytes
        return (number, own, correction_tensor(item, fetched[at:stop])), stop

    def _put(self, item: EngineItem, taken: Taken) -> bool:
        size_bytes = 8 * taken[1].numel() + (0 if taken[2] is None else 8 * taken[2].numel())
        with self._changed:
            self._blocked = True
            if self._waiting_bytes + size_bytes > self._ahead_bytes:
                self._changed.notify_all()  # for who waits until the pool is full
            self._changed.wait_for(
                lambda: self._closed or not self._ready or self._waiting_bytes + size_bytes <= self._ahead_bytes
            )
            self._blocked = False
            if self._closed:
                return False
            self._ready.append((size_bytes, taken))
            self._waiting_bytes += size_bytes
            self._made += 1
            if len(self._ready) == 1 or self._made == len(self._items):
                self._changed.notify_all()
        return True


def batches(items: Sequence[EngineItem]) -> list[tuple[int, Sequence[EngineItem]]]:
    """(number of the first, items) of each request, all items of a program from number 0 on.

    Some 4 MiB of corrections or some 2^30 multiplications, and a first one that is small. Raises `StateError` when one
    item alone is larger than what may travel.
    """
    result: list[tuple[int, Sequence[EngineItem]]] = []
    masks: dict[int, EngineItem] = {}
    first, size_bytes, work, most_bytes = 0, 0, 0, _BATCH_BYTES // 16
    for number, item in enumerate(items):
        if item.correction_bytes > MOST_CORRECTION_BYTES:
            raise StateError(f"got a correction of {item.correction_bytes} bytes, expected {MOST_CORRECTION_BYTES}")
        if item.kind == "mask":
            masks[number] = item
        more = multiplications(item, masks)
        beyond = size_bytes + item.correction_bytes > most_bytes or work + more > _BATCH_WORK
        if number > first and (beyond or number - first >= MOST_ITEMS):
            result.append((first, items[first:number]))
            first, size_bytes, work, most_bytes = number, 0, 0, _BATCH_BYTES
        size_bytes += item.correction_bytes
        work += more
    if first < len(items):
        result.append((first, items[first:]))
    return result
