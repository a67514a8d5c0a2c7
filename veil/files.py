"""Writing files so that a reader never meets half of one, and reading no more than was agreed.

A file is written under a temporary name in its own folder, synced, and renamed; the folder is synced after it. A
directory is filled under a temporary name and renamed whole.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from veil.errors import InputError, StateError


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replaces `path` by `data`, or leaves it as it was. The permission bits are `mode` from the first byte on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yields an empty temporary directory that becomes `path` when the block ends well, and vanishes otherwise.

    Raises `StateError` when `path` exists already: a published directory is never overwritten.
    """
    if path.exists():
        raise StateError(f"got {path}, which exists, expected a new directory", hint="remove it or choose another")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    temporary.mkdir(mode=0o755)
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        sync_directory(temporary)
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_directory(path.parent)


def read_bounded(path: Path, limit_bytes: int) -> bytes:
    """The whole file, when it has at most `limit_bytes`; raises `InputError` otherwise or when it cannot be read."""
    try:
        with path.open("rb") as file:
            data = file.read(limit_bytes + 1)
    except OSError as error:
        raise InputError(f"got no readable file at {path}: {error.strerror}") from None
    if len(data) > limit_bytes:
        raise InputError(f"got more than {limit_bytes} bytes in {path}, expected at most that many")
    return data


def sync_directory(path: Path) -> None:
    """Makes renames within `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
