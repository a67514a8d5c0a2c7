"""Changes of an index: rows replaced, added, removed, or all compared with those of a newer model.

Guarantee: see `he_inference.index.build`, which has these verbs in its interface.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from he_inference.index import rows as rows_file
from he_inference.index.format import Front, rows_check
from he_inference.index.geometry import CHECK_BYTES
from he_inference.index.header import Header
from he_inference.index.replace import writing
from he_inference.index.threads import Progress, cores, in_threads
from he_inference.index.write import Old, RowSource, checked_rows, opened, places, reader, same_blocks, write_index
from he_inference.layouts.catalogue import layout_of, packing_of
from he_inference.layouts.seam import Floats, Layout
from veil.errors import ConfigError, InputError


def update(
    path: Path,
    changes: Mapping[int, ArrayLike],
    *,
    model_digest: bytes | None = None,
    item_ids_digest: bytes | None = None,
    progress: Progress | None = None,
) -> None:
    """Replaces rows by number; digests that are not given stay. Raises as `build`, and `InputError` for a number that
    is not there or was removed."""

    def change(draft: _Draft) -> None:
        for number, row in changes.items():
            draft.place(draft.living(number), row)

    _change(path, change, model_digest, item_ids_digest, progress)


def append(
    path: Path,
    rows: ArrayLike,
    *,
    reuse: bool = True,
    model_digest: bytes | None = None,
    item_ids_digest: bytes | None = None,
    progress: Progress | None = None,
) -> list[int]:
    """Adds [n, dimensions] rows and returns their numbers: first those of removed items (reuse), then new ones.

    Where more items want another layout (a session index of few blocks that crosses into one more), all blocks are
    encoded again. Raises as `build`.
    """
    numbers: list[int] = []

    def change(draft: _Draft) -> None:
        free = iter(sorted(draft.removed) if reuse else ())
        for row in np.atleast_2d(np.asarray(rows, np.float64)):
            number = next(free, draft.items)
            draft.place(number, row)
            numbers.append(number)

    _change(path, change, model_digest, item_ids_digest, progress)
    return numbers


def remove(
    path: Path,
    numbers: Iterable[int],
    *,
    model_digest: bytes | None = None,
    item_ids_digest: bytes | None = None,
    progress: Progress | None = None,
) -> None:
    """Makes rows zero and lists their numbers as removed. Raises as `update`."""

    def change(draft: _Draft) -> None:
        for number in set(numbers):
            draft.drop(draft.living(number))

    _change(path, change, model_digest, item_ids_digest, progress)


def sync(
    path: Path,
    rows: RowSource,
    *,
    removed: Iterable[int] | None = None,
    model_digest: bytes | None = None,
    item_ids_digest: bytes | None = None,
    keep_rows: bool = True,
    progress: Progress | None = None,
) -> tuple[int, int]:
    """Makes the index that of `rows`, [items, dimensions]; returns (blocks encoded, blocks).

    It needs no FILE.rows: a block is encoded when its rows differ from the checksum in the index. removed: numbers
    whose rows are left out; those of the old index unless given. Nothing is written when nothing differs. Raises as
    `build`.
    """
    with writing(path), opened(path) as old:
        header = old.front.header
        if len(rows.shape) != 2 or rows.shape[1] != header.layout.dimensions:
            raise ConfigError(f"got item vectors of shape {rows.shape}, expected [items, {header.layout.dimensions}]")
        layout = _resized(header.layout, rows.shape[0])
        kept = np.flatnonzero(old.front.removed[: layout.items]).tolist() if removed is None else removed
        gone = places(kept, layout.items)
        rows_of = reader(layout, rows, gone)

        def check(block: int) -> bytes:
            return rows_check(checked_rows(rows_of(block), layout, rows_file.rows_in(layout, block)))

        checks = in_threads(check, range(layout.blocks), cores())
        if same_blocks(header.layout, layout):
            known = [bytes(row) for row in old.front.row_checks]
            touched = [b for b, found in enumerate(checks) if b >= len(known) or found != known[b]]
        else:
            touched = list(range(layout.blocks))
        changed = replace(
            header,
            layout=layout,
            model_digest=model_digest or header.model_digest,
            item_ids_digest=item_ids_digest or header.item_ids_digest,
        )
        if changed == header and not touched and np.array_equal(gone, old.front.removed):
            return 0, layout.blocks
        front = _resized_front(old.front, replace(changed, generation=header.generation + 1), gone)
        write_index(path, front, rows_of, touched, old=old, keep_rows=keep_rows, progress=progress)
        return len(touched), layout.blocks


class _Draft:
    """Changes of rows by number, against the index as it is."""

    def __init__(self, front: Front) -> None:
        self._layout = front.header.layout
        self.removed: set[int] = set(np.flatnonzero(front.removed).tolist())
        self.items = front.header.layout.items
        self.rows: dict[int, Floats] = {}

    def living(self, number: int) -> int:
        """The number itself, when such an item is there; raises `InputError`."""
        if not 0 <= number < self.items or number in self.removed:
            raise InputError(f"got item number {number}, expected one of an item in the index")
        return number

    def place(self, number: int, row: ArrayLike) -> None:
        """Sets the row of an item; the number after the last one makes a new item."""
        values = np.array(row, np.float64)
        if values.shape != (self._layout.dimensions,):
            raise InputError(f"got a row of shape {values.shape}, expected ({self._layout.dimensions},)")
        self.rows[number] = checked_rows(values[None], self._layout, 1)[0]
        self.items = max(self.items, number + 1)
        self.removed.discard(number)

    def drop(self, number: int) -> None:
        """Removes an item."""
        self.rows[number] = np.zeros(self._layout.dimensions)
        self.removed.add(number)


def _change(
    path: Path,
    change: Callable[[_Draft], None],
    model_digest: bytes | None,
    item_ids_digest: bytes | None,
    progress: Progress | None,
) -> None:
    with writing(path), opened(path) as bare, rows_file.matching(path, bare.front) as rows:
        old = Old(bare.front, bare.descriptor, rows)
        header, draft = old.front.header, _Draft(old.front)
        change(draft)
        layout = _resized(header.layout, draft.items)
        touched: Sequence[int] = range(layout.blocks)
        if same_blocks(header.layout, layout):
            touched = sorted({number // layout.block_items for number in draft.rows})
        else:
            # Their places change with the layout, so the rows of every block are written anew, too.
            old = bare
        by_block: dict[int, list[int]] = {}
        for number in draft.rows:
            by_block.setdefault(number // layout.block_items, []).append(number)

        def rows_of(block: int) -> Floats:
            first = block * layout.block_items
            values = np.zeros((rows_file.rows_in(layout, block), layout.dimensions))
            if block < header.layout.blocks:
                before = rows.read(block)
                values[: len(before)] = before
            for number in by_block.get(block, ()):
                values[number - first] = draft.rows[number]
            return values

        changed = replace(
            header,
            layout=layout,
            model_digest=model_digest or header.model_digest,
            item_ids_digest=item_ids_digest or header.item_ids_digest,
            generation=header.generation + 1,
        )
        front = _resized_front(old.front, changed, places(draft.removed, draft.items))
        write_index(path, front, rows_of, touched, old=old, progress=progress)


def _resized(layout: Layout, items: int) -> Layout:
    return layout_of(layout.kind, layout.parameters, items, layout.dimensions, packing_of(layout))


def _resized_front(front: Front, header: Header, removed: NDArray[np.bool_]) -> Front:
    blocks = header.layout.blocks
    tables = []
    for table in (front.checks, front.row_checks):
        resized = np.zeros((blocks, CHECK_BYTES), np.uint8)
        resized[: len(table)] = table[:blocks]
        tables.append(resized)
    return Front(header, tables[0], tables[1], removed)
