"""One step of the state machine at work: copies of what it may change, and the commands so far."""

from __future__ import annotations

from coordinator import messages as m
from coordinator.blame import judge
from coordinator.states import Active, Cancelled, Failed, Failing, Job, State, phase_of
from veil.jobs.reports import Failure, Outcome, Progress


class Turn:
    """Collects the effects of one event; the state that it starts from is not changed."""

    def __init__(self, state: State, now_ms: int) -> None:
        self.before = state
        self.rules = state.rules
        self.now_ms = now_ms
        self.members = dict(state.members)
        self.jobs = dict(state.jobs)
        self.commands: list[m.Command] = []

    def state(self) -> State:
        """The state after the event."""
        return State(self.rules, self.members, self.jobs)

    def put(self, job: Job) -> None:
        """The job's new state; it keeps its place in the queue."""
        self.jobs[job.job_id] = job

    def tell(self, command: m.Command) -> None:
        """Adds a command."""
        self.commands.append(command)

    def record(
        self,
        job: Job,
        line: str,
        *,
        party: str = "",
        progress: Progress | None = None,
        failure: Failure | None = None,
        outcome: Outcome | None = None,
    ) -> None:
        """Adds a line to the job's history. A job is written exactly when a line of it is."""
        self.tell(m.Record(job.job_id, phase_of(job), line, party, progress, failure, outcome))

    def jobs_of(self, party: str) -> list[Job]:
        """Jobs that name the party, oldest first."""
        return [job for job in self.jobs.values() if party in job.plan.parties]

    def busy(self) -> set[str]:
        """Parties that run a job now."""
        return {party for job in self.jobs.values() if isinstance(job, Active | Failing) for party in job.plan.parties}

    def absent(self, job: Job) -> frozenset[str]:
        """Parties of the job whose stream is not up."""
        return frozenset(party for party in job.plan.parties if party not in self.members)

    def fail(self, job: Job, failure: Failure, *, about: str = "") -> None:
        """Ends a job without a model; every party that is there is told to stop."""
        failed = Failed(
            plan=job.plan,
            approvals=job.approvals,
            progress=job.progress,
            ended_ms=self.now_ms,
            owed=self.absent(job),
            failure=failure,
        )
        self._end(failed, failure, f"failed: {failure.sentence}", about)

    def cancel(self, job: Job, failure: Failure) -> None:
        """Ends a job at an operator's wish."""
        cancelled = Cancelled(
            plan=job.plan,
            approvals=job.approvals,
            progress=job.progress,
            ended_ms=self.now_ms,
            owed=self.absent(job),
            failure=failure,
        )
        self._end(cancelled, failure, failure.sentence, "")

    def judge(self, job: Failing, *, now: bool = False) -> None:
        """Ends a failing job when the verdict is settled, or at once when `now`."""
        verdict = judge(job.reports, job.plan.parties)
        if verdict.settled or now:
            self.fail(job, verdict.failure)

    def _end(self, job: Failed | Cancelled, failure: Failure, line: str, about: str) -> None:
        self.put(job)
        self.record(job, line, party=about, failure=failure)
        for party in job.plan.parties:
            # also to those who reported the failure: a stop for a job that is not running there costs nothing
            if party in self.members:
                self.tell(m.Stop(party, job.job_id, failure))
        self.tell(m.Close(job.job_id))
