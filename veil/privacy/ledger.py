"""One party's durable record of every noised release, which refuses what the budget does not cover.

Guarantee: when `record` returns, the release is on disk and all releases on record cost together at most the limit, as
`veil.privacy.accountant` counts. A release opens only after that, therefore a crash at any instruction can only leave
an entry whose release never opened: spent epsilon is over-counted, never under-counted. Entries are never changed or
deleted. Several processes may use one file at once.

The file is SQLite (WAL, synchronous=EXTRA, one BEGIN IMMEDIATE transaction a record), mode 0600. Every row's hash is
SHA-256 over the hash before it and its own text, so that an edited, removed or reordered row is found at the next use;
the number of rows is kept beside them, so that a cut end is found too. This finds damage and careless edits, not an
owner who rewrites the whole file: a party keeps its own ledger to its own ends.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Self

from pydantic import ValidationError

from veil.errors import BudgetError, ConfigError, InputError, StateError
from veil.jobs.spec import Release, canonical
from veil.privacy.accountant import epsilon_of_squared_mu, squared_mu
from veil.privacy.ledger_file import (
    APPLICATION_ID,
    BUSY_TIMEOUT_S,
    SCHEMA_VERSION,
    check_file,
    create,
    damaged,
    refused,
)

_CHAIN_DOMAIN: Final = b"veil/ledger/v1\x00"
_JOB_ID: Final = re.compile(r"[0-9a-z][0-9a-z-]{0,63}")

_log = logging.getLogger("veil.privacy")


@dataclass(frozen=True)
class LedgerEntry:
    """One release on record. `recorded_at`: UTC, ISO 8601. `digest`: SHA-256 of the job text, 32 bytes."""

    number: int
    job_id: str
    digest: bytes
    release: Release
    recorded_at: str


@dataclass(frozen=True)
class LimitChange:
    """A limit on record, in force from `recorded_at` (UTC, ISO 8601) until the next one."""

    number: int
    epsilon_limit: float
    delta: float
    recorded_at: str


@dataclass(frozen=True)
class _Verified:
    """What has been read and checked so far: rows up to `number`, whose last hash is `hash`."""

    number: int = 0
    hash: bytes = bytes(32)
    squared_mu: int = 0
    entries: tuple[LedgerEntry, ...] = ()
    limits: tuple[LimitChange, ...] = ()


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
        self._seen = _Verified()
        # One thread at a time; processes exclude each other by the file's own lock.
        self._lock = threading.Lock()
        if not self._path.exists():
            create(self._path)
        with self._transaction() as connection:
            state = self._verify(connection)
            last = state.limits[-1] if state.limits else None
            if last is None or (last.epsilon_limit, last.delta) != (epsilon_limit, delta):
                _log.info("budget of %s is now epsilon %g at delta %g", self._path.name, epsilon_limit, delta)
                body: dict[str, object] = {
                    "kind": "limit",
                    "epsilon_limit": float(epsilon_limit),
                    "delta": float(delta),
                }
                _append(connection, state, body, None, None)

    @classmethod
    def existing(cls, path: Path) -> Self:
        """The ledger at `path` under the limits that are on record: makes no file and changes no limit.

        For whoever only looks. Raises `StateError` when there is no sound ledger.
        """
        found = cls.__new__(cls)
        found._path, found._seen, found._lock = Path(path), _Verified(), threading.Lock()
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
        _check_covered(self._read(), releases)

    def record(self, job_id: str, digest: bytes, release: Release) -> None:
        """Puts one release on record, durably, before it opens. Checks the budget in the same transaction.

        Raises `BudgetError` when the budget does not cover it, `StateError` when this job has recorded a release of
        that name before (nothing opens twice), `InputError` for a malformed job id or digest. Nothing is recorded then.
        """
        if not _JOB_ID.fullmatch(job_id):
            raise InputError("got a malformed job id, expected 1 to 64 lower-case letters, digits and hyphens")
        if len(digest) != 32:
            raise InputError(f"got a job digest of {len(digest)} bytes, expected 32")
        with self._transaction() as connection:
            state = self._verify(connection)
            if any(entry.job_id == job_id and entry.release.name == release.name for entry in state.entries):
                raise StateError(
                    f"got release {release.name!r} of job {job_id} a second time, expected each once",
                    hint="submit a new job; one that stopped midway cannot open the same release again",
                )
            _check_covered(state, (release,))
            body: dict[str, object] = {
                "kind": "release",
                "job_id": job_id,
                "digest": digest.hex(),
                "release": release.model_dump(),
            }
            _append(connection, state, body, job_id, release.name)

    def spent(self) -> float:
        """Epsilon of everything on record, composed, at the delta in force."""
        state = self._read()
        return epsilon_of_squared_mu(state.squared_mu, state.limits[-1].delta)

    def entries(self) -> list[LedgerEntry]:
        """Every release on record, oldest first."""
        return list(self._read().entries)

    def limit_changes(self) -> list[LimitChange]:
        """Every limit that was ever in force, oldest first."""
        return list(self._read().limits)

    def _read(self) -> _Verified:
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

    def _verify(self, connection: sqlite3.Connection) -> _Verified:
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
        state = _extended(self._path, state, rows)
        head = connection.execute("SELECT number FROM head").fetchone()
        if head is None or head[0] != state.number:
            damaged(self._path, "rows are missing at its end")
        self._seen = state
        return state


def _extended(
    path: Path, state: _Verified, rows: Iterator[tuple[int, str | None, str | None, str, bytes]]
) -> _Verified:
    """The state after `rows`, each checked against the chain; raises `StateError` at the first that does not fit."""
    number, last, total = state.number, state.hash, state.squared_mu
    entries, limits = list(state.entries), list(state.limits)
    for row_number, job, name, body, digest in rows:
        number += 1
        if row_number != number or not isinstance(body, str) or digest != _link(last, body):
            damaged(path, f"row {number} does not continue the chain")
        last = digest
        try:
            document = json.loads(body)
            if document["number"] != number:
                damaged(path, f"row {number} carries another number")
            if document["kind"] == "limit":
                change = LimitChange(number, document["epsilon_limit"], document["delta"], document["at"])
                limits.append(change)
                continue
            release = Release.model_validate(document["release"])
            entry = LedgerEntry(number, document["job_id"], bytes.fromhex(document["digest"]), release, document["at"])
        except (ValidationError, ValueError, KeyError, TypeError):
            damaged(path, f"row {number} is not readable")
        if (job, name) != (entry.job_id, release.name):
            damaged(path, f"row {number} names another release than its text")
        entries.append(entry)
        total += squared_mu(release)
    return _Verified(number, last, total, tuple(entries), tuple(limits))


def _check_covered(state: _Verified, releases: Sequence[Release]) -> None:
    limit = state.limits[-1]
    total = state.squared_mu + sum(squared_mu(release) for release in releases)
    cost = epsilon_of_squared_mu(total, limit.delta)
    if cost > limit.epsilon_limit:
        spent = epsilon_of_squared_mu(state.squared_mu, limit.delta)
        raise BudgetError(
            f"got releases that bring the spent epsilon from {spent:.4f} to {cost:.4f} at delta {limit.delta:g}, "
            f"expected at most {limit.epsilon_limit:g}",
            hint="plan a job with a smaller epsilon, or have the operator raise the limit",
        )


def _append(
    connection: sqlite3.Connection, state: _Verified, body: dict[str, object], job: str | None, name: str | None
) -> None:
    number = state.number + 1
    text = canonical({**body, "number": number, "at": datetime.now(UTC).isoformat(timespec="milliseconds")})
    row = (number, job, name, text, _link(state.hash, text))
    connection.execute("INSERT INTO entry VALUES (?, ?, ?, ?, ?)", row)
    connection.execute("UPDATE head SET number = ?", (number,))


def _link(previous: bytes, body: str) -> bytes:
    return hashlib.sha256(_CHAIN_DOMAIN + previous + body.encode()).digest()
