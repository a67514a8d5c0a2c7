"""A party's file into columns of checked text: one row a user, under the public schema.

Guarantee: every value in a `PartyTable` is one that the schema can encode; each user has exactly one row; what does not
fit is refused with line numbers, never with the value, the id or anything else that stands in the file. Bytes, rows and
the length of texts are bounded (`veil.recsys.table`). Formats: CSV, TSV, gzip of these, and Parquet.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from veil.errors import DataError
from veil.recsys import table
from veil.recsys.table import LINE, REASON, TableFormat
from veil.tabular.schema import (
    MAX_TEXT_CHARACTERS,
    CategoricalColumn,
    Column,
    ColumnsSchema,
    Label,
    NumericColumn,
    PartyColumns,
)

_REPORTED_LINES: Final = 20
_IDENTIFIER: Final = "0"
_BLOCK_ENTRIES: Final = 1 << 23


@dataclass(frozen=True, eq=False, repr=False)
class PartyTable:
    """One party's rows: `identifiers` (distinct, in the file's order), its columns, and labels where it holds them.

    Attributes:
        columns: one Series for each column of the schema, in its order: Float64 with nulls for missing values for
            numbers, String with "" for missing values otherwise.
        labels: int8[rows], 1, 0, or -1 for a row without a label; None at a party that does not hold the label.
    """

    party: PartyColumns
    identifiers: tuple[str, ...]
    columns: tuple[pl.Series, ...]
    labels: npt.NDArray[np.int8] | None

    @property
    def rows(self) -> int:
        """Number of rows, hence of users."""
        return len(self.identifiers)

    def blocks(self) -> Iterator[PartyTable]:
        """The same rows in order, so few at a time that their features take at most 64 MiB as float64."""
        size = max(1, _BLOCK_ENTRIES // self.party.width)
        for start in range(0, self.rows, size):
            part = slice(start, start + size)
            columns = tuple(column[part] for column in self.columns)
            labels = None if self.labels is None else self.labels[part]
            yield PartyTable(self.party, self.identifiers[part], columns, labels)

    def __repr__(self) -> str:
        return f"PartyTable({self.party.party}, rows={self.rows}, columns={len(self.columns)})"


def read_party(
    path: Path, schema: ColumnsSchema, party: str, layout: TableFormat | None = None, *, labelled: bool = True
) -> PartyTable:
    """Reads a party's file. layout: separator, names and bounds; defaults fit a CSV file with a header, or Parquet.

    labelled: False for rows to be scored, whose file needs no label column; their labels are all -1 then. Raises
    `DataError` with line numbers (malformed rows, an id that is empty, too long or there twice, values that the schema
    refuses), `InputError` when the file cannot be read or is too large, `ConfigError` for an unknown party.
    """
    mine = schema.of(party)
    label = schema.label if schema.label_party == party else None
    # Texts first: read from a typed file they must not be 7.0 where another file says 7, which is another category.
    by_kind = sorted(mine.columns, key=lambda column: isinstance(column, NumericColumn))
    texts = sum(not isinstance(column, NumericColumn) for column in mine.columns)
    wanted = [mine.identifier, *(column.name for column in by_kind)]
    place = {name: str(at) for at, name in enumerate(wanted)}
    if label is not None and labelled:
        wanted.append(label.name)
    layout = layout or TableFormat(max_rows=schema.slots)
    frame = pl.concat(list(table.read_chunks(Path(path), wanted, layout, identifiers=1 + texts)))
    _refuse(frame.filter(pl.col(REASON).is_not_null()), "rows that do not parse", "well-formed ones")
    text = pl.col(_IDENTIFIER)
    wrong = (text == "") | (text.str.len_chars() > MAX_TEXT_CHARACTERS) | text.str.contains(r"\p{Cc}")
    _refuse(frame.filter(wrong), "ids that are empty, too long or hold control characters", "plain texts")
    # Unit of privacy: one user is one row. A user with two rows would move a sum by twice its sensitivity.
    _refuse(frame.filter(text.is_duplicated()), "users with more than one row", "one row a user", "aggregate first")
    if frame.is_empty():
        raise DataError("got a file without rows, expected at least one")
    if len(frame) > schema.slots:
        raise DataError(f"got {len(frame)} rows, expected at most the schema's {schema.slots} slots")
    lines = frame[LINE]
    columns = tuple(_column(frame[place[column.name]], lines, column) for column in mine.columns)
    labels = None if label is None else np.full(len(frame), -1, dtype=np.int8)
    if label is not None and labelled:
        labels = _labels(frame[str(len(wanted) - 1)], lines, label)
    return PartyTable(mine, tuple(frame[_IDENTIFIER].to_list()), columns, labels)


def _column(values: pl.Series, lines: pl.Series, column: Column) -> pl.Series:
    frame = pl.DataFrame({LINE: lines, "value": values})
    if isinstance(column, NumericColumn):
        number = pl.when(pl.col("value") != "").then(pl.col("value")).cast(pl.Float64, strict=False)
        frame = frame.with_columns(number.alias("number"))
        broken = (pl.col("value") != "") & ~pl.col("number").is_finite().fill_null(False)
        _refuse(frame.filter(broken), f"values of {column.name!r} that are no finite numbers", "numbers or nothing")
        if column.missing == "refuse":
            _refuse(frame.filter(pl.col("value") == ""), f"no value of {column.name!r}", "a number", "or set missing")
        return frame["number"]
    long = pl.col("value").str.len_chars() > MAX_TEXT_CHARACTERS
    _refuse(frame.filter(long), f"texts of {column.name!r} above {MAX_TEXT_CHARACTERS} characters", "shorter ones")
    if isinstance(column, CategoricalColumn) and column.unknown == "refuse":
        known = pl.col("value").is_in(list(column.vocabulary))
        empty = (pl.col("value") == "") if column.missing == "indicator" else pl.lit(False)
        _refuse(frame.filter(~known & ~empty), f"values of {column.name!r} outside of the vocabulary", "known ones")
    return frame["value"]


def _labels(values: pl.Series, lines: pl.Series, label: Label) -> npt.NDArray[np.int8]:
    text = pl.col("value")
    code = (
        pl.when(text == label.positive).then(1).when(text == label.negative).then(0).when(text == "").then(-1)
    ).cast(pl.Int8)
    frame = pl.DataFrame({LINE: lines, "value": values}).with_columns(code.alias("code"))
    _refuse(frame.filter(pl.col("code").is_null()), "labels that are neither outcome", "one of the two, or nothing")
    return np.asarray(frame["code"].to_numpy(), dtype=np.int8)


def _refuse(bad: pl.DataFrame, got: str, expected: str, hint: str | None = None) -> None:
    if len(bad):
        lines = bad[LINE].head(_REPORTED_LINES).to_list()
        where = ", ".join(map(str, lines)) + (" and others" if len(bad) > len(lines) else "")
        raise DataError(f"got {got} at lines {where}, expected {expected}", lines=lines, hint=hint)
