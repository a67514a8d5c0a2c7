"""The ids of users with interactions, kept by a party that lets jobs join its rows with other parties' columns.

Guarantee: ids are kept only where `[data] align` says so, one file of mode 0600 beside the prepared rows, row number to
id; without it a file of an earlier start is removed. Ids enter a job under a blinding that is drawn for it
(`veil.align`) and are told to nobody. A job that needs them is refused before it is signed where they are not kept.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import polars as pl

from veil.align.ids import MAX_ID_BYTES
from veil.errors import DataError, StateError
from veil.files import read_bounded, write_atomic

_LOG = logging.getLogger("veil.party.identifiers")
FILE: Final = "identifiers.parquet"
_COLUMN: Final = "identifier"
_MAX_FILE_BYTES: Final = 4 * 2**30


@dataclass(frozen=True)
class HeldIdentifiers:
    """Where they lie, and how many users have one."""

    path: Path
    users: int

    def check(self, party: str, most: int) -> None:
        """Raises `DataError` when there are more than the job has room for."""
        if self.users > most:
            raise DataError(f"got more users than the {most} that the job declares for {party}, expected at most these")


def keep(folder: Path, known: Mapping[str, str], pseudonyms: Sequence[str]) -> HeldIdentifiers:
    """Writes the id of every row, in the rows' order; none for a user who has texts and no interactions.

    known: pseudonym to id. An id that no alignment takes is not kept: its user's history counts, and nothing meets it.
    Otherwise one such user would end every job, and that it ended would say so.
    """
    ids = [known.get(one) for one in pseudonyms]
    column = pl.Series(_COLUMN, [one if one and _can_align(one) else None for one in ids], dtype=pl.String)
    buffer = io.BytesIO()
    column.to_frame().write_parquet(buffer)
    path = folder / FILE
    write_atomic(path, buffer.getvalue(), mode=0o600)
    held = HeldIdentifiers(path, len(column) - column.null_count())
    _LOG.info("kept the ids of %d users, for jobs that align them", held.users)
    if long := sum(one is not None for one in ids) - held.users:
        _LOG.warning("%d users have ids of more than %d bytes, which no job can align", long, MAX_ID_BYTES)
    return held


def _can_align(identifier: str) -> bool:
    return 1 <= len(identifier.encode("utf-8", "surrogatepass")) <= MAX_ID_BYTES


def forget(folder: Path) -> None:
    """Removes what an earlier start has kept, or was writing when it ended."""
    for path in (folder / FILE, *folder.glob(f".{FILE}.*.tmp")):
        path.unlink(missing_ok=True)


def load(path: Path) -> list[str | None]:
    """The id of every row. Raises `StateError` when the file is no such."""
    try:
        frame = pl.read_parquet(io.BytesIO(read_bounded(path, _MAX_FILE_BYTES)))
    except pl.exceptions.PolarsError:
        raise StateError(f"got {path.name}, which is not a file of ids", hint="restart the party") from None
    if frame.schema != {_COLUMN: pl.String}:
        raise StateError(f"got {path.name} of other columns, expected ids", hint="restart the party")
    return frame[_COLUMN].to_list()
