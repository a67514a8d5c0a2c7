"""One party's durable record of every noised release, which refuses what the budget does not cover.

Guarantee: when `record` returns, the release is on disk and all releases on record cost together at most the limit, as
`veil.privacy.accountant` counts, whatever their mechanisms: they or a sum that they are part of, which costs no less.
(Counted by itself a part can come out a few 10^-8 above the whole, by the grids of the two: `spent` may show that.)
A release opens only after that, therefore a crash at any instruction can only leave an entry whose release never
opened: spent epsilon is over-counted, never under-counted.
Entries are never changed or deleted. Several processes may use one file at once.

The file is SQLite (WAL, synchronous=EXTRA, one BEGIN IMMEDIATE transaction a record), mode 0600. Every row's hash is
SHA-256 over the hash before it and its own text, so that an edited, removed or reordered row is found at the next use;
the number of rows is kept beside them, so that a cut end is found too. This finds damage and careless edits, not an
owner who rewrites the whole file: a party keeps its own ledger to its own ends.
"""

from __future__ import annotations

import logging
import re
import sqlite3
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

from veil.errors import BudgetError, ConfigError, InputError, StateError
from veil.jobs.spec import Release
from veil.privacy.composition import Composition
from veil.privacy.ledger_file import (
    APPLICATION_ID,
    BUSY_TIMEOUT_S,
    SCHEMA_VERSION,
    check_file,
    create,
    damaged,
    refused,
)
from veil.privacy.ledger_rows import (
    LedgerEntry,
    LimitChange,
    Row,
    Verified,
    extended,
    following,
    limit_body,
    release_body,
)

__all__ = ["Ledger", "LedgerEntry", "LimitChange"]

_JOB_ID: Final = re.compile(r"[0-9a-z][0-9a-z-]{0,63}")

_REMEMBERED: Final = 8  # sums that are known to be within the limit: one or two for each job that runs
_LEAST_AHEAD: Final = 8  # releases that are counted at once when no job announced them

_log = logging.getLogger("veil.privacy")


class Ledger:
    """The ledger at `path`, which is created when there is none.

    `epsilon_limit` and `delta` are what this party's operator allows over all jobs. Where they differ from the last
    ones on record, the change is recorded and is in force from then on, in every process. Raises `ConfigError` for
    limits out of range and `StateError` for a file that is damaged, of another version, or open to others' writing.
    """

    def __init__(self, path: Path, *, epsilon_limit: float, delta: float) -> None:
        if not 0 < epsilon_limit <= 1000:
            raise ConfigError(f"got an epsilon limit of {epsilon_limit}, expected above 0 and at most 1000")
        if not 0 < delta < 0.01:
            raise ConfigError(f"got delta {delta}, expected above 0 and below 0.01")
        self._path = Path(path)
        self._seen = Verified()
        self._affordable: deque[_Affordable] = deque(maxlen=_REMEMBERED)
        # One thread at a time; processes exclude each other by the file's own lock.
        self._lock = threading.Lock()
        if not self._path.exists():
            create(self._path)
        with self._transaction() as connection:
            state = self._verify(connection)
            last = state.limits[-1] if state.limits else None
            if last is None or (last.epsilon_limit, last.delta) != (epsilon_limit, delta):
                _log.info("budget of %s is now epsilon %g at delta %g", self._path.name, epsilon_limit, delta)
                _append(connection, state, limit_body(epsilon_limit, delta), None, None)

    @classmethod
    def existing(cls, path: Path) -> Self:
        """The ledger at `path` under the limits that are on record: makes no file and changes no limit.

        For whoever only looks. Raises `StateError` when there is no sound ledger.
        """
        found = cls.__new__(cls)
        found._path, found._seen, found._lock = Path(path), Verified(), threading.Lock()
        found._affordable = deque(maxlen=_REMEMBERED)
        if not found._read().limits:
            damaged(found._path, "it holds no limit")
        return found

    @property
    def epsilon_limit(self) -> float:
        """The limit in force, which another process may have changed."""
        return self._read().limits[-1].epsilon_limit

    @property
    def delta(self) -> float:
        """The delta in force, at which the limit is stated."""
        return self._read().limits[-1].delta

    def check(self, releases: Sequence[Release]) -> None:
        """Raises `BudgetError` when the budget does not cover all of `releases` on top of what is on record."""
        self._check_covered(self._read(), releases)

    def record(self, job_id: str, digest: bytes, *releases: Release) -> None:
        """Puts releases on record, durably, before they open: all or none. Checks the budget in the same transaction.

        Raises `BudgetError` when the budget does not cover them, `StateError` when this job has recorded a release of
        one's name before (nothing opens twice), `InputError` for a malformed job id or digest, or no releases. Nothing
        is recorded then.
        """
        if not _JOB_ID.fullmatch(job_id):
            raise InputError("got a malformed job id, expected 1 to 64 lower-case letters, digits and hyphens")
        if len(digest) != 32:
            raise InputError(f"got a job digest of {len(digest)} bytes, expected 32")
        if not releases:
            raise InputError("got no release, expected at least one")
        with self._transaction() as connection:
            state = self._verify(connection)
            names = [release.name for release in releases]
            for release in releases:
                found = connection.execute("SELECT 1 FROM entry WHERE job = ? AND release = ?", (job_id, release.name))
                if names.count(release.name) > 1 or found.fetchone() is not None:
                    raise StateError(
                        f"got release {release.name!r} of job {job_id} a second time, expected each once",
                        hint="submit a new job; one that stopped midway cannot open the same release again",
                    )
            self._check_covered(state, releases, ahead=True)
            for release in releases:
                row = _append(connection, state, release_body(job_id, digest, release), job_id, release.name)
                state = replace(state, number=row[0], hash=row[4])

    def spent(self) -> float:
        """Epsilon of everything on record, composed, at the delta in force."""
        state = self._read()
        return state.spent.epsilon(state.limits[-1].delta)

    def entries(self) -> list[LedgerEntry]:
        """Every release on record, oldest first."""
        return list(self._read().entries)

    def limit_changes(self) -> list[LimitChange]:
        """Every limit that was ever in force, oldest first."""
        return list(self._read().limits)

    def _read(self) -> Verified:
        with self._transaction() as connection:
            return self._verify(connection)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Commits, durably, when the block ends well; rolls back otherwise. One connection each, so `fork` is safe."""
        with self._lock:
            # SQLite would make a new file of a missing or an empty one: a ledger that vanished must not start anew.
            check_file(self._path)
            try:
                uri = f"{self._path.resolve().as_uri()}?mode=rw"
                with closing(
                    sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)
                ) as connection:
                    connection.execute("PRAGMA synchronous = EXTRA")
                    connection.execute("BEGIN IMMEDIATE")
                    try:
                        yield connection
                    except BaseException:
                        if connection.in_transaction:  # some storage errors have ended it already
                            connection.execute("ROLLBACK")
                        raise
                    connection.execute("COMMIT")
            except sqlite3.Error as error:
                refused(self._path, error)

    def _verify(self, connection: sqlite3.Connection) -> Verified:
        """Reads and checks the rows that this object has not seen, and that the last seen one is still the same."""
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID or version != SCHEMA_VERSION:
            raise StateError(f"got a ledger of version {version}, expected {SCHEMA_VERSION}", hint="use a fitting Veil")
        state = self._seen
        if state.number == 0:
            verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if verdict != "ok":
                damaged(self._path, "its pages are inconsistent")
        else:
            row = connection.execute("SELECT hash FROM entry WHERE number = ?", (state.number,)).fetchone()
            if row is None or row[0] != state.hash:
                damaged(self._path, f"row {state.number} has changed")
        rows = connection.execute(
            "SELECT number, job, release, body, hash FROM entry WHERE number > ? ORDER BY number", (state.number,)
        )
        state = extended(self._path, state, rows)
        head = connection.execute("SELECT number FROM head").fetchone()
        if head is None or head[0] != state.number:
            damaged(self._path, "rows are missing at its end")
        self._seen = state
        return state

    def _check_covered(self, state: Verified, releases: Sequence[Release], *, ahead: bool = False) -> None:
        limit = state.limits[-1]
        after = state.spent.plus(releases)
        # Counting takes 10 ms to a second, and a job has up to thousands of releases. What is part of something that is
        # known to cost at most the limit costs no more than that itself. A copy, as another thread may be adding to it:
        # `check` holds no lock while it counts.
        if any(known.allows(after, limit) for known in tuple(self._affordable)):
            return
        if ahead:
            more = max(_LEAST_AHEAD, len(state.entries) // 16)
            if self._affords(after.plus(releases, times=more), limit):
                return
        if not self._affords(after, limit):
            spent, cost = state.spent.epsilon(limit.delta), after.epsilon(limit.delta)
            raise BudgetError(
                f"got releases that bring the spent epsilon from {spent:.4f} to {cost:.4f} at delta {limit.delta:g}, "
                f"expected at most {limit.epsilon_limit:g}",
                hint="plan a job with a smaller epsilon, or have the operator raise the limit",
            )

    def _affords(self, whole: Composition, limit: LimitChange) -> bool:
        cost = whole.epsilon(limit.delta)
        if cost > limit.epsilon_limit:
            return False
        self._affordable.append(_Affordable(whole, limit.delta, cost))
        return True


@dataclass(frozen=True)
class _Affordable:
    """What `whole` was found to cost at `delta`."""

    whole: Composition
    delta: float
    cost: float

    def allows(self, part: Composition, limit: LimitChange) -> bool:
        return self.delta == limit.delta and self.cost <= limit.epsilon_limit and self.whole.covers(part)


def _append(
    connection: sqlite3.Connection, state: Verified, body: dict[str, object], job: str | None, name: str | None
) -> Row:
    row = following(state, body, job, name)
    connection.execute("INSERT INTO entry VALUES (?, ?, ?, ?, ?)", row)
    connection.execute("UPDATE head SET number = ?", (row[0],))
    return row
