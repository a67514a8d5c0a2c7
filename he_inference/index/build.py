"""Making an index from item vectors, and changing one: only blocks with changed rows are encoded.

Guarantee: after any sequence of changes the blocks equal, byte for byte, those of an index built from the rows as they
are then. Every change is one replacement of the file with a new generation; where it fails the old file stays. Rows are
in units of the index's item norm everywhere here, so that none is longer than 1: `scale_items` makes them for a build,
`scaled_by` for a change.

A removed item becomes a row of zeros. Its number is kept and listed (`Index.removed`), so that no other item's number
changes; a later `append` uses it again.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from he_inference.index.change import append, remove, sync, update
from he_inference.index.header import Header
from he_inference.index.replace import writing
from he_inference.index.scaling import ScaledItems, ScaledRows, item_ids_digest, norm_of, scale_items, scaled_by
from he_inference.index.threads import Progress
from he_inference.index.write import RebuildRequired, RowSource, empty_front, opened, places, reader, write_index
from he_inference.layouts.seam import Layout
from veil.errors import ArtifactError, ConfigError

__all__ = [
    "RebuildRequired",
    "RowSource",
    "ScaledItems",
    "ScaledRows",
    "append",
    "build",
    "item_ids_digest",
    "norm_of",
    "remove",
    "scale_items",
    "scaled_by",
    "sync",
    "update",
]


def build(
    path: Path,
    layout: Layout,
    rows: RowSource,
    *,
    item_norm: float,
    model_digest: bytes,
    item_ids_digest: bytes,
    removed: Iterable[int] = (),
    keep_rows: bool = True,
    progress: Progress | None = None,
) -> None:
    """Encodes [items, dimensions] rows of norm at most 1 and replaces `path`.

    removed: numbers of items that are left out: zero in the index, whatever their rows are, and listed as removed.
    keep_rows: write FILE.rows as well, 8 bytes for each number, without which only `sync` can change the index.
    Raises `ConfigError`, `RebuildRequired` (a row is longer than 1), `StateError` (another writer), `OSError`.
    """
    _check_shape(rows, layout)
    with writing(path):
        header = Header(layout, item_norm, 0.0, model_digest, item_ids_digest, _generation(path) + 1)
        front = empty_front(header, places(removed, layout.items))
        write_index(
            path,
            front,
            reader(layout, rows, front.removed),
            range(layout.blocks),
            keep_rows=keep_rows,
            progress=progress,
        )


def _generation(path: Path) -> int:
    """That of the index at `path`; 0 when none is there or it is damaged."""
    try:
        with opened(path) as old:
            return old.front.header.generation
    except ArtifactError:
        return 0


def _check_shape(rows: RowSource, layout: Layout) -> None:
    if tuple(rows.shape) != (layout.items, layout.dimensions):
        raise ConfigError(f"got item vectors of shape {rows.shape}, expected ({layout.items}, {layout.dimensions})")
