"""What an alignment takes, from its plan alone: rounds and bytes at each party, and points on the curve.

Guarantee: rounds and bytes are those of the communicator's meter (a call is a round, messages count with their headers)
for lists and a result as large as declared; `waits` of them follow one another and cannot overlap.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from veil.align.curve import POINT_BYTES
from veil.align.exchange import BATCH_ROWS
from veil.align.ids import PSEUDONYM_BYTES
from veil.align.plan import AlignmentPlan

_FIXED_HEADER: Final = 16
_DIGEST: Final = 32
_KEY: Final = 32
_NUMBER: Final = 8
_EXTENT: Final = 8  # of a header, for each dimension
_TICK: Final = _FIXED_HEADER + 2 * _EXTENT
"""A batch without rows; and what the header of one with rows adds."""


@dataclass(frozen=True)
class AlignCount:
    """Of one party."""

    rounds: int
    waits: int
    sent_bytes: int
    received_bytes: int


@dataclass(frozen=True)
class AlignPoints:
    """Points on the curve: what the party with most to do computes and waits for, and what all parties compute."""

    longest: int
    all: int


class _Tally:
    def __init__(self, size: int) -> None:
        self.size = size
        self.bytes = [[0] * size for _ in range(size)]
        self.rounds = [0] * size

    def everyone(self, size_bytes: int, calls: int = 1) -> None:
        """All send as much to all, in so many calls."""
        for source in range(self.size):
            self.rounds[source] += calls
            for target in range(self.size):
                self.bytes[source][target] += 0 if source == target else calls * size_bytes

    def tell(self, source: int, size_bytes: int) -> None:
        """One tells all, in one call."""
        for rank in range(self.size):
            self.rounds[rank] += 1
            self.bytes[source][rank] += 0 if rank == source else size_bytes

    def send(self, source: int, target: int, size_bytes: int, messages: int) -> None:
        """One to one: each message is a call at either end."""
        self.bytes[source][target] += size_bytes
        self.rounds[source] += messages
        self.rounds[target] += messages

    def send_list(self, source: int, target: int, rows: int, *, width: int = POINT_BYTES, ticks: int = 0) -> None:
        messages = _batches(rows) + ticks
        self.send(source, target, rows * width + messages * _TICK, messages)


def align_traffic(plan: AlignmentPlan) -> list[AlignCount]:
    """At each party, in rank order. Where sizes are announced (`padded = false`), for the largest that may be."""
    size, hidden, collector = len(plan.sizes), plan.mode == "hidden", plan.collector
    tally = _Tally(size)
    tally.everyone(_DIGEST + _FIXED_HEADER + _EXTENT, 2)  # statements before and after
    tally.everyone(_KEY + _FIXED_HEADER + _EXTENT, 4)  # two joint keys, each committed to and opened
    if not plan.padded:
        tally.everyone(_NUMBER + _FIXED_HEADER + _EXTENT)
    _mix(tally, plan)
    for rank in range(size):
        if rank != collector:  # each holds the next one's list
            tally.send_list(rank, collector, plan.sizes[(rank + 1) % size])
    tally.tell(collector, _NUMBER + _FIXED_HEADER + _EXTENT)
    (_hide if hidden else _reveal)(tally, plan)
    waits = _waits(plan)
    return [
        AlignCount(tally.rounds[rank], waits, sum(tally.bytes[rank]), sum(row[rank] for row in tally.bytes))
        for rank in range(size)
    ]


def _mix(tally: _Tally, plan: AlignmentPlan) -> None:
    """Every list goes round; who has fewer batches than the longest list ticks."""
    size, hidden, steps = tally.size, plan.mode == "hidden", _batches(max(plan.sizes))
    for rank in range(size):
        following = (rank + 1) % size
        for hop in range(size - 1):
            rows = plan.sizes[(rank - hop) % size]
            if hidden and hop:  # the second list, which travels beside the first from its second hop on
                tally.send_list(rank, following, rows)
            tally.send_list(rank, following, rows, ticks=steps - _batches(rows))
        if hidden:  # the second list's way home
            rows = plan.sizes[following]
            tally.send_list(rank, following, rows, ticks=steps - _batches(rows))


def _reveal(tally: _Tally, plan: AlignmentPlan) -> None:
    for rank in range(tally.size):
        tally.send_list(rank, (rank + 1) % tally.size, plan.result)
        if rank != plan.collector:
            tally.send_list(plan.collector, rank, plan.result, width=PSEUDONYM_BYTES)


def _hide(tally: _Tally, plan: AlignmentPlan) -> None:
    """The set of names goes round; who waits for it hears a tick for each batch that somebody before has done."""
    size, last = tally.size, (plan.collector - 1) % tally.size
    for rank in range(size):
        ticks = (rank - plan.collector) % size * _batches(plan.result)
        for target in range(size) if rank == last else [(rank + 1) % size]:
            if target != rank:
                tally.send_list(rank, target, plan.result, ticks=ticks)


def _waits(plan: AlignmentPlan) -> int:
    """Statements, keys, the ring batch by batch, then the result's way round."""
    size, steps, result = len(plan.sizes), _batches(max(plan.sizes)), _batches(plan.result)
    return 6 + (size - 1) * steps + size * result + (steps if plan.mode == "hidden" else 2)


def align_points(plan: AlignmentPlan) -> AlignPoints:
    """A batch is on its way while another is computed: a party waits only where lists go one after another."""
    size, rows = len(plan.sizes), sum(plan.sizes)
    if plan.mode == "hidden":
        return AlignPoints(2 * rows + size * plan.result, 2 * size * rows + size * plan.result)
    return AlignPoints(rows + (size - 1) * plan.result, size * rows + (size - 1) * plan.result)


def _batches(rows: int) -> int:
    return -(-rows // BATCH_ROWS)
