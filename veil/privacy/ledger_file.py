"""The ledger's file: its layout, how it comes into being, and what its errors mean.

Guarantee: a ledger file appears whole or not at all, mode 0600, and never in place of one that was there. Anything that
is not a sound ledger raises `StateError`.
"""

from __future__ import annotations

import logging
import os
import secrets
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final, NoReturn

from veil.errors import StateError
from veil.files import sync_directory

SCHEMA_VERSION: Final = 1
APPLICATION_ID: Final = 0x5645494C  # "VEIL", in the header of the file
BUSY_TIMEOUT_S: Final = 30.0
_SCHEMA: Final = """
CREATE TABLE entry (
    number  INTEGER PRIMARY KEY,
    job     TEXT,
    release TEXT,
    body    TEXT NOT NULL,
    hash    BLOB NOT NULL,
    UNIQUE (job, release)
) STRICT;
CREATE TABLE head (only INTEGER PRIMARY KEY CHECK (only = 1), number INTEGER NOT NULL) STRICT;
INSERT INTO head VALUES (1, 0);
CREATE TRIGGER entry_keeps BEFORE UPDATE ON entry BEGIN SELECT RAISE(ABORT, 'entries are never changed'); END;
CREATE TRIGGER entry_stays BEFORE DELETE ON entry BEGIN SELECT RAISE(ABORT, 'entries are never deleted'); END;
"""
_HEADER: Final = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};"

_log = logging.getLogger("veil.privacy")


def create(path: Path) -> None:
    """Makes an empty ledger under a temporary name and links it to `path`, unless another process was quicker."""
    leftovers = [p.name for p in (Path(f"{path}-wal"), Path(f"{path}-shm")) if p.exists()]
    if leftovers:
        raise StateError(
            f"got {', '.join(leftovers)} without {path.name}, expected the ledger itself",
            hint="restore the ledger from its backup; starting a new one forgets what was spent",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = EXTRA")
            # Kept in the header, and set while nobody else can have the file open.
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript("BEGIN;" + _SCHEMA + _HEADER + "COMMIT;")
        # Whole or not at all, and never over a ledger that is there already.
        os.link(temporary, path)
        _log.warning("no ledger at %s: a new one starts with nothing spent", path)
    except FileExistsError:
        _log.debug("another process has just created %s", path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def check_file(path: Path) -> None:
    try:
        status = path.stat()
    except OSError as error:
        raise StateError(f"got no readable ledger at {path}: {error.strerror}") from None
    if status.st_size == 0:
        damaged(path, "it is empty")
    if status.st_mode & 0o022:
        raise StateError(f"got a ledger at {path} that others may write, expected mode 0600", hint="chmod 600 it")


def refused(path: Path, error: sqlite3.Error) -> NoReturn:
    """SQLite's error as Veil's. Every one of them means: nothing recorded, or recorded and not reported."""
    code = getattr(error, "sqlite_errorcode", None)
    primary = code & 0xFF if isinstance(code, int) else None
    if primary == sqlite3.SQLITE_BUSY:
        raise StateError(
            f"got a ledger at {path} that another process holds, expected it free within {BUSY_TIMEOUT_S:.0f} s"
        ) from None
    if primary in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
        raise StateError(
            f"got a ledger at {path} that cannot be written: {error}", hint="see to its disk and its permissions"
        ) from None
    damaged(path, str(error))


def damaged(path: Path, reason: str) -> NoReturn:
    raise StateError(
        f"got a ledger at {path} that does not verify: {reason}",
        hint="restore it from its backup and account by hand for what came after; a new one forgets what was spent",
    )
