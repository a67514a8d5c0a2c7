"""Rows of a CSV, TSV or Parquet file as columns of text, each with its line number and, where it is bad, a reason.

Guarantee: no more than the agreed bytes and rows are ever unpacked; a malformed row never stops the reading and never
shifts the numbers of those after it; no message repeats anything that stands in the file, its header included (a file
without a header would show its first row there).

A row is a line: a quoted field may hold the separator but not a line break. Everything is done on whole columns
(Polars); only lines that contain a quotation mark go one by one through Python's `csv`.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from veil.errors import ConfigError, DataError, InputError

CHUNK_BYTES = 16 * 1024 * 1024
MAX_LINE_BYTES = 1024 * 1024
LINE, REASON = "line", "reason"

REASONS = {
    "fields": "wrong number of fields",
    "encoding": "bytes that are not text in the file's encoding",
    "nul": "a NUL character",
    "quote": "an unbalanced quotation mark",
}
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_PARQUET_SUFFIXES = (".parquet", ".pq")
_MOST_FIELDS = 16_384


class TableFormat(BaseModel):
    """How a file is laid out; everything has a default that fits a CSV file with a header.

    Attributes:
        format: "auto" goes by the file's name (.parquet or .pq; anything else is text; .gz of a text form is unpacked).
        separator: between fields; "auto" is a comma for .csv and a tab for .tsv; may be several characters ("::").
        names: the columns' names by position, for a file without a header; None when the first line is the header.
        quoting: whether fields may stand in double quotes; None: yes for separators "," and ";", otherwise no.
        max_bytes, max_rows: bounds after unpacking.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal["auto", "text", "parquet"] = "auto"
    separator: str = Field(default="auto", min_length=1, max_length=8)
    names: tuple[str, ...] | None = Field(default=None, strict=False, min_length=1, max_length=1024)
    encoding: Literal["utf-8", "latin-1", "cp1252"] = "utf-8"
    quoting: bool | None = None
    max_bytes: int = Field(default=8 * 1024**3, gt=0, le=2**40)
    max_rows: int = Field(default=100_000_000, gt=0, le=2**31 - 1)


def read_chunks(
    path: Path, wanted: Sequence[str], layout: TableFormat, *, identifiers: int = 0
) -> Iterator[pl.DataFrame]:
    """Yields frames of up to about 16 MiB of text.

    Columns: `line` (Int64, 1-based line number in the file, or row number in Parquet), `reason` (String, a key of
    `REASONS`, null for a row that could be taken apart) and one String column for each entry of `wanted`, named by its
    position "0", "1", …, without surrounding white space, null in bad rows. Empty lines are no rows.
    The first `identifiers` columns must hold text or whole numbers where the file has types: 7.0 would not be "7".
    Raises `DataError` for a missing column or a file that is not of its format, `InputError` for one that cannot be
    read or is larger than agreed.
    """
    path = Path(path)
    if _is_parquet(path, layout):
        return _parquet_chunks(path, wanted, layout, identifiers)
    return _text_chunks(path, wanted, layout)


def float_columns(path: Path, layout: TableFormat) -> frozenset[str]:
    """Columns that a typed file holds as floating-point numbers; none of a text file."""
    if not _is_parquet(Path(path), layout):
        return frozenset()
    return frozenset(name for name, kind in pl.read_parquet_schema(path).items() if kind.is_float())


def _is_parquet(path: Path, layout: TableFormat) -> bool:
    by_name = layout.format == "auto" and path.suffix.lower() in _PARQUET_SUFFIXES
    return layout.format == "parquet" or by_name


def _text_chunks(path: Path, wanted: Sequence[str], layout: TableFormat) -> Iterator[pl.DataFrame]:
    separator = _separator(path, layout)
    quoting = separator in ",;" if layout.quoting is None else layout.quoting
    if quoting and len(separator) > 1:
        raise ConfigError("got quoting with a separator of several characters, expected one character")
    header = list(layout.names) if layout.names is not None else None
    number, rows = 1, 0
    for block in _line_blocks(path, layout.max_bytes):
        lines, undecoded = _decode(block, layout.encoding)
        if number == 1:
            lines[0] = lines[0].removeprefix("\ufeff")
        first = number
        number += len(lines)
        if header is None:
            header = _header(lines[0], separator, quoting)
            lines[0] = ""
        places = [_place(name, header) for name in wanted]
        frame = _take_apart(lines, first, undecoded, separator, len(header), places, quoting)
        rows += len(frame)
        if rows > layout.max_rows:
            raise InputError(f"got more than {layout.max_rows} rows, expected at most that many")
        yield frame
    if header is None:
        raise DataError("got an empty file, expected a header line and rows")


def _separator(path: Path, layout: TableFormat) -> str:
    if layout.separator != "auto":
        if any(character in layout.separator for character in '"\r\n\x00'):
            raise ConfigError("got a separator with a quotation mark, line break or NUL, expected another")
        return layout.separator
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    if suffix not in _SEPARATORS:
        raise ConfigError(
            f"got {path.name}, whose name does not tell its form, expected .csv, .tsv, .parquet or .gz of a text form",
            hint="set separator",
        )
    return _SEPARATORS[suffix]


def _line_blocks(path: Path, max_bytes: int) -> Iterator[bytes]:
    """Whole lines, many at a time, the last line break of each block left out; bounded in all."""
    total, rest = 0, b""
    try:
        file: IO[bytes]
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as file:  # type: ignore[assignment]
            while data := file.read(CHUNK_BYTES):
                total += len(data)
                if total > max_bytes:
                    raise InputError(f"got more than {max_bytes} bytes of text, expected at most that many")
                whole, line_break, tail = (rest + data).rpartition(b"\n")
                if len(tail) > MAX_LINE_BYTES:
                    raise DataError(
                        f"got a line longer than {MAX_LINE_BYTES} bytes", hint="check the file's line breaks"
                    )
                if line_break:
                    yield whole
                rest = tail
    except OSError as error:
        reason = error.strerror or "it does not unpack"
        raise InputError(f"got no readable file at {path}: {reason}") from None
    except (EOFError, zlib.error):
        raise InputError(f"got {path.name}, which ends early or does not unpack, expected a whole gzip file") from None
    if rest:
        yield rest


def _decode(block: bytes, encoding: str) -> tuple[list[str], list[int]]:
    """Lines, and the positions of those that do not decode (they come out empty)."""
    try:
        return block.decode(encoding).split("\n"), []
    except UnicodeDecodeError:
        pass
    lines, undecoded = [], []
    for position, line in enumerate(block.split(b"\n")):
        try:
            lines.append(line.decode(encoding))
        except UnicodeDecodeError:
            lines.append("")
            undecoded.append(position)
    return lines, undecoded


def _header(line: str, separator: str, quoting: bool) -> list[str]:
    fields = _parse_quoted(line.removesuffix("\r"), separator) if quoting else line.removesuffix("\r").split(separator)
    if fields is None or not any(field.strip() for field in fields):
        raise DataError(
            "got a first line that is no header, expected the columns' names", lines=[1], hint="or set names"
        )
    if len(fields) > _MOST_FIELDS:  # each costs memory in every row, also in those that have fewer
        raise DataError(f"got a header of {len(fields)} columns, expected at most {_MOST_FIELDS}", lines=[1])
    return [field.strip() for field in fields]


def _place(name: str, header: Sequence[str]) -> int:
    found = [position for position, other in enumerate(header) if other == name]
    if len(found) != 1:
        raise DataError(
            f"got {len(found) or 'no'} columns named {name!r} among {len(header)}, expected one",
            lines=[1],
            hint="check the separator; for a file without a header set names",
        )
    return found[0]


def _parse_quoted(line: str, separator: str) -> list[str] | None:
    try:
        rows = list(csv.reader([line], delimiter=separator, strict=True))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else None


def _take_apart(
    lines: list[str],
    first: int,
    undecoded: Sequence[int],
    separator: str,
    width: int,
    places: Sequence[int],
    quoting: bool,
) -> pl.DataFrame:
    raw = pl.col("raw")
    frame = pl.DataFrame(
        {LINE: pl.int_range(first, first + len(lines), eager=True), "raw": pl.Series(lines, dtype=pl.String)}
    ).with_columns(raw.str.strip_suffix("\r"))
    wrong = pl.DataFrame({LINE: pl.Series([first + position for position in undecoded], dtype=pl.Int64)})
    bad = wrong.with_columns(pl.lit("encoding").alias(REASON))
    frame = frame.filter(raw.str.strip_chars(" ") != "")
    quoted = frame.filter(raw.str.contains('"', literal=True)) if quoting else frame.clear()
    plain = frame.filter(~raw.str.contains('"', literal=True)) if len(quoted) else frame
    parts = [_empty(bad, places)]
    split = raw.str.split_exact(separator, width - 1)
    reason = (
        pl.when(raw.str.contains("\x00", literal=True))
        .then(pl.lit("nul"))
        .when(raw.str.count_matches(separator, literal=True) != width - 1)
        .then(pl.lit("fields"))
    )
    fields = [split.struct.field(f"field_{place}").alias(str(column)) for column, place in enumerate(places)]
    parts.append(plain.select(LINE, reason.alias(REASON), *fields))
    if len(quoted):
        parts.append(_quoted_rows(quoted, separator, width, places))
    columns = [
        pl.when(pl.col(REASON).is_null()).then(pl.col(str(column)).str.strip_chars()).alias(str(column))
        for column in range(len(places))
    ]
    return pl.concat(parts).sort(LINE).with_columns(columns)


def _empty(bad: pl.DataFrame, places: Sequence[int]) -> pl.DataFrame:
    return bad.with_columns(pl.lit(None, dtype=pl.String).alias(str(column)) for column in range(len(places)))


def _quoted_rows(quoted: pl.DataFrame, separator: str, width: int, places: Sequence[int]) -> pl.DataFrame:
    reasons: list[str | None] = []
    columns: list[list[str | None]] = [[] for _ in places]
    for line in quoted["raw"]:
        fields = None if "\x00" in line else _parse_quoted(line, separator)
        reason = "nul" if "\x00" in line else "quote" if fields is None else "fields" if len(fields) != width else None
        reasons.append(reason)
        for column, place in zip(columns, places, strict=True):
            column.append(fields[place] if fields is not None and reason is None else None)
    data = {str(number): pl.Series(column, dtype=pl.String) for number, column in enumerate(columns)}
    return pl.DataFrame({LINE: quoted[LINE], REASON: pl.Series(reasons, dtype=pl.String), **data})


def _parquet_chunks(path: Path, wanted: Sequence[str], layout: TableFormat, identifiers: int) -> Iterator[pl.DataFrame]:
    if layout.names is not None:
        raise ConfigError("got names for a Parquet file, which has its own, expected none")
    try:
        if path.stat().st_size > layout.max_bytes:
            raise InputError(f"got more than {layout.max_bytes} bytes, expected at most that many")
        schema = pl.read_parquet_schema(path)
        for name in wanted:
            _place(name, list(schema))
        frame = pl.read_parquet(path, columns=list(dict.fromkeys(wanted)), n_rows=layout.max_rows + 1)
    except OSError as error:
        raise InputError(f"got no readable file at {path}: {error.strerror or 'not Parquet'}") from None
    except pl.exceptions.PolarsError:
        raise DataError(f"got {path.name}, which does not parse as Parquet, expected a Parquet file") from None
    if len(frame) > layout.max_rows:
        raise InputError(f"got more than {layout.max_rows} rows, expected at most that many")
    columns = [
        _as_text(frame[name], name, number < identifiers).alias(str(number)) for number, name in enumerate(wanted)
    ]
    line = pl.int_range(1, len(frame) + 1, eager=True, dtype=pl.Int64).alias(LINE)
    reason = pl.Series(REASON, [None], dtype=pl.String).new_from_index(0, len(frame))
    table = pl.DataFrame([line, reason, *columns])
    nul = pl.any_horizontal(pl.col(str(number)).str.contains("\x00", literal=True) for number in range(len(wanted)))
    yield table.with_columns(pl.when(nul).then(pl.lit("nul")).alias(REASON)).with_columns(
        pl.when(pl.col(REASON).is_null()).then(pl.col(str(number)).fill_null("")).alias(str(number))
        for number in range(len(wanted))
    )


def _as_text(column: pl.Series, name: str, identifies: bool) -> pl.Series:
    """A typed column as text; dates and times as seconds since 1970."""
    kind = column.dtype
    if kind in (pl.String, pl.Categorical) or isinstance(kind, pl.Enum):
        return column.cast(pl.String).str.strip_chars()
    if kind.is_integer() or (kind.is_numeric() and not identifies):
        return column.cast(pl.String)
    if (isinstance(kind, pl.Datetime) or kind == pl.Date) and not identifies:
        return column.dt.epoch("s").cast(pl.String)
    expected = "text or whole numbers" if identifies else "text, numbers, dates or times"
    raise DataError(f"got column {name!r} of type {kind}, expected {expected}")
