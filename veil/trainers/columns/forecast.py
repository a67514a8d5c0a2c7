"""What a columns job will take at each party, before anything runs: bytes, rounds and seconds of each phase.

Bytes and rounds of the descent come from the dry run of the very program, those of the other phases from the sizes that
the job declares (a result of the alignment as large as declared). They are those of the communicator's meter: messages
with their headers, without the framing of the transport. Seconds are an estimate, for each phase

    rounds * (round trip / 2) + larger of bytes sent and received / bandwidth + computation

and computation is measured for a moment on this machine: of points on the curve (a batch is on its way while another is
computed, so their time does not add up over parties, except where lists go round one after another), of products modulo
2^64, and of entries in a ledger. Every party is taken to have a machine of its own, as fast as this one. Corrections of
the dealer come alongside the descent; where they take longer than it, they are its time.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import torch

from veil.align.curve import POINT_BYTES, Curve, Scalar
from veil.align.exchange import BATCH_ROWS
from veil.align.ids import PSEUDONYM_BYTES, dummies
from veil.align.plan import AlignmentPlan
from veil.errors import ConfigError
from veil.jobs.spec import JobSpec
from veil.mpc.engine.engine import Engine
from veil.mpc.engine.kernels import matmul
from veil.mpc.engine.plan import Plan, plan
from veil.trainers.columns.dry import dry_run
from veil.trainers.columns.terms import ColumnsTerms

PHASES: Final = ("align", "statistics", "offline", "prepare", "descend", "reveal")
"""In order; "offline" only where correlations come without a dealer."""
_FIXED_HEADER = 16
_DIGEST = 32
_KEY = 32
_PER_HARMONIC_S = 6e-9  # of one element: two products of 64 bits, two table look-ups
_PER_EXPANDED_BYTE_S = 1.0 / 1.5e9  # AES in counter mode


@dataclass(frozen=True)
class Link:
    """bandwidth: bits a second, each way; round_trip_s: between any two parties, and to the dealer."""

    bandwidth: float
    round_trip_s: float

    def __post_init__(self) -> None:
        """Raises `ConfigError` for numbers out of range."""
        if not (1e3 <= self.bandwidth <= 1e13 and 0 <= self.round_trip_s <= 60):
            raise ConfigError("got a link out of range, expected 1 kbit/s to 10 Tbit/s and a round trip of 0 to 60 s")

    def seconds(self, rounds: int, size_bytes: float) -> float:
        """Of so many exchanges one after another and so many bytes in one direction."""
        return rounds * self.round_trip_s / 2 + 8 * size_bytes / self.bandwidth


@dataclass(frozen=True)
class Speeds:
    """Seconds of this machine for a point on the curve, a product modulo 2^64, a byte of ciphertext, a ledger entry."""

    point_s: float
    product_s: float
    ciphertext_byte_s: float = 0.0
    entry_s: float = 0.0

    @classmethod
    def measure(cls, *, ciphertexts: bool = False) -> Speeds:
        """Takes a few tenths of a second, and a few seconds with ciphertexts."""
        byte_s = 0.0
        if ciphertexts:
            from veil.trainers.columns.offline import seconds_per_byte

            byte_s = seconds_per_byte()
        with Curve(1) as curve:
            secret, started = Scalar.draw(), time.perf_counter()
            points = curve.hash(dummies(500), secret)
            curve.multiply(points, secret)
            point_s = (time.perf_counter() - started) / 1000
        left, right = torch.ones((2000, 256), dtype=torch.int64), torch.ones((256, 1), dtype=torch.int64)
        matmul(left, right)  # compiles
        started = time.perf_counter()
        for _ in range(5):
            matmul(left, right)
            matmul(left.t(), left[:, :1])
        return cls(point_s, (time.perf_counter() - started) / (10 * left.numel()), byte_s, _entry_s())


def _entry_s() -> float:
    """Seconds until an insertion is on the disk, as `veil.privacy.ledger` asks for it."""
    with TemporaryDirectory() as folder, closing(sqlite3.connect(Path(folder) / "trial.sqlite")) as connection:
        connection.execute("PRAGMA synchronous = EXTRA")
        connection.execute("CREATE TABLE entry (number INTEGER)")
        connection.commit()
        started = time.perf_counter()
        for number in range(3):
            connection.execute("INSERT INTO entry VALUES (?)", (number,))
            connection.commit()
        return (time.perf_counter() - started) / 3


@dataclass(frozen=True)
class PhaseForecast:
    """Of one phase at one party."""

    phase: str
    rounds: int
    sent_bytes: int
    received_bytes: int
    seconds: float


@dataclass(frozen=True)
class PartyForecast:
    """Of one party; dealer_bytes: corrections, which only the party of rank 0 receives."""

    party: str
    phases: tuple[PhaseForecast, ...]
    dealer_bytes: int

    @property
    def seconds(self) -> float:
        """Of all phases."""
        return sum(phase.seconds for phase in self.phases)


def forecast(spec: JobSpec, link: Link, speeds: Speeds) -> list[PartyForecast]:
    """For every party in rank order. Raises `ConfigError` unless the job is a sound one on columns."""
    terms = ColumnsTerms.of(spec)
    ranks = range(len(spec.parties))
    without = terms.trainer.triples == "he"
    plans = [_descent(terms, spec, rank) for rank in ranks]
    counted = {
        "align": align_traffic(terms.alignment),
        "statistics": [_statistics(spec, terms) for _ in ranks],
        "offline": [plans[rank]["offline"] for rank in ranks] if without else [],
        **{phase: [plans[rank][phase] for rank in ranks] for phase in PHASES[3:]},
    }
    phases_of_job = [phase for phase in PHASES if counted[phase]]
    computed = {
        "align": _points(terms.alignment) * speeds.point_s,
        # Each release is on the disk of its party's ledger before the next thing happens.
        "statistics": len(spec.parties) * speeds.entry_s,
        "descend": _descent_s(terms, plans[0]["descend"], speeds) + terms.descent.steps * speeds.entry_s,
    }
    corrections = 0 if without else max(rows["descend"].correction_bytes for rows in plans)
    found = []
    for rank, party in enumerate(spec.parties):
        phases = []
        for phase in phases_of_job:
            mine = counted[phase][rank]
            received = mine.received_bytes
            if received is None:  # the same went to all peers
                others = [one.sent_bytes for at, one in enumerate(counted[phase]) if at != rank]
                received = sum(others) // len(others)
            seconds = link.seconds(mine.rounds, max(mine.sent_bytes, received)) + computed.get(phase, 0.0)
            if phase == "offline":
                # A ciphertext is made at one end and used at the other.
                seconds += (mine.sent_bytes + received) / 2 * speeds.ciphertext_byte_s
            if phase == "descend" and not without:
                seconds = max(seconds, link.seconds(1, corrections) + _dealer_s(plans[0]["descend"], speeds))
            phases.append(PhaseForecast(phase, mine.rounds, mine.sent_bytes, received, seconds))
        found.append(PartyForecast(party, tuple(phases), corrections if rank == 0 else 0))
    return found


@dataclass(frozen=True)
class Counted:
    """Of one phase at one party. received_bytes: None where all parties send the same to all others."""

    rounds: int
    sent_bytes: int
    received_bytes: int | None = None
    correction_bytes: int = 0
    multiplications: int = 0
    expanded_bytes: int = 0


def _descent(terms: ColumnsTerms, spec: JobSpec, rank: int) -> dict[str, Counted]:
    """The three phases on shared numbers, from dry runs of their beginnings."""

    def prepare(engine: Engine) -> None:
        engine.start()
        terms.program().start(engine, None)

    start = plan(prepare, rank, len(spec.parties))
    whole = dry_run(terms, spec.releases, spec.privacy.noise, rank=rank)
    peers = len(spec.parties) - 1
    opened = peers * (8 * terms.layout.columns * terms.outputs + _FIXED_HEADER + 16)
    # The dry run has no start, which compares tables in one round.
    agree = peers * (_DIGEST + _FIXED_HEADER + 8)
    descend = Counted(
        whole.rounds + 1 - start.rounds - 1,
        whole.sent_bytes + agree - start.sent_bytes - opened,
        correction_bytes=whole.correction_bytes,
        multiplications=whole.dealer_multiplications,
        expanded_bytes=_expanded(whole),
    )
    offline = None
    if terms.trainer.triples == "he":
        from veil.trainers.columns.offline import count_offline

        offline = count_offline(whole.items, rank, len(spec.parties))
    return {
        "offline": Counted(0, 0)
        if offline is None
        else Counted(offline.rounds, offline.sent_bytes, offline.received_bytes),
        "prepare": Counted(start.rounds, start.sent_bytes),
        "descend": descend,
        "reveal": Counted(2, opened + agree),
    }


def _expanded(whole: Plan) -> int:
    return sum(8 * item.elements + item.correction_bytes for item in whole.items)


def _descent_s(terms: ColumnsTerms, counted: Counted, speeds: Speeds) -> float:
    rows, hidden = terms.descent.steps * terms.descent.batch, terms.trainer.hidden
    waves = rows * terms.descent.sigmoid.harmonics * _PER_HARMONIC_S
    if hidden is not None:
        inputs = hidden.units * (2 if hidden.left else 1)
        waves += rows * inputs * len(hidden.activation.sines) * 2 * _PER_HARMONIC_S
    # Each product of the dealer is two at a party: public by share, share by public.
    return 2 * counted.multiplications * speeds.product_s + waves + counted.expanded_bytes * _PER_EXPANDED_BYTE_S


def _dealer_s(counted: Counted, speeds: Speeds) -> float:
    return counted.multiplications * speeds.product_s + counted.expanded_bytes * _PER_EXPANDED_BYTE_S


def _statistics(spec: JobSpec, terms: ColumnsTerms) -> Counted:
    """One statement and one opening for each party's sums, and one statement of what was made of them."""
    peers = len(spec.parties) - 1
    releases = spec.releases[: len(terms.schema.parties)]
    agree = _DIGEST + _FIXED_HEADER + 8
    sent = sum(8 * release.size + _FIXED_HEADER + 8 * len(release.shape) + agree for release in releases) + agree
    return Counted(2 * len(releases) + 1, peers * sent)


def align_traffic(terms: AlignmentPlan) -> list[Counted]:
    """Rounds and bytes of an alignment at each party, for a result as large as declared."""
    ranks = range(len(terms.sizes))
    to = [_align_messages(terms, rank) for rank in ranks]
    rounds = _align_rounds(terms)
    return [Counted(rounds, sum(to[rank]), sum(to[other][rank] for other in ranks)) for rank in ranks]


def _align_messages(terms: AlignmentPlan, rank: int) -> list[int]:
    """Bytes from a party to each: its own list and those that pass go on to the next one, one more to the collector."""
    size, sizes, hidden = len(terms.sizes), terms.sizes, terms.mode == "hidden"
    following, steps, collector = (rank + 1) % size, _batches(max(sizes)), terms.collector
    # two statements, two joint keys in two parts each
    each = 2 * (_DIGEST + _FIXED_HEADER + 8) + 4 * (_KEY + _FIXED_HEADER + 8)
    to = [0 if other == rank else each for other in range(size)]
    for hop in range(size - 1):
        to[following] += (2 if hidden and hop else 1) * _swapped(sizes[(rank - hop) % size], steps)
    if rank != collector:
        to[collector] += _list_bytes(sizes[following])
    outcome = 8 + _FIXED_HEADER + 8
    if hidden:
        to[following] += _swapped(sizes[following], steps)
        # The set of names goes round; who waits for it hears a tick for each batch that somebody before has done.
        position = (rank - collector) % size
        names = _list_bytes(terms.result) + position * _batches(terms.result) * _tick()
        if position == size - 1:  # the last one sends it to all
            to = [sent if other == rank else sent + names for other, sent in enumerate(to)]
        else:
            to[following] += names
    else:
        to[following] += _list_bytes(terms.result)
        outcome += _list_bytes(terms.result, PSEUDONYM_BYTES)
    if rank == collector:
        to = [sent if other == rank else sent + outcome for other, sent in enumerate(to)]
    return to


def _align_rounds(terms: AlignmentPlan) -> int:
    """Exchanges one after another: statements, keys, the ring batch by batch, then the result's way round."""
    size, steps, result = len(terms.sizes), _batches(max(terms.sizes)), _batches(terms.result)
    return 6 + (size - 1) * steps + size * result + (steps if terms.mode == "hidden" else 2)


def _swapped(rows: int, steps: int) -> int:
    """A list, and ticks for as many batches as the longest list has more."""
    return _list_bytes(rows) + (steps - _batches(rows)) * _tick()


def _points(terms: AlignmentPlan) -> int:
    """Points that the party with most to do computes, and those for which it waits."""
    size = len(terms.sizes)
    if terms.mode == "hidden":
        return 2 * sum(terms.sizes) + size * terms.result
    return sum(terms.sizes) + (size - 1) * terms.result


def _list_bytes(rows: int, width: int = POINT_BYTES) -> int:
    return rows * width + _batches(rows) * _tick()


def _tick() -> int:
    return _FIXED_HEADER + 16


def _batches(rows: int) -> int:
    return -(-rows // BATCH_ROWS)
