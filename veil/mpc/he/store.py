"""Correlations on disk: made ahead of a job, taken once each.

    file      header: magic, length, JSON (batch, items with shapes) and its SHA-256
              one record for each item: tensors as little-endian int64, then SHA-256 of batch, number and tensors
    journal   beside it, `.used`: 24 bytes, how many records were ever handed out, and 16 of a SHA-256
              of batch and that

Guarantee: a record is handed out at most once, whatever crashes when: the journal says that it is used, and that is on
the disk, before a byte of it is read; a journal that is missing, torn or behind the file raises and gives nothing.
Only one process has a store open; a copy of the process that was forked off gets nothing from it. Used records are
overwritten with zeros. A record that was changed raises `ArtifactError`. Both files have mode 0600. Not covered:
someone who restores an old copy of both files from a backup.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import struct
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np

from veil.errors import ArtifactError, InputError, StateError
from veil.files import sync_directory, write_atomic
from veil.mpc.he.residues import Integers

Shape = tuple[int, ...]
Record = tuple[Integers, ...]

_MAGIC = b"VEILHE01"
_LENGTH = struct.Struct("<Q")
_DIGEST_BYTES = 32
_JOURNAL_BYTES = 24
_MOST_HEADER_BYTES = 64 * 2**20
# Those of an item and one more: waves and truncation pairs are stacks.
_MOST_DIMENSIONS = 5
BATCH_BYTES = 32


def create(path: Path, batch: bytes, labels: Sequence[str], records: Sequence[Record]) -> None:
    """Writes a store. batch: 32 bytes that all parties of one making share, to tell batches apart; labels: what each
    record is, public; records: its tensors, int64. Raises `StateError` when there is one already or no room for
    it, `InputError` for what could not be opened again."""
    if len(batch) != BATCH_BYTES or len(labels) != len(records):
        raise InputError(f"got a batch of {len(batch)} bytes, {len(labels)} labels and {len(records)} records")
    if path.exists() or _journal(path).exists():
        raise StateError(f"got {path}, which exists, expected a new file", hint="a used store is never written again")
    described = [
        {"label": label, "shapes": [list(tensor.shape) for tensor in record]}
        for label, record in zip(labels, records, strict=True)
    ]
    header = json.dumps({"batch": batch.hex(), "items": described}, separators=(",", ":")).encode()
    dimensions = max((tensor.ndim for record in records for tensor in record), default=0)
    if len(header) > _MOST_HEADER_BYTES or dimensions > _MOST_DIMENSIONS:
        raise InputError(
            f"got {len(records)} records of up to {dimensions} dimensions, expected at most {_MOST_DIMENSIONS}, and a"
            f" list of them of at most {_MOST_HEADER_BYTES} bytes",
            hint="make several stores of fewer records",
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, batch, header, records)
    except OSError as error:
        raise StateError(f"got no store written at {path}: {error.strerror}", hint="make room for it") from None


def _write(path: Path, batch: bytes, header: bytes, records: Sequence[Record]) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.writelines([_MAGIC, _LENGTH.pack(len(header)), header, hashlib.sha256(header).digest()])
            for number, record in enumerate(records):
                data = b"".join(np.ascontiguousarray(tensor, "<i8").tobytes() for tensor in record)
                file.writelines([data, _checksum(batch, number, data)])
            file.flush()
            os.fsync(file.fileno())
        # The journal first: a file without one is never read.
        write_atomic(_journal(path), _entry(batch, 0), mode=0o600)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


class Store:
    """An open store. Use as a context manager. Threads may share it; a process that was forked off may not."""

    def __init__(self, path: Path) -> None:
        """Raises `StateError` when another process has it open or its journal is missing, `ArtifactError` for a file
        that does not verify."""
        self._path = path
        self._process, self._one_at_a_time = os.getpid(), threading.RLock()
        self._file = self._open(path)
        try:
            self._journal = self._open(_journal(path))
        except BaseException:
            os.close(self._file)
            raise
        try:
            self._lock()
            self._read_header()
            self._used = self._read_journal()
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"Store({self._path.name}, used={self._used}, of={len(self.labels)})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets another process open it. A closed store gives nothing."""
        # Numbers of closed files are soon those of others.
        descriptors, self._file, self._journal = (self._file, self._journal), -1, -1
        for descriptor in descriptors:
            if descriptor >= 0:
                os.close(descriptor)

    @property
    def position(self) -> int:
        """Number of the next record."""
        return self._used

    def coming(self, most: int, most_bytes: int) -> list[str]:
        """What the next records are: at most so many and of so many bytes together, but one if there is any."""
        first, total = self._used, 0
        for number in range(first, min(first + most, len(self.labels))):
            total += _data_bytes(self._shapes[number])
            if total > most_bytes and number > first:
                return self.labels[first:number]
        return self.labels[first : first + most]

    def take(self, label: str) -> Record:
        """The next record, which must be what `label` says. Raises `StateError` otherwise or at the end."""
        return self.take_many([label])[0]

    def take_many(self, labels: Sequence[str]) -> list[Record]:
        """The next records, spent by one write to the disk; a crash loses those that were not used yet."""
        self._check_process()
        with self._one_at_a_time:
            first = self._used
            planned = self.labels[first : first + len(labels)]
            if list(labels) != planned:
                raise StateError(
                    f"got a request for {len(labels)} records from number {first} that the store does not hold there",
                    hint="it was made for another job, or a part of it is used up: make a new one",
                )
            self.skip_to(first + len(labels))
            try:
                return [self._read(number) for number in range(first, first + len(labels))]
            except OSError as error:
                raise StateError(
                    f"got no records {first} to {first + len(labels) - 1} of {self._path}: {error.strerror}",
                    hint="they are spent: make a new store",
                ) from None

    def skip_to(self, position: int) -> None:
        """Spends everything before `position`: parties that crashed go on at the highest one among them."""
        self._check_process()
        with self._one_at_a_time:
            if not self._used <= position <= len(self.labels):
                raise StateError(f"got position {position}, expected {self._used} to {len(self.labels)}")
            try:
                if os.pwrite(self._journal, _entry(self.batch, position), 0) != _JOURNAL_BYTES:
                    raise StateError("got a short write to a journal, expected room on the disk")
                os.fsync(self._journal)
            except OSError as error:
                raise StateError(f"got no mark written for {self._path}: {error.strerror}") from None
            self._used = position

    def _check_process(self) -> None:
        # A copy of this object in a process that was forked off has the same lock and the same position.
        if os.getpid() != self._process:
            raise StateError(f"got {self._path}, which another process has open, expected one at a time")

    @staticmethod
    def _open(path: Path) -> int:
        try:
            return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise StateError(f"got no store that can be opened at {path}: {error.strerror}") from None

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StateError(f"got {self._path}, which another process has open, expected one at a time") from None
        if (os.fstat(self._file).st_mode | os.fstat(self._journal).st_mode) & 0o077:
            raise StateError(f"got {self._path} readable by others, expected mode 0600")

    def _read_header(self) -> None:
        size = os.fstat(self._file).st_size
        start = os.pread(self._file, len(_MAGIC) + _LENGTH.size, 0)
        length = _LENGTH.unpack(start[len(_MAGIC) :])[0] if len(start) == len(_MAGIC) + _LENGTH.size else 0
        if start[: len(_MAGIC)] != _MAGIC or not 0 < length <= min(size, _MOST_HEADER_BYTES):
            raise self._wrong("another beginning")
        header = os.pread(self._file, length, len(start))
        if os.pread(self._file, _DIGEST_BYTES, len(start) + length) != hashlib.sha256(header).digest():
            raise self._wrong("a header that does not verify")
        try:
            content = json.loads(header)
            self.batch = bytes.fromhex(content["batch"])
            self.labels = [str(item["label"]) for item in content["items"]]
            self._shapes = [[_shape(extents) for extents in item["shapes"]] for item in content["items"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise self._wrong("a header of another form") from None
        self._starts = [len(start) + length + _DIGEST_BYTES]
        for shapes in self._shapes:
            self._starts.append(self._starts[-1] + _data_bytes(shapes) + _DIGEST_BYTES)
        if self._starts[-1] != size:
            raise self._wrong(f"{size} bytes instead of {self._starts[-1]}")

    def _read_journal(self) -> int:
        entry = os.pread(self._journal, _JOURNAL_BYTES + 1, 0)
        used = int.from_bytes(entry[:8], "little")
        if entry != _entry(self.batch, used) or used > len(self.labels):
            raise StateError(
                f"got a journal of {self._path} that does not verify, expected how much of it is used",
                hint="remove the store and make a new one: nothing in it may be used",
            )
        return used

    def _read(self, number: int) -> Record:
        start, shapes = self._starts[number], self._shapes[number]
        size = _data_bytes(shapes)
        data = os.pread(self._file, size + _DIGEST_BYTES, start)
        os.pwrite(self._file, bytes(len(data)), start)
        data, digest = data[:size], data[size:]
        if digest != _checksum(self.batch, number, data):
            raise self._wrong(f"a record {number} that does not verify")
        tensors, at = [], 0
        for shape in shapes:
            count = int(np.prod(shape, dtype=np.int64))
            tensors.append(np.frombuffer(data, "<i8", count, at).astype(np.int64).reshape(shape))
            at += 8 * count
        return tuple(tensors)

    def _wrong(self, got: str) -> ArtifactError:
        return ArtifactError(f"got {got} in {self._path}, expected a store of this version", hint="make a new one")


def _journal(path: Path) -> Path:
    return path.with_name(path.name + ".used")


def _entry(batch: bytes, used: int) -> bytes:
    number = used.to_bytes(8, "little")
    return number + hashlib.sha256(b"veil/he-store/used\x00" + batch + number).digest()[:16]


def _checksum(batch: bytes, number: int, data: bytes) -> bytes:
    return hashlib.sha256(batch + number.to_bytes(8, "little") + data).digest()


def _shape(extents: Sequence[object]) -> Shape:
    shape = tuple(int(str(extent)) for extent in extents)
    if len(shape) > _MOST_DIMENSIONS or any(not 0 <= extent <= 2**31 for extent in shape):
        raise ValueError("extents beyond bounds")
    return shape


def _data_bytes(shapes: Sequence[Shape]) -> int:
    return 8 * sum(int(np.prod(shape, dtype=object)) for shape in shapes)
