"""What a ledger's entries say about each job and about the total over time."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.unit.privacy.test_accountant import release, sampled
from veil.jobs.spec import Release
from veil.privacy.accountant import epsilon
from veil.privacy.history import by_job, steps
from veil.privacy.ledger_rows import LedgerEntry

DELTA = 1e-5


def entries(*jobs: tuple[str, Release]) -> list[LedgerEntry]:
    return [
        LedgerEntry(number, job, bytes(32), one, f"2031-01-02T03:04:{number % 60:02}.000+00:00")
        for number, (job, one) in enumerate(jobs, 1)
    ]


def test_jobs_alone_and_in_sum() -> None:
    record = entries(
        ("a", release(3.0)), ("a", release(4.0)), ("b", sampled(1.5, 0.1)), ("a", release(5.0)), ("b", release(6.0))
    )
    found = by_job(record, DELTA)
    assert [(job.job_id, job.releases) for job in found] == [("a", 3), ("b", 2)]
    assert found[0].epsilon == epsilon([release(3.0), release(4.0), release(5.0)], DELTA)
    assert found[1].epsilon == epsilon([sampled(1.5, 0.1), release(6.0)], DELTA)
    whole = epsilon([entry.release for entry in record], DELTA)
    assert found[1].total == whole
    assert sum(job.added for job in found) == pytest.approx(whole, rel=1e-12)
    # Composition costs less than the sum of the jobs, one after the other.
    assert whole < sum(job.epsilon for job in found)
    assert (found[1].first_at, found[1].last_at) == (record[2].recorded_at, record[4].recorded_at)


def test_steps_grow_to_the_total_and_are_bounded() -> None:
    record = entries(*[("a" if i < 900 else "b", release(100.0)) for i in range(1500)])
    found = steps(record, DELTA, most=50)
    assert 50 <= len(found) <= 60
    assert all(a.total <= b.total and a.releases < b.releases for a, b in pairwise(found))
    assert found[-1].total == epsilon([release(100.0)] * 1500, DELTA)
    assert all(step.number == step.releases for step in found)
    assert ("a", 900) in {(step.job_id, step.releases) for step in found}


def test_nothing_on_record() -> None:
    assert steps([], DELTA) == [] and by_job([], DELTA) == []
