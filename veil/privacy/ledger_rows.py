"""The ledger's rows: what each says, and the chain of hashes that ties them together.

Guarantee: `extended` returns what rows say only when every one of them continues the chain and is readable; anything
else raises `StateError`. Rows that earlier versions wrote, whose releases state no mechanism and no sampling, read as
what they were: Gaussian, on all users.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from veil.jobs.spec import Release, canonical
from veil.privacy.composition import Composition
from veil.privacy.ledger_file import damaged

_CHAIN_DOMAIN: Final = b"veil/ledger/v1\x00"

Row = tuple[int, str | None, str | None, str, bytes]
"""Number, job, release name, body, hash; job and name are None in a row that states a limit."""


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
class Verified:
    """What has been read and checked so far: rows up to `number`, whose last hash is `hash`."""

    number: int = 0
    hash: bytes = bytes(32)
    spent: Composition = field(default_factory=Composition)
    entries: tuple[LedgerEntry, ...] = ()
    limits: tuple[LimitChange, ...] = ()


def extended(path: Path, state: Verified, rows: Iterable[Row]) -> Verified:
    """The state after `rows`, each checked against the chain; raises `StateError` at the first that does not fit."""
    number, last = state.number, state.hash
    entries: list[LedgerEntry] = []
    limits: list[LimitChange] = []
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
    if number == state.number:
        return state
    spent = state.spent.plus(entry.release for entry in entries)
    return Verified(number, last, spent, (*state.entries, *entries), (*state.limits, *limits))


def following(state: Verified, body: dict[str, object], job: str | None, name: str | None) -> Row:
    """The row that `body` becomes after `state`, with the time of now."""
    number = state.number + 1
    text = canonical({**body, "number": number, "at": datetime.now(UTC).isoformat(timespec="milliseconds")})
    return number, job, name, text, _link(state.hash, text)


def limit_body(epsilon_limit: float, delta: float) -> dict[str, object]:
    """What a row says that states a limit."""
    return {"kind": "limit", "epsilon_limit": float(epsilon_limit), "delta": float(delta)}


def release_body(job_id: str, digest: bytes, release: Release) -> dict[str, object]:
    """What a row says that records a release."""
    return {"kind": "release", "job_id": job_id, "digest": digest.hex(), "release": release.model_dump()}


def _link(previous: bytes, body: str) -> bytes:
    return hashlib.sha256(_CHAIN_DOMAIN + previous + body.encode()).digest()
