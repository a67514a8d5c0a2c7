"""Rows of a file in which each row belongs to a user: checked, counted, user ids replaced by keyed pseudonyms.

Guarantee: as for interactions (`veil.recsys.reading`): every row is kept, or counted under the reason for which it is
bad; user ids are gone chunk by chunk as soon as they have been checked; messages hold line numbers and counts only.
Only the columns that are asked for are kept from the file. Used for user attributes and for labelled texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field

from veil.errors import DataError
from veil.recsys import table
from veil.recsys.pseudonyms import PseudonymKey
from veil.recsys.reading import MAX_ID_CHARACTERS, REPORTED_LINES
from veil.recsys.table import LINE, REASON, TableFormat

USER = "user"

REASONS: Mapping[str, str] = {
    **table.REASONS,
    "user-empty": "no user id",
    "user-long": f"a user id longer than {MAX_ID_CHARACTERS} characters",
    "user-control": "a control character in the user id",
    "user-again": "a user whose row came before",
}


class UserRowFormat(TableFormat):
    """How to read the file, on top of its layout.

    Attributes:
        on_bad_row: "stop" refuses the file, "skip" leaves bad rows out, up to `max_bad_rows` of them.
    """

    on_bad_row: Literal["stop", "skip"] = "stop"
    max_bad_rows: int = Field(default=1000, ge=0, le=2**31 - 1)


@dataclass(frozen=True, eq=False, repr=False)
class UserRows:
    """The good rows.

    Attributes:
        pseudonyms: of the users, sorted, so that their numbers say nothing of the order in the file.
        frame: columns `line` (Int64), `user` (Int64, position in `pseudonyms`) and the text columns asked for.
        rows_read: good and bad ones.
        bad_reasons: number of bad rows by reason.
        bad_lines: line number and reason of the first 20.
    """

    pseudonyms: tuple[str, ...]
    frame: pl.DataFrame
    rows_read: int
    bad_reasons: Mapping[str, int]
    bad_lines: tuple[tuple[int, str], ...]

    def __repr__(self) -> str:
        return f"UserRows(users={len(self.pseudonyms)}, rows={len(self.frame)})"


def read_user_rows(
    path: Path,
    layout: UserRowFormat,
    columns: Mapping[str, str],
    key: PseudonymKey,
    *,
    checks: Sequence[tuple[str, pl.Expr]] = (),
    reasons: Mapping[str, str] = REASONS,
    once: bool = False,
) -> UserRows:
    """Reads a CSV, TSV or Parquet file (text forms also as .gz).

    columns: the file's column for each role; the role "user" is needed. checks: a reason, and an expression over the
    roles that is true where a row is bad for it. reasons: what each reason means. once: a user may have one row only.
    Raises `DataError` with line numbers when bad rows are not to be skipped or are too many, and when no row is usable;
    `InputError` when the file cannot be read or is larger than agreed.
    """
    roles = [USER, *(role for role in columns if role != USER)]
    rows = 0
    bad: list[pl.DataFrame] = []
    kept: list[pl.DataFrame] = []
    numbers: dict[str, int] = {}  # pseudonym -> user number in order of appearance
    id_text = pl.col(USER)
    all_checks = [
        ("user-empty", id_text == ""),
        ("user-long", id_text.str.len_chars() > MAX_ID_CHARACTERS),
        ("user-control", id_text.str.contains(r"\p{Cc}")),
        *checks,
    ]
    reason = pl.coalesce(pl.col(REASON), *(pl.when(wrong).then(pl.lit(name)) for name, wrong in all_checks))
    for chunk in table.read_chunks(Path(path), [columns[role] for role in roles], layout, identifiers=1):
        rows += len(chunk)
        frame = chunk.rename({str(place): role for place, role in enumerate(roles)}).with_columns(reason.alias(REASON))
        bad.append(frame.filter(pl.col(REASON).is_not_null()).select(LINE, REASON))
        kept.append(_pseudonymised(frame.filter(pl.col(REASON).is_null()).drop(REASON), key, numbers))
    frame = pl.concat(kept)
    if once:
        again = ~pl.col(USER).is_first_distinct()
        bad.append(frame.filter(again).select(LINE, pl.lit("user-again").alias(REASON)))
        frame = frame.filter(~again)
    wrong = pl.concat(bad).sort(LINE)
    counts = Counter(wrong[REASON].to_list())
    lines = tuple(wrong.head(REPORTED_LINES).rows())
    _refuse_bad(layout, rows, counts, lines, reasons)
    if frame.is_empty():
        raise DataError(
            f"got no usable row among {rows}, {counts.total()} of them bad",
            lines=[line for line, _ in lines],
            hint="check the columns",
        )
    pseudonyms = tuple(sorted(numbers))
    place = np.empty(len(pseudonyms), np.int64)
    place[[numbers[pseudonym] for pseudonym in pseudonyms]] = np.arange(len(pseudonyms))
    frame = frame.with_columns(pl.Series(USER, place[frame[USER].to_numpy()]))
    return UserRows(pseudonyms, frame, rows, dict(counts), lines)


def positions(of: Sequence[str], within: Sequence[str]) -> npt.NDArray[np.int64]:
    """int64[len(of)]: where each pseudonym stands in `within`; -1 for one that does not."""
    place = {pseudonym: number for number, pseudonym in enumerate(within)}
    return np.fromiter((place.get(pseudonym, -1) for pseudonym in of), np.int64, len(of))


def _pseudonymised(frame: pl.DataFrame, key: PseudonymKey, numbers: dict[str, int]) -> pl.DataFrame:
    """Numbers in place of user ids; after this no id is left."""
    ids = frame[USER].unique().to_list()
    for pseudonym in (pseudonyms := key.pseudonyms(ids)):
        numbers.setdefault(pseudonym, len(numbers))
    of_id = pl.DataFrame(
        {
            USER: pl.Series(ids, dtype=pl.String),
            "number": pl.Series([numbers[pseudonym] for pseudonym in pseudonyms], dtype=pl.Int64),
        }
    )
    joined = frame.join(of_id, on=USER, how="left", maintain_order="left")
    return joined.with_columns(pl.col("number").alias(USER)).drop("number")


def _refuse_bad(
    layout: UserRowFormat,
    rows: int,
    bad: Counter[str],
    lines: Sequence[tuple[int, str]],
    reasons: Mapping[str, str],
) -> None:
    allowed = 0 if layout.on_bad_row == "stop" else layout.max_bad_rows
    if bad.total() <= allowed:
        return
    first = "; ".join(f"line {line}: {reasons[reason]}" for line, reason in lines[:3])
    raise DataError(
        f"got {bad.total()} bad rows among {rows} ({first}), expected at most {allowed}",
        lines=[line for line, _ in lines],
        hint="correct the file, or set on_bad_row = skip and max_bad_rows",
    )
