"""What ends by itself: signatures and starts that do not come, runs that do not end, verdicts, debts."""

from __future__ import annotations

from dataclasses import replace

from coordinator.states import Active, Cancelled, Done, Failed, Failing, Job, Proposed, Waiting
from coordinator.turn import Turn
from veil.jobs.reports import Failure

_HOUR_MS = 3_600_000


def expire(turn: Turn, job: Job) -> None:
    """Ends what is overdue at `turn.now_ms`."""
    match job:
        case Proposed() if turn.now_ms - job.plan.submitted_ms > turn.rules.signing_ms:
            hours = turn.rules.signing_ms / _HOUR_MS
            late = f"no signature of {', '.join(job.unsigned)} within {hours:g} h"
            turn.fail(job, Failure("STATE", late, job.unsigned))
        case Waiting() if turn.now_ms - job.plan.submitted_ms > turn.rules.signing_ms:
            hours = turn.rules.signing_ms / _HOUR_MS
            absent = tuple(party for party in job.plan.parties if party not in turn.members)
            why = f"{', '.join(absent)} not joined" if absent else "its parties were busy with other jobs"
            turn.fail(job, Failure("STATE", f"could not start within {hours:g} h: {why}", absent))
        case Active() if turn.now_ms - job.started_ms > turn.rules.running_ms:
            hours = turn.rules.running_ms / _HOUR_MS
            slow = tuple(party for party in job.plan.parties if party not in job.outcomes)
            # when nobody has finished, the fault is not any one party's
            culprits = slow if job.outcomes else ()
            turn.fail(job, Failure("PEER", f"{', '.join(slow)} did not finish within {hours:g} h", culprits))
        case Failing() if turn.now_ms >= job.decide_ms:
            turn.judge(job, now=True)
        case Done() | Failed() | Cancelled() if job.owed and turn.now_ms - job.ended_ms > turn.rules.owing_ms:
            turn.put(replace(job, owed=frozenset()))
            turn.record(turn.jobs[job.job_id], f"{', '.join(sorted(job.owed))} never came back")
        case _:
            pass
