"""The coordinator's state machine: `step(state, event, now) -> (state, commands)`, no clock, no network, no chance.

Guarantee: the same state, event and time give the same result; the state that goes in is not changed. The caller must
(1) check an event before it hands it in, (2) write the new state and the records before it carries out any other
command, (3) carry the commands out in order, (4) hand in `Ticked` about once a second.

The style follows etcd-io/raft (message in, messages and state out) and its transcripts (tests/protocol/*.txt).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from coordinator import messages as m
from coordinator.deadlines import expire
from coordinator.lineup import start_ready
from coordinator.outcomes import disagreement
from coordinator.states import (
    Active,
    Cancelled,
    Done,
    Ended,
    Failed,
    Failing,
    Job,
    Member,
    Proposed,
    Report,
    Running,
    Starting,
    State,
    Waiting,
    phase_of,
)
from coordinator.turn import Turn
from veil.jobs.reports import SCORING, Failure, Progress


def step(state: State, event: m.Event, now_ms: int) -> tuple[State, list[m.Command]]:
    """The state after `event` at `now_ms` (Unix time in milliseconds), and what is to be done."""
    turn = Turn(state, now_ms)
    if isinstance(event, m.PartyEvent) and event.party in turn.members:
        turn.members[event.party] = replace(turn.members[event.party], heard_ms=now_ms)
    match event:
        case m.Submitted():
            _submitted(turn, event)
        case m.Joined():
            _joined(turn, event)
        case m.Left():
            _left(turn, event)
        case m.Heard():
            pass
        case m.CancelAsked():
            _cancel(turn, event)
        case m.Ticked():
            _ticked(turn)
        case m.Interrupted():
            _interrupted(turn, event)
        case _:
            _reported(turn, event)
    start_ready(turn)
    return turn.state(), turn.commands


def _submitted(turn: Turn, event: m.Submitted) -> None:
    job = Proposed(plan=event.plan)
    turn.jobs[job.job_id] = job
    turn.record(job, f"submitted by {event.operator}; waiting for signatures of {', '.join(event.plan.parties)}")
    for party in event.plan.parties:
        if party in turn.members:
            turn.tell(m.Propose(party, job.job_id))


def _joined(turn: Turn, event: m.Joined) -> None:
    before = turn.members.get(event.party)
    if before is not None:
        turn.tell(m.HangUp(event.party, before.session, "a newer stream of the same party has taken over"))
        _gone(turn, (event.party,), f"{event.party} started a new stream; what it was running is lost")
    turn.members[event.party] = Member(event.session, event.address, event.software, turn.now_ms)
    for job in turn.jobs_of(event.party):
        match job:
            case Proposed() | Waiting():
                # also to one that has signed: a daemon that starts anew may have forgotten, and signs again
                turn.tell(m.Propose(event.party, job.job_id))
            case Done() | Failed() | Cancelled() if event.party in job.owed:
                _pay(turn, job, event.party)
            case _:
                pass


def _left(turn: Turn, event: m.Left) -> None:
    member = turn.members.get(event.party)
    if member is not None and member.session == event.session:
        _gone(turn, (event.party,), f"{event.party} {event.sentence}")


def _gone(turn: Turn, parties: Sequence[str], sentence: str) -> None:
    """Parties are away: what they were running has failed, unless their own part was finished."""
    for party in parties:
        del turn.members[party]
    for job in list(turn.jobs.values()):
        lost = tuple(party for party in job.plan.parties if party in parties)
        if isinstance(job, Active):
            lost = tuple(party for party in lost if party not in job.outcomes)
            if lost:
                turn.fail(job, Failure("PEER_LOST", sentence, lost))
        elif isinstance(job, Failing):
            reports = [Report(party, Failure("PEER_LOST", sentence, (party,)), gone=True) for party in lost]
            _gather(turn, job, *reports)


def _reported(turn: Turn, event: m.JobEvent) -> None:
    job = turn.jobs.get(event.job_id)
    if job is None or event.party not in job.plan.parties:
        return
    if isinstance(job, Ended):
        _reported_late(turn, job, event)
        return
    match event:
        case m.Broke() if isinstance(job, Active | Failing):
            _broke(turn, job, event)
        case _ if isinstance(job, Failing):
            pass
        case m.Signed():
            _signed(turn, job, event)
        case m.Disputed():
            turn.fail(job, Failure("SIGNATURE", event.sentence, (event.party,)), about=event.party)
        case m.Refused():
            turn.fail(job, Failure(event.failure.code, event.failure.sentence, (event.party,)), about=event.party)
        case m.Progressed() if isinstance(job, Active):
            _progressed(turn, job, event)
        case m.Finished() if isinstance(job, Active):
            _finished(turn, job, event)
        case m.Broke():
            # it takes its consent back before the start
            turn.fail(job, Failure(event.failure.code, event.failure.sentence, (event.party,)), about=event.party)
        case m.Progressed() | m.Finished():
            # its worker runs a job that nobody was told to start
            why = "reported work on a job that has not started"
            turn.fail(job, Failure("PROTOCOL", f"{event.party} {why}", (event.party,)), about=event.party)
        case _:
            pass


def _signed(turn: Turn, job: Job, event: m.Signed) -> None:
    if not isinstance(job, Proposed) or event.party not in job.unsigned:
        return
    signed = replace(job, approvals=(*job.approvals, event.approval))
    if signed.unsigned:
        turn.put(signed)
        turn.record(signed, f"{event.party} has signed; waiting for {', '.join(signed.unsigned)}", party=event.party)
        return
    ready = Waiting(plan=signed.plan, approvals=signed.approvals)
    turn.put(ready)
    turn.record(ready, f"{event.party} has signed; everyone has", party=event.party)


def _progressed(turn: Turn, job: Active, event: m.Progressed) -> None:
    last = job.progress.get(event.party)
    if last is not None and _place(job, event.progress) < _place(job, last):
        return  # a report that overtook a later one; the way only leads forward
    current: Active = replace(job, progress={**job.progress, event.party: event.progress})
    if isinstance(job, Starting) and event.progress.step in job.plan.rounds:
        current = Running(**{name: getattr(current, name) for name in _ACTIVE_FIELDS})
    turn.put(current)
    known = last is not None and (last.step, last.done) == (event.progress.step, event.progress.done)
    if known and type(current) is type(job):
        turn.tell(m.Refresh(job.job_id, phase_of(current), event.party, event.progress))
        return
    line = f"{event.party}: {event.progress.step} ({event.progress.done} of {event.progress.total})"
    turn.record(current, line, party=event.party, progress=event.progress)


def _place(job: Active, progress: Progress) -> tuple[int, int]:
    return progress.done, job.plan.steps.index(progress.step)


_ACTIVE_FIELDS = ("plan", "approvals", "progress", "started_ms", "outcomes")


def _finished(turn: Turn, job: Active, event: m.Finished) -> None:
    if event.party in job.outcomes:
        return
    current = replace(job, outcomes={**job.outcomes, event.party: event.outcome})
    turn.put(current)
    scored = current.plan.rounds == SCORING
    turn.record(current, f"{event.party} has {'finished' if scored else 'published'}", party=event.party)
    if len(current.outcomes) < len(current.plan.parties):
        return
    failure = disagreement(current.plan.parties, current.outcomes)
    if failure is not None:
        turn.fail(current, failure)
        return
    done = Done(
        plan=current.plan,
        approvals=current.approvals,
        progress=current.progress,
        ended_ms=turn.now_ms,
        owed=turn.absent(current),
        outcome=event.outcome,
    )
    turn.put(done)
    line = "the scores are with their recipient" if scored else "every party holds the same model"
    turn.record(done, line, outcome=event.outcome)
    for party in done.plan.parties:
        if party in turn.members:
            turn.tell(m.Confirm(party, done.job_id))
    turn.tell(m.Close(done.job_id))


def _broke(turn: Turn, job: Active | Failing, event: m.Broke) -> None:
    """(1) A failure of a party's own ends the job. (2) Blame of others is gathered for a moment, then judged."""
    known = (*job.plan.parties, job.plan.dealer)
    named = tuple(name for name in event.failure.culprits if name in known)
    report = Report(event.party, Failure(event.failure.code, event.failure.sentence, named))
    if isinstance(job, Active):
        failing = Failing(
            plan=job.plan,
            approvals=job.approvals,
            progress=job.progress,
            phase=phase_of(job),
            reports=(),
            decide_ms=turn.now_ms + turn.rules.settling_ms,
        )
        turn.put(failing)
        job = failing
    _gather(turn, job, report)


def _gather(turn: Turn, job: Failing, *reports: Report) -> None:
    """Adds the first report of each party, then sees whether the verdict is out."""
    heard = {earlier.party for earlier in job.reports}
    fresh = [report for report in reports if report.party not in heard]
    if not fresh:
        return
    current = replace(job, reports=(*job.reports, *fresh))
    turn.put(current)
    for report in fresh:
        line = report.failure.sentence if report.gone else f"{report.party}: {report.failure.sentence}"
        turn.record(current, line, party=report.party)
    turn.judge(current)


def _reported_late(turn: Turn, job: Ended, event: m.JobEvent) -> None:
    """The job has ended: the party is told again, which is how it finds out after a lost message."""
    match job, event:
        case Done(), m.Finished() if event.outcome == job.outcome:
            turn.tell(m.Confirm(event.party, job.job_id))
        case Done(), _:
            pass
        case _, m.Broke():
            turn.record(job, f"later: {event.party}: {event.failure.sentence}", party=event.party)
        case Failed() | Cancelled(), m.Progressed() | m.Finished() | m.Signed():
            turn.tell(m.Stop(event.party, job.job_id, job.failure))
        case _:
            pass


def _cancel(turn: Turn, event: m.CancelAsked) -> None:
    job = turn.jobs.get(event.job_id)
    if job is None or isinstance(job, Ended):
        return
    if isinstance(job, Failing):
        turn.judge(job, now=True)
        return
    turn.cancel(job, Failure("STATE", f"cancelled by {event.operator}"))


def _interrupted(turn: Turn, event: m.Interrupted) -> None:
    for job in list(turn.jobs.values()):
        if isinstance(job, Active):
            turn.fail(job, Failure("STATE", event.sentence))
        elif isinstance(job, Failing):
            turn.judge(job, now=True)


def _ticked(turn: Turn) -> None:
    grace = f"no sign of life for more than {turn.rules.grace_ms / 1000:g} s"
    silent = [party for party, one in turn.members.items() if turn.now_ms - one.heard_ms > turn.rules.grace_ms]
    for party in silent:
        turn.tell(m.HangUp(party, turn.members[party].session, grace))
    if silent:
        _gone(turn, silent, f"{grace} from {', '.join(silent)}")
    for job in list(turn.jobs.values()):
        expire(turn, job)


def _pay(turn: Turn, job: Done | Failed | Cancelled, party: str) -> None:
    """Tells a party that was away how the job ended."""
    paid = replace(job, owed=job.owed - {party})
    turn.put(paid)
    turn.record(paid, f"{party} has joined and hears how the job ended", party=party)
    if isinstance(job, Done):
        turn.tell(m.Confirm(party, job.job_id))
    else:
        turn.tell(m.Stop(party, job.job_id, job.failure))
