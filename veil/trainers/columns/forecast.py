"""What a columns job will take at each party, before anything runs: bytes, rounds and seconds of each phase.

Bytes and rounds of the descent come from the dry run of the very program, those of the other phases from the sizes that
the job declares (a result of the alignment as large as declared). They are those of the communicator's meter: messages
with their headers, without the framing of the transport. Seconds are an estimate, for each phase

    exchanges one after another * (round trip / 2) + larger of bytes sent and received / bandwidth + work

and work is counted in points on the curve, products, bytes and messages, at what a core takes for each
(`veil.trainers.columns.speeds`). Where every party has a machine of its own, it is that of the party with most to do,
others' only where they are waited for, and corrections of the dealer come alongside the descent; where they take longer
than it, they are its time. Where all programs share the cores of one machine, it is at least the sum over all of them
divided by the cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from veil.align.traffic import AlignCount, align_points, align_traffic
from veil.jobs.spec import JobSpec
from veil.mpc.engine.engine import Engine
from veil.mpc.engine.items import EngineItem
from veil.mpc.engine.plan import Plan, plan
from veil.trainers.columns.dry import dry_run
from veil.trainers.columns.speeds import (
    CELL_S,
    EXPANDED_BYTE_S,
    HARMONIC_S,
    PLACED_CELL_S,
    RECEIVED_BYTE_S,
    SENT_BYTE_S,
    START_S,
    Link,
    Speeds,
    calls_s,
)
from veil.trainers.columns.terms import PAID_TOGETHER, ColumnsTerms

PHASES: Final = ("start", "align", "statistics", "offline", "prepare", "descend", "reveal")
"""In order; "offline" only where correlations come without a dealer."""
_FIXED_HEADER = 16
_DIGEST = 32
_RELAYED_S = 1e-3  # of the coordinator's core: one party's report of a step


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


@dataclass(frozen=True)
class Counted:
    """Of one phase at one party. received_bytes: None where all parties send the same to all others.

    waits: exchanges that follow one another; None: every round is one.
    """

    rounds: int
    sent_bytes: int
    received_bytes: int | None = None
    waits: int | None = None

    @property
    def exchanges(self) -> int:
        """For how many the link's delay counts."""
        return self.rounds if self.waits is None else self.waits


@dataclass(frozen=True)
class Work:
    """Seconds of a core in one phase: of one party, or for which it waits; and of all programs together."""

    longest_s: float = 0.0
    all_s: float = 0.0


@dataclass(frozen=True)
class _Material:
    """Correlations of a descent. expanded_bytes: at a party; again_bytes: of masks that a dealer expands once more."""

    correction_bytes: int
    multiplications: int
    expanded_bytes: int
    again_bytes: int

    def dealer_s(self, speeds: Speeds) -> float:
        """Seconds of a core at a dealer."""
        return self.multiplications * speeds.product_s + (self.expanded_bytes + self.again_bytes) * EXPANDED_BYTE_S


def forecast(spec: JobSpec, link: Link, speeds: Speeds) -> list[PartyForecast]:
    """For every party in rank order. Raises `ConfigError` unless the job is a sound one on columns."""
    terms = ColumnsTerms.of(spec)
    ranks = range(len(spec.parties))
    descents = [_descent(terms, spec, rank) for rank in ranks]
    shared = [one.phases for one in descents]
    counted: dict[str, list[Counted]] = {
        "start": [Counted(0, 0, 0) for _ in ranks],
        "align": [aligned(one) for one in align_traffic(terms.alignment)],
        "statistics": [_statistics(spec, terms) for _ in ranks],
        **{phase: [one[phase] for one in shared] for phase in PHASES[3:] if phase in shared[0]},
    }
    received = {phase: [_received(rows, rank) for rank in ranks] for phase, rows in counted.items()}
    dealt = terms.trainer.triples == "dealer"
    dealer_s = descents[0].material.dealer_s(speeds) if dealt else 0.0
    corrections = max(one.material.correction_bytes for one in descents) if dealt else 0
    own_s = _descent_s(terms, descents[0].material, speeds)
    work = _work(terms, counted, received, own_s, dealer_s, speeds)
    found = []
    for rank, party in enumerate(spec.parties):
        phases = []
        for phase, rows in counted.items():
            mine, came = rows[rank], received[phase][rank]
            computed = speeds.elapsed(work[phase].longest_s, work[phase].all_s)
            seconds = link.seconds(mine.exchanges, max(mine.sent_bytes, came)) + computed
            if phase == "descend":
                seconds = max(seconds, link.seconds(1, corrections) + dealer_s)
                seconds = max(seconds, terms.descent.steps / PAID_TOGETHER * speeds.entry_s)
            phases.append(PhaseForecast(phase, mine.rounds, mine.sent_bytes, came, seconds))
        found.append(PartyForecast(party, tuple(phases), corrections if rank == 0 else 0))
    return found


def _received(rows: Sequence[Counted], rank: int) -> int:
    own = rows[rank].received_bytes
    if own is not None:
        return own
    others = [one.sent_bytes for at, one in enumerate(rows) if at != rank]  # the same went to all peers
    return sum(others) // len(others)


def aligned(one: AlignCount) -> Counted:
    """Of an alignment."""
    return Counted(one.rounds, one.sent_bytes, one.received_bytes, one.waits)


def _work(
    terms: ColumnsTerms,
    counted: dict[str, list[Counted]],
    received: dict[str, list[int]],
    own_s: float,
    dealer_s: float,
    speeds: Speeds,
) -> dict[str, Work]:
    parties = len(terms.schema.parties)
    points = align_points(terms.alignment)
    held = zip(terms.alignment.sizes, terms.schema.parties, strict=True)
    cells = [size * len(one.columns) for size, one in held]
    # What is not arithmetic: calls, and bytes on their way out and in.
    passed = {
        phase: [
            calls_s(one.exchanges, parties - 1) + SENT_BYTE_S * one.sent_bytes + RECEIVED_BYTE_S * came
            for one, came in zip(rows, received[phase], strict=True)
        ]
        for phase, rows in counted.items()
    }
    # Each release is on the disk of its party's ledger before the next thing happens.
    paid_s = parties * speeds.entry_s
    # A ciphertext is made at one end and used at the other.
    made = [
        (one.sent_bytes + came) / 2 * speeds.ciphertext_byte_s
        for one, came in zip(counted.get("offline", ()), received.get("offline", ()), strict=True)
    ]
    arithmetic = {
        "start": Work(START_S, parties * START_S),
        "align": Work(points.longest * speeds.point_s, points.all * speeds.point_s),
        "statistics": Work(CELL_S * max(cells) + paid_s, CELL_S * sum(cells) + parties * paid_s),
        "offline": Work(max(made, default=0.0), sum(made)),
        "prepare": Work(PLACED_CELL_S * max(cells), PLACED_CELL_S * sum(cells)),
        "descend": Work(own_s, parties * (own_s + terms.descent.steps * _RELAYED_S) + dealer_s),
        "reveal": Work(),
    }
    return {
        phase: Work(arithmetic[phase].longest_s + max(passed[phase]), arithmetic[phase].all_s + sum(passed[phase]))
        for phase in counted
    }


@dataclass(frozen=True)
class _Descent:
    """At one party: the phases on shared numbers, and what correlations they take."""

    phases: dict[str, Counted]
    material: _Material


def _descent(terms: ColumnsTerms, spec: JobSpec, rank: int) -> _Descent:
    """From dry runs of the program and of its beginning."""

    def prepare(engine: Engine) -> None:
        engine.start()
        terms.program().start(engine, None)

    start = plan(prepare, rank, len(spec.parties))
    whole = dry_run(terms, spec.releases, spec.privacy.noise, rank=rank)
    peers = len(spec.parties) - 1
    opened = peers * (8 * terms.layout.columns * terms.outputs + _FIXED_HEADER + 16)
    # The dry run has no start, which compares tables in one round.
    agree = peers * (_DIGEST + _FIXED_HEADER + 8)
    phases = {}
    if terms.trainer.triples == "he":
        from veil.trainers.columns.offline import count_offline

        offline = count_offline(whole.items, rank, len(spec.parties))
        phases["offline"] = Counted(offline.rounds, offline.sent_bytes, offline.received_bytes)
    phases["prepare"] = Counted(start.rounds, start.sent_bytes)
    phases["descend"] = Counted(
        whole.rounds + 1 - start.rounds - 1, whole.sent_bytes + agree - start.sent_bytes - opened
    )
    phases["reveal"] = Counted(2, opened + agree)
    return _Descent(phases, _material(whole))


def _material(whole: Plan) -> _Material:
    return _Material(
        whole.correction_bytes,
        whole.dealer_multiplications,
        sum(8 * item.elements + item.correction_bytes for item in whole.items),
        sum(8 * _left_elements(item, whole.items) for item in whole.items),
    )


def _left_elements(item: EngineItem, items: Sequence[EngineItem]) -> int:
    """Of the rows of a mask that the dealer expands again for each product."""
    if item.kind != "product":
        return 0
    shape = items[item.left].shape
    return item.rows * shape[1] if len(shape) == 2 else item.elements


def _descent_s(terms: ColumnsTerms, material: _Material, speeds: Speeds) -> float:
    """Seconds of a core at one party, for its arithmetic."""
    rows, hidden = terms.descent.steps * terms.descent.batch, terms.trainer.hidden
    waves = rows * terms.descent.sigmoid.harmonics * HARMONIC_S
    if hidden is not None:
        inputs = hidden.units * (2 if hidden.left else 1)
        waves += rows * inputs * len(hidden.activation.sines) * 2 * HARMONIC_S
    # Each product of the dealer is two at a party: public by share, share by public.
    return 2 * material.multiplications * speeds.product_s + waves + material.expanded_bytes * EXPANDED_BYTE_S


def _statistics(spec: JobSpec, terms: ColumnsTerms) -> Counted:
    """One statement and one opening for each party's sums, and one statement of what was made of them."""
    peers = len(spec.parties) - 1
    releases = spec.releases[: len(terms.schema.parties)]
    agree = _DIGEST + _FIXED_HEADER + 8
    sent = sum(8 * release.size + _FIXED_HEADER + 8 * len(release.shape) + agree for release in releases) + agree
    return Counted(2 * len(releases) + 1, peers * sent)
