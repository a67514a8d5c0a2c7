"""What the coordinator knows: its members, and each job in exactly one state.

    Proposed ──all signed──► Waiting ──all joined, none busy──► Starting ──first round──► Running ──all done──► Done
        │                       │                                  │                        │
        └── refusal, deadline ──┴──────────────► Failed ◄──────────┴─► Failing (whose fault?) ◄┘
    An operator's cancellation leads from every state before the end to Cancelled.

Guarantee: all values are frozen; `coordinator.rounds.step` is the only thing that makes new ones. `Waiting` and
`Failing` are within the wire's phases: STARTING, and the phase in which the failure came.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from veil.jobs.reports import Failure, Outcome, Progress
from veil.jobs.signing import Approval


class Phase(IntEnum):
    """Where a job stands; numbers as in `veil.wire.v1.JobPhase`."""

    PROPOSED = 1
    STARTING = 2
    RUNNING = 3
    DONE = 4
    FAILED = 5
    CANCELLED = 6


@dataclass(frozen=True, slots=True)
class Rules:
    """Waiting times, in milliseconds."""

    # A party that sends nothing for this long is taken to be gone.
    grace_ms: int = 20_000
    # A job that has not started this long after its submission fails.
    signing_ms: int = 24 * 3_600_000
    # A job that has not ended this long after its start fails.
    running_ms: int = 6 * 3_600_000
    # How long reports are gathered when one party blames another (see coordinator/blame.py).
    settling_ms: int = 2_000
    # How long the coordinator remembers that it owes an absent party the end of a job.
    owing_ms: int = 7 * 24 * 3_600_000


@dataclass(frozen=True, slots=True)
class Plan:
    """The part of a job that never changes. `parties` are in rank order, `steps` in the order of the work."""

    job_id: str
    name: str
    digest: bytes = field(repr=False)
    parties: tuple[str, ...]
    dealer: str
    steps: tuple[str, ...]
    # Steps that are rounds: a party that reports one is past starting and meshing.
    rounds: tuple[str, ...]
    submitted_ms: int


@dataclass(frozen=True, slots=True)
class Member:
    """A party whose stream is up. `session` tells its streams apart; `address` is where its mesh listens."""

    session: int
    address: str
    software: str
    heard_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What every state has. `approvals` are verified; `progress` is the latest of each party."""

    plan: Plan
    approvals: tuple[Approval, ...] = ()
    progress: Mapping[str, Progress] = field(default_factory=dict)

    @property
    def job_id(self) -> str:
        """The job's identifier."""
        return self.plan.job_id

    @property
    def signed_by(self) -> tuple[str, ...]:
        """Parties that have signed, in rank order."""
        signed = {approval.party for approval in self.approvals}
        return tuple(party for party in self.plan.parties if party in signed)

    @property
    def unsigned(self) -> tuple[str, ...]:
        """Parties that have not signed, in rank order."""
        return tuple(party for party in self.plan.parties if party not in self.signed_by)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposed(Job):
    """Signatures are being gathered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting(Job):
    """Everyone has signed; somebody is away or busy with another job. Nobody has been told to start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Active(Job):
    """Everyone has been told to start. `outcomes` are of the parties that have published."""

    started_ms: int
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Starting(Active):
    """Workers start and connect to each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running(Active):
    """Rounds are running."""


@dataclass(frozen=True, slots=True)
class Report:
    """One party's account of a failure: it blames `culprits`, itself when that is empty. `gone`: its stream ended."""

    party: str
    failure: Failure
    gone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Failing(Job):
    """The job is over and everyone has been told to stop; whose fault it was is decided at `decide_ms` or before."""

    phase: Phase
    reports: tuple[Report, ...]
    decide_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended(Job):
    """`owed`: parties that were away at the end and hear of it when they join again."""

    ended_ms: int
    owed: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Done(Ended):
    """Every party holds the same published model."""

    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Ended):
    """Ended without a model."""

    failure: Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled(Ended):
    """Stopped by an operator."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class State:
    """Everything: who is joined, and the jobs in the order of their submission."""

    rules: Rules = field(default_factory=Rules)
    members: Mapping[str, Member] = field(default_factory=dict)
    jobs: Mapping[str, Job] = field(default_factory=dict)

    @property
    def open_jobs(self) -> int:
        """Number of jobs that have not ended."""
        return sum(not isinstance(job, Ended) for job in self.jobs.values())

    def without_settled(self) -> State:
        """The state less ended jobs of which nobody needs to hear any more; the store has them for ever."""
        kept = {key: job for key, job in self.jobs.items() if not (isinstance(job, Ended) and not job.owed)}
        return self if len(kept) == len(self.jobs) else State(self.rules, self.members, kept)


def phase_of(job: Job) -> Phase:
    """The phase in which outsiders see a job."""
    match job:
        case Proposed():
            return Phase.PROPOSED
        case Waiting() | Starting():
            return Phase.STARTING
        case Running():
            return Phase.RUNNING
        case Failing():
            return job.phase
        case Done():
            return Phase.DONE
        case Failed():
            return Phase.FAILED
        case Cancelled():
            return Phase.CANCELLED
    raise TypeError(f"got {type(job).__name__}, expected one of the states above")
