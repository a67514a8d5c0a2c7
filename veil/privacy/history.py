"""What a ledger's entries say about the past: each job's cost, and how the spent epsilon grew.

Guarantee: every number is `Composition.epsilon` of a set of entries, so it is an upper bound; the last running total is
what the ledger has spent. Budgets do not add: a job's `epsilon` is what it would cost alone, its `added` is by how much
the total grew while it ran, and only the latter sum to the total.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from veil.privacy.composition import Composition
from veil.privacy.ledger_rows import LedgerEntry


@dataclass(frozen=True)
class JobSpending:
    """One job's part of a ledger.

    Attributes:
        job_id, digest: as on record.
        releases: number of its releases on record.
        first_at, last_at: UTC, ISO 8601.
        epsilon: what its releases cost together, without all others.
        added: by how much the ledger's total grew through them; sums to the total.
        total: what everything on record cost up to its last release.
    """

    job_id: str
    digest: bytes
    releases: int
    first_at: str
    last_at: str
    epsilon: float
    added: float
    total: float


@dataclass(frozen=True)
class Step:
    """The spent epsilon after `releases` entries, the last of which is row `number`, of job `job_id`, at `at` (UTC)."""

    number: int
    job_id: str
    at: str
    releases: int
    total: float


def steps(entries: Sequence[LedgerEntry], delta: float, *, most: int = 200) -> list[Step]:
    """How the total grew: at every change of job and, evenly in between, at about `most` entries."""
    stride = max(1, len(entries) // most)
    spent, found, begun = Composition(), [], 0
    for number, entry in enumerate(entries, 1):
        changes = number == len(entries) or entries[number].job_id != entry.job_id
        if changes or number % stride == 0:
            spent = spent.plus(one.release for one in entries[begun:number])
            begun = number
            found.append(Step(entry.number, entry.job_id, entry.recorded_at, number, spent.epsilon(delta)))
    return found


def by_job(entries: Sequence[LedgerEntry], delta: float, *, most: int = 200) -> list[JobSpending]:
    """One line for each job, in the order of their first releases."""
    added: dict[str, float] = {}
    totals: dict[str, float] = {}
    before = 0.0
    for step in steps(entries, delta, most=most):
        added[step.job_id] = added.get(step.job_id, 0.0) + step.total - before
        totals[step.job_id] = before = step.total
    grouped: dict[str, list[LedgerEntry]] = {}
    for entry in entries:
        grouped.setdefault(entry.job_id, []).append(entry)
    return [
        JobSpending(
            job_id=job_id,
            digest=own[0].digest,
            releases=len(own),
            first_at=own[0].recorded_at,
            last_at=own[-1].recorded_at,
            epsilon=Composition().plus(entry.release for entry in own).epsilon(delta),
            added=added[job_id],
            total=totals[job_id],
        )
        for job_id, own in grouped.items()
    ]
