"""Points and pseudonyms between two parties, in batches of known size.

Guarantee: a receiver knows how many rows come, so it states the exact shape of every message before it reads one, and
holds one list at a time; what does not fit ends the job with the peer named. Lists that pass through a party are
checked for repeated points, up to the sign: a point sent twice, or with its negative, could be followed through a
shuffle. (So could a point and its double, which nobody can see: this is no proof against parties that depart from the
protocol.) On the ring, sending and receiving alternate batch by batch, so no more than a batch or two wait in any
queue, whatever the size of the lists; lists that go one way fill a queue up to the transport's limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch

from veil.align.curve import POINT_BYTES, Curve, Points, Scalar
from veil.align.plan import AlignmentPlan, Progress
from veil.align.sets import Bytes, has_repetitions
from veil.errors import InputError, ProtocolMismatch
from veil.mpc.communicator import TensorCommunicator

BATCH_ROWS = 8192
"""264 KiB as points; about half a second of one core."""

_NOTHING: Bytes = np.empty((0, POINT_BYTES), dtype=np.uint8)


def batches(count: int) -> list[slice]:
    """Consecutive slices of at most `BATCH_ROWS`, covering 0..count-1."""
    return [slice(start, min(start + BATCH_ROWS, count)) for start in range(0, count, BATCH_ROWS)]


class Exchange:
    """What one party's steps have in common: the mesh, the curve, and who watches."""

    def __init__(self, communicator: TensorCommunicator, curve: Curve, progress: Progress | None = None) -> None:
        self.communicator = communicator
        self.curve = curve
        self.rank = communicator.rank
        self.world_size = communicator.world_size
        self.names = communicator.names
        self._progress = progress
        self._stage, self._done, self._total = "", 0, 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}(rank={self.rank}, world_size={self.world_size})"

    # Progress -----------------------------------------------------------------------------------------------------

    def begin(self, stage: str, total: int) -> None:
        """A new stage of `total` rows."""
        self._stage, self._done, self._total = stage, 0, total

    def advance(self, rows: int) -> None:
        """`rows` more are done."""
        self._done += rows
        if self._progress is not None:
            self._progress(self._stage, self._done, self._total)

    # Messages -----------------------------------------------------------------------------------------------------

    def send(self, rows: Bytes, peer: int) -> None:
        """One batch."""
        self.communicator.send(torch.from_numpy(np.array(rows, copy=True, order="C")), peer)

    def receive(self, count: int, peer: int, width: int = POINT_BYTES) -> Bytes:
        """One batch of exactly (count, width) bytes; raises `ProtocolMismatch` naming the peer for any other."""
        batch: Bytes = self.communicator.recv(torch.empty((count, width), dtype=torch.uint8), peer).numpy()
        return batch

    def multiply(self, points: Points, scalar: Scalar, sender: int) -> Points:
        """scalar * P for points from `sender`, who is named when they are none."""
        try:
            return self.curve.multiply(points, scalar)
        except InputError as error:
            raise self.wrong(sender, error.message) from None

    def wrong(self, peer: int, message: str) -> ProtocolMismatch:
        """The error that names `peer`."""
        return self.blame((peer,), message)

    def blame(self, peers: Iterable[int], message: str) -> ProtocolMismatch:
        """The error that names `peers`, one of whom is at fault."""
        culprits = tuple(self.names[peer] for peer in peers)
        return ProtocolMismatch(f"{message} (from {', '.join(culprits)})", culprits=culprits)

    def send_all(self, rows: Bytes, peers: Iterable[int]) -> None:
        """A whole list, batch by batch, to each of `peers`."""
        targets = tuple(peers)
        for part in batches(len(rows)):
            for peer in targets:
                self.send(rows[part], peer)

    def receive_rows(self, count: int, peer: int, width: int) -> Bytes:
        """A whole list."""
        rows = np.empty((count, width), dtype=np.uint8)
        for part in batches(count):
            rows[part] = self.receive(part.stop - part.start, peer, width)
        return rows

    def receive_all(self, count: int, peer: int, width: int = POINT_BYTES) -> Bytes:
        """A whole list of distinct rows."""
        return self.distinct(self.receive_rows(count, peer, width), peer)

    def tick(self, peers: Iterable[int]) -> None:
        """An empty batch: tells those who wait for a later one that work goes on."""
        for peer in peers:
            self.send(_NOTHING, peer)

    def await_ticks(self, count: int, peer: int) -> Iterator[None]:
        """Receives `count` empty batches, one for each step of the iteration."""
        for _ in range(count):
            self.receive(0, peer)
            yield

    def swap(
        self,
        outgoing: Iterator[list[Bytes]],
        to: int,
        count: int,
        source: int,
        lists: int,
        steps: int,
        handle: Callable[[slice, list[Bytes]], None],
    ) -> None:
        """Sends to one neighbour while it receives from the other, batch by batch, `steps` times.

        outgoing: for every batch one array from each list that travels. `count`: rows of each of the `lists` lists
        that come from `source`; `handle` gets their batches as they arrive. Who has nothing left to send ticks, so all
        parties keep step and nobody waits much longer than one batch takes.
        """
        parts = batches(count)
        for step in range(steps):
            for rows in next(outgoing, [_NOTHING]):
                self.send(rows, to)
            if step < len(parts):
                part = parts[step]
                handle(part, [self.receive(part.stop - part.start, source) for _ in range(lists)])
            else:
                self.receive(0, source)

    def distinct(self, rows: Bytes, sender: int) -> Bytes:
        """The rows; raises `ProtocolMismatch` naming the sender when one of them comes twice, or its negative does."""
        # The first byte of a point is the sign of y; k(-P) = -(kP) has the x of kP.
        if has_repetitions(rows[:, 1:] if rows.shape[1] == POINT_BYTES else rows):
            raise self.wrong(sender, "got a row twice in one list, expected distinct ones")
        return rows


class AlignmentExchange(Exchange):
    """That of an alignment, with its plan."""

    def __init__(
        self, communicator: TensorCommunicator, plan: AlignmentPlan, curve: Curve, progress: Progress | None = None
    ) -> None:
        super().__init__(communicator, curve, progress)
        self.plan = plan
