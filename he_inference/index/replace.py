"""Replacing a large file so that readers meet the old one or the new one, never half of one.

Guarantee: until `Pending.commit` the old file is untouched, and readers that have it open keep it afterwards. A crash,
`kill -9` or a full disk before the commit leaves the old file; leftovers of one are removed by the next writer. One
writer at a time: the lock is the kernel's and ends with its process.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from veil.errors import StateError
from veil.files import sync_directory

# What a kernel or file system says that cannot copy within itself.
_CANNOT_COPY = (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM)
_CANNOT_RESERVE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
_COPY_BYTES = 8 * 1024 * 1024


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Holds the right to write `path`; raises `StateError` while another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateError(
                f"got {path}, which another process is writing, expected one writer", hint="wait for it to end"
            ) from None
        leftover = re.compile(rf"\.{re.escape(path.name)}(\.rows\.next)?\.[0-9a-f]{{12}}\.tmp")
        for entry in path.parent.iterdir():
            if leftover.fullmatch(entry.name):
                entry.unlink(missing_ok=True)
        yield
    finally:
        os.close(lock)


class Pending:
    """A file of `size` bytes under a temporary name. Use as a context manager: without `commit` it vanishes."""

    def __init__(self, path: Path, size: int, *, like: Path | None = None) -> None:
        """like: an earlier file, whose permission bits the new one gets; without one its owner alone may read it."""
        self.path = path
        self._temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
        self.descriptor = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._committed = False
        try:
            if like is not None and like.is_file():
                os.fchmod(self.descriptor, stat.S_IMODE(like.stat().st_mode) & 0o666)
            _reserve(self.descriptor, size)
        except BaseException:
            self._discard()
            raise

    def __enter__(self) -> Pending:
        return self

    def __exit__(self, *_: object) -> None:
        self._discard()

    def write(self, data: bytes | memoryview, offset: int) -> None:
        """Writes all of `data`; may be called from several threads."""
        write_at(self.descriptor, data, offset)

    def commit(self) -> None:
        """Makes the file durable and gives it its name."""
        os.fsync(self.descriptor)
        os.replace(self._temporary, self.path)
        self._committed = True
        sync_directory(self.path.parent)

    def _discard(self) -> None:
        os.close(self.descriptor)
        if not self._committed:
            self._temporary.unlink(missing_ok=True)


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Writes all of `data` at `offset`."""
    view = memoryview(data).cast("B")
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def copy_range(source: int, source_offset: int, target: int, target_offset: int, size: int) -> None:
    """Copies bytes between files: within the file system, sharing the extents, where it can.

    Raises `StateError` when the source ends early.
    """
    within = True
    while size:
        count = min(size, _COPY_BYTES) if not within else size
        if within:
            try:
                done = os.copy_file_range(source, target, count, source_offset, target_offset)
            except OSError as error:
                if error.errno not in _CANNOT_COPY:
                    raise
                within = False
                continue
        else:
            data = os.pread(source, count, source_offset)
            write_at(target, data, target_offset)
            done = len(data)
        if not done:
            raise StateError("got a file that ends early while it was copied, expected a whole one")
        source_offset, target_offset, size = source_offset + done, target_offset + done, size - done


def _reserve(descriptor: int, size: int) -> None:
    # A full disk is found here, before any work is done.
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in _CANNOT_RESERVE:
            raise
        os.ftruncate(descriptor, size)
