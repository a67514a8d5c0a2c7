"""A party's columns for joint models: read and checked once, then a file of its own that only this party's user reads.

Guarantee: what is kept is the identifier and the columns that the party's configuration lists, nothing else of the
source, one row a user, mode 0600. Identifiers are kept as they are, since records are aligned by them; they enter a job
only under a blinding that is drawn for it (`veil.align`). A job that names another column, another identifier or a
label that this party does not give is refused before it is signed, and so is one whose schema this party's values do
not fit.
"""

from __future__ import annotations

import io
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from party.config import Columns
from veil.align.ids import MAX_ID_BYTES
from veil.errors import DataError, PolicyError, StateError
from veil.files import write_atomic
from veil.recsys import table
from veil.recsys.reading import ReadReport
from veil.recsys.table import LINE, REASON
from veil.tabular.reading import PartyTable, read_party
from veil.tabular.rows import take_rows
from veil.tabular.schema import MOST_ROWS, ColumnsSchema

_LOG = logging.getLogger("veil.party.columns")
_REPORTED_LINES: Final = 20
FILE: Final = "columns.parquet"
SCRATCH: Final = "correlations-"
"""How folders of correlations begin, which live as long as a job does."""


def scratch(folder: Path, job_digest: bytes) -> Path:
    """Where a job without a dealer keeps its correlations, in the folder of prepared rows."""
    return folder / f"{SCRATCH}{job_digest.hex()[:32]}"


def fresh_scratch(folder: Path, job_digest: bytes) -> Path:
    """That folder, new and empty, mode 0700. What a run that died has left there is removed, since a part of it may be
    used. Raises `StateError` where that is not possible."""
    path = scratch(folder, job_digest)
    try:
        if path.exists():
            _LOG.warning("removing correlations that a run of this job has left: none of them is used again")
            shutil.rmtree(path)
        path.mkdir(mode=0o700)
    except OSError as error:
        raise StateError(
            f"got no new folder for correlations at {path.name}: {error.strerror or error}",
            hint="remove what lies there",
        ) from None
    return path


@dataclass(frozen=True)
class HeldColumns:
    """Where the prepared columns lie, what a job may use of them, and how many rows there are."""

    path: Path
    identifier: str
    use: tuple[str, ...]
    labels: tuple[str, ...]
    rows: int

    @property
    def report(self) -> ReadReport:
        """What the party's status shows."""
        return ReadReport(rows_read=self.rows, rows_kept=self.rows, users=self.rows)

    def check(self, schema: ColumnsSchema, party: str, most: int | None) -> None:
        """Raises `PolicyError` for what the party does not give, `DataError` for values that do not fit the schema.

        most: the largest number of rows that the job has room for; None: no row is looked at.
        """
        check_names(schema, party, self.identifier, self.use, self.labels)
        if most is not None and read_columns(self.path, schema, party).rows > most:
            raise DataError(f"got more rows than the {most} that the job declares for {party}, expected at most these")


def check_names(
    schema: ColumnsSchema, party: str, identifier: str, use: tuple[str, ...], labels: tuple[str, ...]
) -> None:
    """Raises `PolicyError` unless the job takes of this party only what it gives."""
    mine = schema.of(party)
    if mine.identifier != identifier:
        raise PolicyError(
            f"got identifier {mine.identifier!r} for {party}, expected {identifier!r}",
            hint="[columns] identifier in the party's config",
        )
    others = [column.name for column in mine.columns if column.name not in use]
    if others:
        raise PolicyError(
            f"got columns {', '.join(map(repr, others[:8]))} of {party}, expected some that it gives",
            hint="[columns] use in the party's config",
        )
    if schema.label is not None and schema.label_party == party and schema.label.name not in labels:
        raise PolicyError(
            f"got label {schema.label.name!r} at {party}, expected one that it gives",
            hint="[columns] labels in the party's config",
        )


def prepare(section: Columns, folder: Path) -> HeldColumns:
    """Reads the source and writes `folder/columns.parquet`. Raises `DataError` with the lines at fault."""
    wanted = [section.identifier, *section.use, *section.labels]
    frame = pl.concat(list(table.read_chunks(section.source, wanted, section.format, identifiers=1)))
    _refuse(frame.filter(pl.col(REASON).is_not_null()), "rows that do not parse", "well-formed ones")
    _refuse(frame.filter(pl.col("0") == ""), "rows without an identifier", "one in each")
    # Alignment takes no longer ones, and would end every job for a single row.
    longer = pl.col("0").str.len_bytes() > MAX_ID_BYTES
    _refuse(frame.filter(longer), f"identifiers of more than {MAX_ID_BYTES} bytes", "shorter ones")
    # Unit of privacy: a user with two rows would move a sum by twice its sensitivity.
    _refuse(frame.filter(pl.col("0").is_duplicated()), "identifiers with more than one row", "one row a user")
    if frame.is_empty():
        raise DataError(f"got no rows in {section.source.name}, expected at least one")
    kept = frame.select([pl.col(str(at)).alias(name) for at, name in enumerate(wanted)])
    # Typed files: fractions stay fractions, so that a job which takes them for categories is refused: 7.0 is not "7".
    floats = [name for name in wanted[1:] if name in table.float_columns(section.source, section.format)]
    kept = kept.with_columns(pl.col(name).replace("", None).cast(pl.Float64) for name in floats)
    buffer = io.BytesIO()
    kept.write_parquet(buffer)
    path = folder / FILE
    write_atomic(path, buffer.getvalue(), mode=0o600)
    _LOG.info("prepared %d rows of %s: %d columns", len(kept), section.source.name, len(wanted) - 1)
    return HeldColumns(path, section.identifier, section.use, section.labels, len(kept))


def read_columns(path: Path, schema: ColumnsSchema, party: str) -> PartyTable:
    """The prepared columns under a job's schema. At the label's party only rows that have a label: no other counts."""
    found = read_party(path, schema.model_copy(update={"slots": MOST_ROWS}), party)
    if found.labels is None:
        return found
    return take_rows(found, np.flatnonzero(found.labels >= 0))


def _refuse(bad: pl.DataFrame, got: str, expected: str) -> None:
    if len(bad):
        lines = bad[LINE].head(_REPORTED_LINES).to_list()
        raise DataError(f"got {got} at lines {', '.join(map(str, lines))}, expected {expected}", lines=lines)
