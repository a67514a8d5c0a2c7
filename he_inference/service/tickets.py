"""What waits for the compute process, and which of it is computed together.

Guarantee: order is kept but for queries that overtake others because they go along with an earlier one. What nobody
waits for any more is left out. A batch is of one index and fits in memory; what is to be alone is alone.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from he_inference.engine.seam import BLOCKS_AT_A_TIME
from he_inference.layouts.catalogue import result_bytes
from he_inference.layouts.seam import Layout
from he_inference.service.process import IndexFile
from veil.errors import PeerError

MOST_TOGETHER = 32
# Working memory of one batch: what engines hold of it at a time, by `most_together`.
_BATCH_BYTES = 768 * 1024 * 1024


class Late(PeerError):
    """The caller's deadline has passed, or the caller has gone; a server reports it as DEADLINE_EXCEEDED."""

    code = "CANCELLED"


class Observer(Protocol):
    """What is told of the work (`he_inference.service.metrics`)."""

    def queue_is(self, queries: int) -> None:
        """How many queries wait now."""

    def batch_was(self, queries: int) -> None:
        """How many queries were computed together."""

    def keys_found(self, hit: bool) -> None:
        """Whether the compute process had a query's keys in memory."""

    def worker_restarted(self) -> None:
        """The compute process was replaced."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Results of all blocks in order, and where the time went. compute_us is that of the whole batch."""

    results: list[bytes]
    compute_us: int
    read_us: int
    queue_us: int
    batch_queries: int


@dataclass(eq=False)
class Ticket:
    """A query or registration that waits; `cancel` may be called from any thread."""

    index: IndexFile
    name: str
    data: bytes = field(repr=False)
    load_keys: Callable[[], bytes] | None = field(repr=False)
    deadline: float
    since: float = field(default_factory=time.monotonic)
    done: threading.Event = field(default_factory=threading.Event, repr=False)
    cancelled: bool = False
    alone: bool = False
    attempts: int = 0
    scores: Scores | None = field(default=None, repr=False)
    error: BaseException | None = None

    def cancel(self) -> None:
        """The caller has gone."""
        self.cancelled = True
        self.done.set()

    def finish(self, scores: Scores | None = None, error: BaseException | None = None) -> None:
        """The answer."""
        self.scores, self.error = scores, error
        self.done.set()

    @property
    def pointless(self) -> bool:
        """Whether nobody waits for the answer any more."""
        return self.cancelled or time.monotonic() >= self.deadline


def batch_from(queue: deque[Ticket], most: int) -> list[Ticket]:
    """Takes the first ticket that somebody waits for, and those that can be computed with it; none when none waits."""
    while queue and queue[0].pointless:
        queue.popleft().finish(error=late())
    if not queue:
        return []
    first = queue.popleft()
    batch = [first]
    if first.alone or first.load_keys is None:
        return batch
    limit = min(most, most_together(first.index.layout))
    kept: deque[Ticket] = deque()
    while queue and len(batch) < limit:
        ticket = queue.popleft()
        fits = ticket.index is first.index and ticket.load_keys is not None and not ticket.alone
        if fits and not ticket.pointless:
            batch.append(ticket)
        else:
            kept.append(ticket)
    queue.extendleft(reversed(kept))
    return batch


def late() -> Late:
    """The error of a ticket that nobody waits for."""
    return Late("the deadline of this request has passed before it was answered", hint="allow it more time")


def most_together(layout: Layout) -> int:
    """Queries of a batch, so that what is held of it at a time stays within `_BATCH_BYTES`."""
    ciphertext_bytes = 2 * len(layout.parameters.data_primes) * layout.parameters.degree * 4
    rotated = (4 * layout.rotations + 3 * layout.query_ciphertexts) * ciphertext_bytes
    summed = 2 * min(layout.blocks, BLOCKS_AT_A_TIME) * (layout.groups + 1) * ciphertext_bytes
    return max(1, min(MOST_TOGETHER, _BATCH_BYTES // (rotated + summed + layout.blocks * result_bytes(layout))))
