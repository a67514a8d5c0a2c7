"""Tables of the coordinator's store, and its values as columns.

`PRAGMA user_version` is the schema's version; a store of another version is refused, never guessed at. Times are Unix
milliseconds. `stage` is the name of the class in coordinator/states.py.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from coordinator.states import Cancelled, Done, Failed, Job, Phase, Plan, Proposed, Running, Starting, Waiting
from veil.errors import StateError
from veil.jobs.reports import SCORING, Failure, Outcome, Progress, steps
from veil.jobs.spec import JobSpec, digest

VERSION = 1

TABLES = """
CREATE TABLE jobs (
    number        INTEGER PRIMARY KEY,
    job_id        TEXT NOT NULL UNIQUE,
    text          TEXT NOT NULL,
    digest        BLOB NOT NULL UNIQUE,
    stage         TEXT NOT NULL,
    phase         INTEGER NOT NULL,
    submitted_ms  INTEGER NOT NULL,
    ended_ms      INTEGER NOT NULL DEFAULT 0,
    failure       TEXT,
    outcome       TEXT,
    owed          TEXT NOT NULL DEFAULT '[]'
) STRICT;
CREATE INDEX jobs_by_stage ON jobs (stage);
CREATE TABLE approvals (
    job_id           TEXT NOT NULL REFERENCES jobs (job_id),
    party            TEXT NOT NULL,
    signature        BLOB NOT NULL,
    certificate_pem  BLOB NOT NULL,
    PRIMARY KEY (job_id, party)
) STRICT, WITHOUT ROWID;
CREATE TABLE progress (
    job_id    TEXT NOT NULL REFERENCES jobs (job_id),
    party     TEXT NOT NULL,
    progress  TEXT NOT NULL,
    PRIMARY KEY (job_id, party)
) STRICT, WITHOUT ROWID;
CREATE TABLE events (
    job_id    TEXT NOT NULL REFERENCES jobs (job_id),
    sequence  INTEGER NOT NULL,
    time_ms   INTEGER NOT NULL,
    phase     INTEGER NOT NULL,
    party     TEXT NOT NULL,
    line      TEXT NOT NULL,
    progress  TEXT,
    failure   TEXT,
    outcome   TEXT,
    PRIMARY KEY (job_id, sequence)
) STRICT, WITHOUT ROWID;
"""


def progress_text(progress: Progress | None) -> str | None:
    """JSON of a progress report."""
    return None if progress is None else json.dumps(asdict(progress))


def failure_text(failure: Failure | None) -> str | None:
    """JSON of a failure."""
    return None if failure is None else json.dumps(asdict(failure))


def outcome_text(outcome: Outcome | None) -> str | None:
    """JSON of an outcome, its digest in hex."""
    if outcome is None:
        return None
    return json.dumps({**asdict(outcome), "manifest_digest": outcome.manifest_digest.hex()})


def progress_of(text: str) -> Progress:
    """The progress report in a JSON text."""
    return Progress(**_fields(text))


def failure_of(text: str) -> Failure:
    """The failure in a JSON text."""
    fields = _fields(text)
    return Failure(**{**fields, "culprits": tuple(fields["culprits"])})


def outcome_of(text: str) -> Outcome:
    """The outcome in a JSON text."""
    fields = _fields(text)
    return Outcome(**{**fields, "manifest_digest": bytes.fromhex(fields["manifest_digest"])})


def plan_of(job_id: str, spec: JobSpec, submitted_ms: int) -> Plan:
    """The fixed part of a job, from its text."""
    return Plan(
        job_id=job_id,
        name=spec.name,
        digest=digest(spec.text()),
        parties=spec.parties,
        dealer=spec.dealer,
        steps=steps(spec),
        rounds=tuple(release.name for release in spec.releases) or SCORING,  # predictions have no release
        submitted_ms=submitted_ms,
    )


def job_of(
    stage: str,
    phase: Phase,
    common: dict[str, Any],
    ended: dict[str, Any],
    failure: str | None,
    outcome: str | None,
) -> Job:
    """The job of a row. One that was under way comes back as such, to be failed: its reports are not kept."""
    match stage:
        case "Proposed":
            return Proposed(**common)
        case "Waiting":
            return Waiting(**common)
        case "Starting" | "Running" | "Failing":
            kind = Running if phase is Phase.RUNNING else Starting
            return kind(**common, started_ms=common["plan"].submitted_ms)
        case "Done" if outcome is not None:
            return Done(**common, **ended, outcome=outcome_of(outcome))
        case "Failed" if failure is not None:
            return Failed(**common, **ended, failure=failure_of(failure))
        case "Cancelled" if failure is not None:
            return Cancelled(**common, **ended, failure=failure_of(failure))
    raise StateError(f"got a job at stage {stage!r} in the store, expected one that this version writes")


def _fields(text: str) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(text)
    return fields
