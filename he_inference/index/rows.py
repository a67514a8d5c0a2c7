"""The rows that an index was made from, in a file beside it: what a change of one item in a block needs of the others.

    FILE.rows     4096 bytes of preamble, then float64[items, dimensions], little-endian

Guarantee: rows are used only when they are those of the index: the preamble names them by `Front.rows_identity`, and
each block's rows are checked against the index's checksum of them. A writer makes FILE.rows.next first, then replaces
the index, then gives the rows their name; where it was stopped in between, `matching` finishes or ignores its work. A
server needs no rows: the file may be left out of what is copied to it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from he_inference.index.format import Front, rows_check
from he_inference.index.geometry import PAGE_BYTES
from he_inference.layouts.seam import Floats, Layout
from veil.errors import ArtifactError, StateError
from veil.files import sync_directory

_MAGIC = b"VEIL-ROW"
_VERSION = 1
_PREAMBLE = struct.Struct("<8sIIQ16s")


def rows_path(index: Path) -> Path:
    """Where the rows of an index are."""
    return index.with_name(f"{index.name}.rows")


def next_path(index: Path) -> Path:
    """Where the rows of the index that is being written are."""
    return index.with_name(f"{index.name}.rows.next")


def preamble(front: Front) -> bytes:
    """The first page of the file of the rows of `front`."""
    layout = front.header.layout
    packed = _PREAMBLE.pack(_MAGIC, _VERSION, layout.dimensions, layout.items, front.rows_identity)
    return packed.ljust(PAGE_BYTES, b"\0")


def file_bytes(layout: Layout) -> int:
    """Bytes of the file."""
    return PAGE_BYTES + 8 * layout.items * layout.dimensions


def offset(layout: Layout, block: int) -> int:
    """Where the rows of a block begin."""
    return PAGE_BYTES + 8 * block * layout.block_items * layout.dimensions


def rows_in(layout: Layout, block: int) -> int:
    """How many rows a block has."""
    return min(layout.block_items, layout.items - block * layout.block_items)


@dataclass(frozen=True)
class Rows:
    """The open file of the rows of an index."""

    front: Front
    descriptor: int

    def read(self, block: int) -> Floats:
        """float64[n, dimensions], a copy. Raises `ArtifactError` when they are not those of the index."""
        layout = self.front.header.layout
        count = rows_in(layout, block)
        data = os.pread(self.descriptor, 8 * count * layout.dimensions, offset(layout, block))
        rows = np.frombuffer(bytearray(data), np.float64)
        if rows.size != count * layout.dimensions or rows_check(rows) != self.front.row_checks[block].tobytes():
            raise ArtifactError(f"got damaged rows of block {block}, expected those of the index", hint=_HINT)
        return rows.reshape(count, layout.dimensions)


_HINT = "veil index update with the model, or veil index build, writes them again"


@contextmanager
def matching(index: Path, front: Front) -> Iterator[Rows]:
    """The rows of the index at `index`; raises `StateError` when they are not there. Only for who may write it."""
    wanted = preamble(front)
    for candidate in (rows_path(index), next_path(index)):
        try:
            descriptor = os.open(candidate, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError:
            continue
        try:
            size = os.fstat(descriptor).st_size
            if size != file_bytes(front.header.layout) or os.pread(descriptor, PAGE_BYTES, 0) != wanted:
                continue
            if candidate == next_path(index):
                # Their writer was stopped after it had replaced the index.
                os.replace(candidate, rows_path(index))
                sync_directory(index.parent)
            yield Rows(front, descriptor)
            return
        finally:
            os.close(descriptor)
    raise StateError(f"got no rows of the index at {rows_path(index)}, expected the file", hint=_HINT)


def settle(index: Path, *, kept: bool) -> None:
    """Gives the rows of a replaced index their name, or removes those of the old one when none are kept."""
    if kept:
        os.replace(next_path(index), rows_path(index))
    else:
        rows_path(index).unlink(missing_ok=True)
        next_path(index).unlink(missing_ok=True)
    sync_directory(index.parent)
