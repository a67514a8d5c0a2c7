"""Sets of rows of bytes that look random: points of the curve, and pseudonyms.

Rows are ordered as byte strings. Nearly always their first eight bytes decide, and numbers of 64 bits sort and search
ten times faster than strings; where two rows of a set share them, whole rows are compared. Memory: some 30 bytes for
each row beside the rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from veil.align.plan import Rows

Bytes = npt.NDArray[np.uint8]
"""(count, width) uint8, width at least 8."""
_HEAD_BYTES = 8


def _heads(rows: Bytes) -> npt.NDArray[np.uint64]:
    """The first eight bytes of each row as a big-endian number."""
    heads = np.ascontiguousarray(rows[:, :_HEAD_BYTES]).view(">u8").reshape(-1)
    return heads.astype(np.uint64)


def _strings(rows: Bytes) -> npt.NDArray[np.bytes_]:
    # numpy leaves zeros at the end of a string out of comparisons; harmless, as all strings have one width.
    return np.ascontiguousarray(rows).view(f"S{rows.shape[1]}").reshape(-1)


class SortedRows:
    """Rows (count, width) with an order over them. `order`: int64, positions in ascending order of the rows."""

    def __init__(self, rows: Bytes) -> None:
        self._rows = rows
        heads = _heads(rows)
        self.order: Rows = np.argsort(heads, kind="stable").astype(np.int64, copy=False)
        self._sorted = heads[self.order]
        self._tied = bool(np.any(self._sorted[1:] == self._sorted[:-1]))
        if self._tied:
            self.order = np.argsort(_strings(rows), kind="stable").astype(np.int64, copy=False)

    def __repr__(self) -> str:
        return f"SortedRows({len(self._rows)})"

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def rows(self) -> Bytes:
        """The rows in ascending order."""
        return self._rows[self.order]

    @property
    def repeats(self) -> npt.NDArray[np.bool_]:
        """(count,) true where a row in ascending order equals the one before."""
        repeats = np.zeros(len(self._rows), dtype=np.bool_)
        if self._tied:
            rows = self.rows
            repeats[1:] = (rows[1:] == rows[:-1]).all(axis=1)
        return repeats

    def find(self, wanted: Bytes) -> Rows:
        """For each row of `wanted` its position in the original rows, or -1."""
        if len(self._rows) == 0:
            return np.full(len(wanted), -1, dtype=np.int64)
        if self._tied:
            at = np.searchsorted(_strings(self._rows), _strings(wanted), sorter=self.order)
        else:
            at = np.searchsorted(self._sorted, _heads(wanted))
        candidates = self.order[np.minimum(at, len(self._rows) - 1)]
        return np.where((self._rows[candidates] == wanted).all(axis=1), candidates, -1)


def has_repetitions(rows: Bytes) -> bool:
    """Whether two rows are equal."""
    return bool(SortedRows(rows).repeats.any())


def distinct(lists: Sequence[Bytes]) -> Bytes:
    """The union of lists, ascending, each row once."""
    together = SortedRows(np.concatenate(lists))
    return together.rows[~together.repeats]


def common(lists: Sequence[Bytes]) -> Bytes:
    """The rows that all lists have, ascending, each once."""
    kept, *others = sorted(lists, key=len)
    for other in others:
        kept = kept[SortedRows(other).find(kept) >= 0]
    return distinct([kept])
