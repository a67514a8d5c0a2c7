"""The coordinator's durable memory: jobs, approvals and histories in one SQLite file.

Guarantee: `commit` returns after everything of one step is on disk (WAL, synchronous=FULL), or has changed nothing; the
file is readable by its owner only; one process at a time has it open. Histories are bounded: after `MOST_EVENTS` lines
a job's progress is kept as its latest value only, and after `MOST_LINES` everything but the job's end is left out.
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coordinator import schema
from coordinator.messages import Record
from coordinator.states import Cancelled, Done, Ended, Failed, Job, Phase, phase_of
from veil.errors import StateError
from veil.jobs.signing import Approval
from veil.jobs.spec import parse

MOST_EVENTS = 4_000
MOST_LINES = 5_000


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a job's history; `sequence` counts from 1 without gaps."""

    sequence: int
    time_ms: int
    record: Record


@dataclass(frozen=True, slots=True)
class Row:
    """A job as it is shown: its state and its text."""

    job: Job
    text: str


class Store:
    """The open file. Calls may come from any thread; they happen one after the other."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.RLock()
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # the mode holds from the first byte on; SQLite gives the files beside it the same mode
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        os.chmod(path, 0o600)
        self._database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)
        try:
            self._open()
        except sqlite3.Error as error:
            self._database.close()
            raise StateError(
                f"got no usable store at {path}: {error}", hint="is another coordinator running on it?"
            ) from None
        except BaseException:
            self._database.close()
            raise

    def _open(self) -> None:
        # exclusive: a second coordinator on the same file would tell parties a different story
        for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            self._database.execute(f"PRAGMA {pragma}").fetchall()
        with self._transaction() as database:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version == 0 and not database.execute("SELECT 1 FROM sqlite_master").fetchone():
                for statement in schema.TABLES.split(";\n"):
                    if statement.strip():
                        database.execute(statement)
                database.execute(f"PRAGMA user_version = {schema.VERSION}")
            elif version != schema.VERSION:
                raise StateError(
                    f"got a store of schema {version} at {self._path}, expected schema {schema.VERSION}",
                    hint="use the version of Veil that wrote it, or a new file",
                )

    def close(self) -> None:
        """Closes the file; nothing is lost without it."""
        with self._lock:
            self._database.close()

    # --- writing ----------------------------------------------------------------------------------------------------

    def commit(self, jobs: Sequence[Job], records: Sequence[Record], now_ms: int, *, text: str = "") -> list[Entry]:
        """Writes the new states of `jobs` and adds `records`, all or nothing; returns the lines as they were written.

        `text` is the text of a job that is new. Raises `StateError` when the file cannot be written.
        """
        with self._transaction() as database:
            for job in jobs:
                self._save(database, job, text)
            return [entry for record in records if (entry := self._append(database, record, now_ms)) is not None]

    def _save(self, database: sqlite3.Connection, job: Job, text: str) -> None:
        plan = job.plan
        if database.execute("SELECT 1 FROM jobs WHERE job_id = ?", (plan.job_id,)).fetchone() is None:
            database.execute(
                "INSERT INTO jobs (job_id, text, digest, stage, phase, submitted_ms) VALUES (?, ?, ?, '', 0, ?)",
                (plan.job_id, text, plan.digest, plan.submitted_ms),
            )
        failure = job.failure if isinstance(job, Failed | Cancelled) else None
        database.execute(
            "UPDATE jobs SET stage = ?, phase = ?, ended_ms = ?, failure = ?, outcome = ?, owed = ? WHERE job_id = ?",
            (
                type(job).__name__,
                int(phase_of(job)),
                job.ended_ms if isinstance(job, Ended) else 0,
                schema.failure_text(failure),
                schema.outcome_text(job.outcome if isinstance(job, Done) else None),
                json.dumps(sorted(job.owed) if isinstance(job, Ended) else []),
                plan.job_id,
            ),
        )
        database.executemany(
            "INSERT OR IGNORE INTO approvals (job_id, party, signature, certificate_pem) VALUES (?, ?, ?, ?)",
            [(plan.job_id, one.party, one.signature, one.certificate_pem) for one in job.approvals],
        )
        database.executemany(
            "INSERT OR REPLACE INTO progress (job_id, party, progress) VALUES (?, ?, ?)",
            [(plan.job_id, party, schema.progress_text(one)) for party, one in job.progress.items()],
        )

    def _append(self, database: sqlite3.Connection, record: Record, now_ms: int) -> Entry | None:
        query = "SELECT coalesce(max(sequence), 0) FROM events WHERE job_id = ?"
        (last,) = database.execute(query, (record.job_id,)).fetchone()
        ending = record.failure is not None or record.outcome is not None
        if not ending and (last >= MOST_LINES or (last >= MOST_EVENTS and record.progress is not None)):
            return None
        entry = Entry(last + 1, now_ms, record)
        database.execute(
            "INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                record.job_id,
                entry.sequence,
                now_ms,
                int(record.phase),
                record.party,
                record.line,
                schema.progress_text(record.progress),
                schema.failure_text(record.failure),
                schema.outcome_text(record.outcome),
            ),
        )
        return entry

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._database.execute("BEGIN IMMEDIATE")
                try:
                    yield self._database
                    self._database.execute("COMMIT")
                except BaseException:
                    if self._database.in_transaction:
                        self._database.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise StateError(f"got {error} from the store at {self._path}", hint="is the disk full?") from None

    # --- reading ----------------------------------------------------------------------------------------------------

    def resume(self) -> list[Job]:
        """Jobs that have not ended, and those whose end somebody has yet to hear, in the order of submission."""
        rows = self._select("WHERE stage NOT IN ('Done', 'Failed', 'Cancelled') OR owed != '[]' ORDER BY number", ())
        return [row.job for row in rows]

    def find(self, job_id: str) -> Row | None:
        """The job of that identifier."""
        return next(iter(self._select("WHERE job_id = ?", (job_id,))), None)

    def find_digest(self, job_digest: bytes) -> Row | None:
        """The job of that digest."""
        return next(iter(self._select("WHERE digest = ?", (job_digest,))), None)

    def newest(self, limit: int) -> list[Row]:
        """The newest jobs first."""
        return self._select("ORDER BY number DESC LIMIT ?", (limit,))

    def history(self, job_id: str) -> list[Entry]:
        """All lines of a job, oldest first."""
        query = "SELECT * FROM events WHERE job_id = ? ORDER BY sequence"
        with self._lock:
            rows = self._database.execute(query, (job_id,)).fetchall()
        return [
            Entry(
                sequence,
                time_ms,
                Record(
                    job_id,
                    Phase(phase),
                    line,
                    party,
                    schema.progress_of(progress) if progress else None,
                    schema.failure_of(failure) if failure else None,
                    schema.outcome_of(outcome) if outcome else None,
                ),
            )
            for _, sequence, time_ms, phase, party, line, progress, failure, outcome in rows
        ]

    def _select(self, where: str, values: Sequence[object]) -> list[Row]:
        columns = "job_id, text, stage, phase, submitted_ms, ended_ms, failure, outcome, owed"
        with self._lock:
            rows = self._database.execute(f"SELECT {columns} FROM jobs {where}", values).fetchall()  # noqa: S608
            return [self._row(row) for row in rows]

    def _row(self, row: tuple[Any, ...]) -> Row:
        job_id, text, stage, phase, submitted_ms, ended_ms, failure, outcome, owed = row
        approvals = self._database.execute(
            "SELECT party, signature, certificate_pem FROM approvals WHERE job_id = ?", (job_id,)
        )
        progress = self._database.execute("SELECT party, progress FROM progress WHERE job_id = ?", (job_id,))
        common: dict[str, Any] = {
            "plan": schema.plan_of(job_id, parse(text), submitted_ms),
            "approvals": tuple(Approval(*approval) for approval in approvals),
            "progress": {party: schema.progress_of(one) for party, one in progress},
        }
        ended: dict[str, Any] = {"ended_ms": ended_ms, "owed": frozenset(json.loads(owed))}
        return Row(schema.job_of(stage, Phase(phase), common, ended, failure, outcome), text)
