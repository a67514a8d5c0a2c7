"""What goes into the state machine and what comes out of it, free of any network.

Events are facts that the shell has checked: a party is who it says it is, a signature verifies, a report is of the
stream that is up. Commands are carried out in order, after the new state has been written.
"""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.states import Phase, Plan
from veil.jobs.reports import Failure, Outcome, Progress
from veil.jobs.signing import Approval

# --- events ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Submitted:
    """An operator has registered a job."""

    plan: Plan
    operator: str


@dataclass(frozen=True, slots=True)
class CancelAsked:
    """An operator wants a job stopped."""

    job_id: str
    operator: str


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed."""


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The coordinator stops, or has started again: what was under way cannot be followed to its end."""

    sentence: str


@dataclass(frozen=True, slots=True)
class PartyEvent:
    """Something that a party did, on its stream."""

    party: str


@dataclass(frozen=True, slots=True)
class Joined(PartyEvent):
    """A stream is up. When another was up before, it counts as ended: a daemon that starts anew has no workers."""

    session: int
    address: str
    software: str


@dataclass(frozen=True, slots=True)
class Left(PartyEvent):
    """A stream has ended. Without effect unless `session` is the one that is up."""

    session: int
    sentence: str


@dataclass(frozen=True, slots=True)
class Heard(PartyEvent):
    """A sign of life."""


@dataclass(frozen=True, slots=True)
class JobEvent(PartyEvent):
    """Something that a party did in a job that names it."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Signed(JobEvent):
    """A signature that the shell has verified over the job's digest."""

    approval: Approval


@dataclass(frozen=True, slots=True)
class Disputed(JobEvent):
    """A signature that does not verify over the job's digest."""

    sentence: str


@dataclass(frozen=True, slots=True)
class Refused(JobEvent):
    """A party says no."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Progressed(JobEvent):
    """A party got further, in a step that the job lists."""

    progress: Progress


@dataclass(frozen=True, slots=True)
class Finished(JobEvent):
    """A party has published."""

    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Broke(JobEvent):
    """A party's worker has failed. No culprits: itself, unless the code says that a peer was at fault."""

    failure: Failure


Event = (
    Submitted
    | CancelAsked
    | Ticked
    | Interrupted
    | Joined
    | Left
    | Heard
    | Signed
    | Disputed
    | Refused
    | Progressed
    | Finished
    | Broke
)

# --- commands -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Propose:
    """Show a job to a party."""

    party: str
    job_id: str


@dataclass(frozen=True, slots=True)
class Start:
    """Tell a party to run a job. `peers` are (party, address) in rank order, the party itself included."""

    party: str
    job_id: str
    approvals: tuple[Approval, ...]
    peers: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Stop:
    """Tell a party to stop a job."""

    party: str
    job_id: str
    failure: Failure


@dataclass(frozen=True, slots=True)
class Confirm:
    """Tell a party that everyone has published the same model."""

    party: str
    job_id: str


@dataclass(frozen=True, slots=True)
class HangUp:
    """End a party's stream."""

    party: str
    session: int
    sentence: str


@dataclass(frozen=True, slots=True)
class Record:
    """Add one line to a job's history. `party` is empty when it is about the whole job."""

    job_id: str
    phase: Phase
    line: str
    party: str = ""
    progress: Progress | None = None
    failure: Failure | None = None
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Refresh:
    """Newer numbers for a step that is in the history already: shown to those who watch, not recorded."""

    job_id: str
    phase: Phase
    party: str
    progress: Progress


@dataclass(frozen=True, slots=True)
class Close:
    """The job has ended: those who watch it have seen everything."""

    job_id: str


Command = Propose | Start | Stop | Confirm | HangUp | Record | Refresh | Close
