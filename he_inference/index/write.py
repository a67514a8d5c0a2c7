"""Writing an index: touched blocks are encoded by several threads, the others are copied from the old file.

Guarantee: what a block holds depends on its rows and its number alone, so a changed index equals one built afresh from
the same rows, block for block and byte for byte. Memory is bounded by the number of threads, not by the items. The
index is replaced once, at the end (see `he_inference.index.replace`); its rows follow (see `he_inference.index.rows`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from he_inference.index import rows as rows_file
from he_inference.index.encode import encoded
from he_inference.index.format import Front, block_check, front_bytes, read_front, rows_check
from he_inference.index.geometry import CHECK_BYTES, block_bytes, block_shape, data_offset, file_bytes, norm_limit
from he_inference.index.header import Header
from he_inference.index.replace import Pending, copy_range
from he_inference.index.threads import Progress, cores, in_threads
from he_inference.layouts.seam import Floats, Layout
from veil.errors import ArtifactError, ConfigError, InputError, StateError

RowsOf = Callable[[int], Floats]
"""Rows of a block, float64[n, dimensions], removed ones zero. Called by several threads at a time."""


class RowSource(Protocol):
    """Rows that are read a slice at a time: an array, a mapped file, or `ScaledRows`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(items, dimensions)."""

    def __getitem__(self, rows: Any, /) -> Any:
        """float[n, dimensions] of a slice."""


# Encoding works on complex numbers and on a few arrays of their size; together no more than this.
_WORKING_BYTES = 1024**3
_BYTES_OF_A_NUMBER = 80


class RebuildRequired(StateError):
    """A change that the index cannot take up as it is; building it again can."""


@dataclass(frozen=True, eq=False)
class Old:
    """The index that is changed: its front, its open file and its rows, when they are at hand."""

    front: Front
    descriptor: int
    rows: rows_file.Rows | None = field(repr=False)


def write_index(
    path: Path,
    front: Front,
    rows_of: RowsOf,
    touched: Sequence[int],
    *,
    old: Old | None = None,
    keep_rows: bool = True,
    progress: Progress | None = None,
) -> Front:
    """Writes the index that `front` describes and returns it complete. The caller holds `replace.writing`.

    front: its checks count for blocks that are not touched; the rest is filled in here. touched: numbers of the blocks
    that are encoded from `rows_of`; every other one is copied from `old`. keep_rows: write the rows beside the index:
    those of untouched blocks are copied from `old.rows`, or come from `rows_of` where the old index has none.

    Raises `ConfigError` for rows that do not fit, `RebuildRequired` for rows longer than 1, `OSError`.
    """
    layout = front.header.layout
    size, start = block_bytes(layout), data_offset(layout)
    with ExitStack() as stack:
        out = stack.enter_context(Pending(path, file_bytes(layout), like=path))
        beside = None
        if keep_rows:
            made = Pending(rows_file.next_path(path), rows_file.file_bytes(layout), like=rows_file.rows_path(path))
            beside = stack.enter_context(made)

        def one(block: int) -> tuple[bytes, bytes, float]:
            rows = checked_rows(rows_of(block), layout, rows_file.rows_in(layout, block))
            made = encoded(layout, rows, block)
            out.write(made.data, start + block * size)
            if beside is not None:
                beside.write(rows.data, rows_file.offset(layout, block))
            return block_check(made), rows_check(rows), largest_norm(rows)

        checks, row_checks = front.checks.copy(), front.row_checks.copy()
        largest = front.header.largest_norm
        results = in_threads(one, touched, _threads(layout), progress)
        for block, (check, row_check, norm) in zip(touched, results, strict=True):
            checks[block] = np.frombuffer(check, np.uint8)
            row_checks[block] = np.frombuffer(row_check, np.uint8)
            largest = max(largest, norm)
        untouched = _runs(np.setdiff1d(np.arange(layout.blocks), np.asarray(touched, np.int64)))
        for first, end in untouched:
            if old is None:
                raise StateError(f"got block {first} neither encoded nor in an old index, expected one of both")
            before = data_offset(old.front.header.layout)
            copy_range(
                old.descriptor, before + first * size, out.descriptor, start + first * size, (end - first) * size
            )
            if beside is not None:
                _copy_rows(beside, layout, first, end, old.rows, rows_of)
        header = replace(front.header, largest_norm=largest)
        complete = Front(header, checks, row_checks, front.removed)
        out.write(front_bytes(complete), 0)
        if beside is not None:
            beside.write(rows_file.preamble(complete), 0)
            beside.commit()
        out.commit()
        rows_file.settle(path, kept=keep_rows)
    return complete


@contextmanager
def opened(path: Path) -> Iterator[Old]:
    """The index at `path`, open, without its rows; raises `ArtifactError`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise ArtifactError(
            f"got no readable index at {path}: {error.strerror}", hint="veil index build makes one"
        ) from None
    try:
        yield Old(read_front(descriptor, str(path)), descriptor, None)
    finally:
        os.close(descriptor)


def reader(layout: Layout, rows: RowSource, removed: NDArray[np.bool_]) -> RowsOf:
    """`rows` by block, with zeros for the removed."""

    def rows_of(block: int) -> Floats:
        part = slice(block * layout.block_items, block * layout.block_items + rows_file.rows_in(layout, block))
        values = np.array(rows[part], np.float64)
        values[removed[part]] = 0.0
        return values

    return rows_of


def empty_front(header: Header, removed: NDArray[np.bool_]) -> Front:
    """A front whose blocks are all still to be encoded. removed: bool[items]."""
    table = np.zeros((header.layout.blocks, CHECK_BYTES), np.uint8)
    return Front(header, table, table, removed)


def places(numbers: Iterable[int], items: int) -> NDArray[np.bool_]:
    """bool[items], true at those numbers; raises `InputError` for one that is not there."""
    values = np.array([*numbers], np.int64)
    if values.size and not (values.min() >= 0 and values.max() < items):
        raise InputError(f"got an item number outside of 0 to {items - 1}, expected numbers of items")
    result = np.zeros(items, np.bool_)
    result[values] = True
    return result


def same_blocks(one: Layout, other: Layout) -> bool:
    """Whether equal rows make equal blocks in both layouts, which may differ in the number of items."""
    return (
        (one.kind, one.parameters, one.dimensions) == (other.kind, other.parameters, other.dimensions)
        and (one.block_items, one.rotations, one.group_step) == (other.block_items, other.rotations, other.group_step)
        and block_shape(one) == block_shape(other)
    )


def checked_rows(rows: Floats, layout: Layout, count: int) -> Floats:
    """float64[count, dimensions], C-contiguous, without negative zeros, so that equal rows are equal bytes.

    Raises `ConfigError` for another shape or numbers that are not finite, `RebuildRequired` for rows that are too long.
    """
    values = np.ascontiguousarray(rows, np.float64) + 0.0
    if values.shape != (count, layout.dimensions):
        raise ConfigError(f"got rows of shape {values.shape}, expected ({count}, {layout.dimensions})")
    norm, limit = largest_norm(values), norm_limit(layout)
    if not np.isfinite(norm):
        raise ConfigError("got item vectors with NaN or infinity, expected finite numbers")
    if norm > limit:
        raise RebuildRequired(
            f"got an item vector {norm:.6g} times as long as the index's item norm, expected at most {limit:.6g}",
            hint="scale_items and scaled_by divide rows by it; a longer item needs a build with a larger norm",
        )
    return values


def largest_norm(rows: Floats) -> float:
    """The norm of the longest row; 0 without rows, infinity or NaN when a number is not finite."""
    squares = np.einsum("ij,ij->i", rows, rows)
    return float(np.sqrt(squares.max(initial=0.0)))


def _threads(layout: Layout) -> int:
    terms = layout.groups * layout.rotations
    return max(1, min(cores(), _WORKING_BYTES // (_BYTES_OF_A_NUMBER * terms * layout.parameters.degree)))


def _copy_rows(
    beside: Pending, layout: Layout, first: int, end: int, source: rows_file.Rows | None, rows_of: RowsOf
) -> None:
    if source is None:
        for block in range(first, end):
            rows = checked_rows(rows_of(block), layout, rows_file.rows_in(layout, block))
            beside.write(rows.data, rows_file.offset(layout, block))
        return
    begin = rows_file.offset(layout, first)
    # An untouched block has as many rows as before, so the run ends where the block after it would begin.
    stop = min(rows_file.offset(layout, end), rows_file.file_bytes(layout))
    copy_range(source.descriptor, begin, beside.descriptor, begin, stop - begin)


def _runs(numbers: NDArray[np.int64]) -> list[tuple[int, int]]:
    """[first, end) of each run of consecutive numbers."""
    if not numbers.size:
        return []
    breaks = np.flatnonzero(np.diff(numbers) > 1) + 1
    return [(int(run[0]), int(run[-1]) + 1) for run in np.split(numbers, breaks)]
