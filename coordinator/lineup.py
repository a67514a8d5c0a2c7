"""Which fully signed job starts when: a party runs one job at a time."""

from __future__ import annotations

from coordinator import messages as m
from coordinator.states import Starting, Waiting
from coordinator.turn import Turn


def start_ready(turn: Turn) -> None:
    """Starts what can start, first come first served, and says of a job that has just got in line why it waits.

    A job whose parties are all joined keeps later ones off them; one of whose parties is away holds nobody up.
    """
    claimed = turn.busy()
    for job in list(turn.jobs.values()):
        if not isinstance(job, Waiting):
            continue
        absent = [party for party in job.plan.parties if party not in turn.members]
        taken = [party for party in job.plan.parties if party in claimed]
        if not absent:
            claimed.update(job.plan.parties)
        if not absent and not taken:
            _start(turn, job)
        elif not isinstance(turn.before.jobs.get(job.job_id), Waiting):
            reasons = [f"{', '.join(absent)} not joined"] if absent else []
            reasons += [f"{', '.join(taken)} busy with an earlier job"] if taken else []
            turn.record(job, f"waiting: {'; '.join(reasons)}")


def _start(turn: Turn, job: Waiting) -> None:
    started = Starting(plan=job.plan, approvals=job.approvals, started_ms=turn.now_ms)
    turn.put(started)
    turn.record(started, f"started at {', '.join(job.plan.parties)}")
    peers = tuple((party, turn.members[party].address) for party in job.plan.parties)
    order = {party: rank for rank, party in enumerate(job.plan.parties)}
    approvals = tuple(sorted(job.approvals, key=lambda approval: order[approval.party]))
    for party in job.plan.parties:
        turn.tell(m.Start(party, job.job_id, approvals, peers))
