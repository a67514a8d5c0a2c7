"""What a party's communication costs, by phase, operation and peer, and the report of it.

A round is one exchange of messages as torch.distributed counts collectives: one call, however many peers take part.
Bytes are those of messages with their headers, without the framing of the transport below. `seconds` is the time
within calls, `waited_s` the part of it in which a message of a peer was waited for. Counting costs a few microseconds a
call. A meter is for the one thread that computes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

REPORT_SCHEMA = "veil.communication/1"


@dataclass(frozen=True)
class OperationRow:
    """One operation in one phase, over all peers."""

    phase: str
    operation: str
    rounds: int
    seconds: float
    waited_s: float


@dataclass(frozen=True)
class PeerRow:
    """One operation in one phase, with one peer; `rounds` are those in which something passed between the two."""

    phase: str
    operation: str
    peer: str
    rounds: int
    bytes_sent: int
    messages_sent: int
    bytes_received: int
    messages_received: int
    waited_s: float


@dataclass(frozen=True)
class CommunicationReport:
    """All rows of one party, in the order in which phases and operations first occurred."""

    party: str
    operations: tuple[OperationRow, ...]
    peers: tuple[PeerRow, ...]

    def document(self) -> dict[str, object]:
        """The report as a JSON document."""
        return {"schema": REPORT_SCHEMA, **asdict(self)}


class _Traffic:
    """Counts with one peer."""

    __slots__ = ("bytes_received", "bytes_sent", "messages_received", "messages_sent", "round", "rounds", "waited_s")

    def __init__(self) -> None:
        self.bytes_sent = self.messages_sent = self.bytes_received = self.messages_received = 0
        self.waited_s = 0.0
        self.rounds = 0
        self.round = -1  # the last one in which something passed

    def touch(self, number: int) -> None:
        if self.round != number:
            self.round = number
            self.rounds += 1


class _Cell:
    """Counts of one operation in one phase; as a context, one round of it."""

    __slots__ = ("_before", "_meter", "_started", "peers", "rounds", "seconds", "waited_s")

    def __init__(self, meter: CommunicationMeter, peers: int) -> None:
        self._meter = meter
        self._before: _Cell | None = None
        self._started = 0.0
        self.peers = [_Traffic() for _ in range(peers)]
        self.rounds = 0
        self.seconds = self.waited_s = 0.0

    def __enter__(self) -> None:
        self.rounds += 1
        self._meter.rounds += 1
        self._before, self._meter.cell = self._meter.cell, self
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._started
        self._meter.cell = self._before


class CommunicationMeter:
    """Counts for one communicator; `names` are the parties' in rank order."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._phase = ""
        self._cells: dict[tuple[str, str], _Cell] = {}
        self.rounds = 0
        self.cell: _Cell | None = None

    @property
    def phase_name(self) -> str:
        """The present phase; "" outside of any."""
        return self._phase

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What is done within the block counts under `name`; within another phase, under "outer/name"."""
        before = self._phase
        self._phase = f"{before}/{name}" if before else name
        try:
            yield
        finally:
            self._phase = before

    def operation(self, name: str) -> _Cell:
        """A context: one round of an operation. Operations do not nest within themselves."""
        return self._cells.get((self._phase, name)) or self._cell(name)

    def _cell(self, name: str) -> _Cell:
        return self._cells.setdefault((self._phase, name), _Cell(self, len(self._names)))

    def sent(self, peer: int, size_bytes: int) -> None:
        """One message went to `peer`, within the present operation."""
        if (cell := self.cell) is not None:
            traffic = cell.peers[peer]
            traffic.bytes_sent += size_bytes
            traffic.messages_sent += 1
            traffic.touch(cell.rounds)

    def received(self, peer: int, size_bytes: int, waited_s: float) -> None:
        """One message came from `peer`, after a wait."""
        if (cell := self.cell) is not None:
            traffic = cell.peers[peer]
            traffic.bytes_received += size_bytes
            traffic.messages_received += 1
            traffic.waited_s += waited_s
            cell.waited_s += waited_s
            traffic.touch(cell.rounds)

    def report(self, party: str) -> CommunicationReport:
        """Everything so far."""
        used = [(key, cell) for key, cell in self._cells.items() if cell.rounds]
        operations = tuple(
            OperationRow(phase, operation, cell.rounds, cell.seconds, cell.waited_s)
            for (phase, operation), cell in used
        )
        peers = tuple(
            PeerRow(
                phase,
                operation,
                name,
                traffic.rounds,
                traffic.bytes_sent,
                traffic.messages_sent,
                traffic.bytes_received,
                traffic.messages_received,
                traffic.waited_s,
            )
            for (phase, operation), cell in used
            for name, traffic in zip(self._names, cell.peers, strict=True)
            if traffic.rounds
        )
        return CommunicationReport(party, operations, peers)
