"""An organisation's raw rows into `Interactions`: checked, counted, pseudonymised, de-duplicated.

Guarantee: every row of the file is either used, counted under a reason for which it was left out, or reported by line
number as bad. User ids are replaced by keyed pseudonyms chunk by chunk as soon as they have been checked to be ids;
nothing after that line, no message and no report sees one. Users are ordered by pseudonym, so that row numbers say
nothing of the order in the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field, model_validator

from veil.errors import DataError
from veil.recsys import table
from veil.recsys.interactions import Interactions
from veil.recsys.pseudonyms import PseudonymKey
from veil.recsys.table import LINE, REASON, TableFormat

MAX_ID_CHARACTERS = 256
# Times beyond this are no seconds since 1970 (and would not be whole numbers in a float64).
MAX_TIME = 2**53
REPORTED_LINES = 20

REASONS: Mapping[str, str] = {
    **table.REASONS,
    "user-empty": "no user id",
    "user-long": f"a user id longer than {MAX_ID_CHARACTERS} characters",
    "user-control": "a control character in the user id",
    "item-empty": "no item id",
    "item-long": f"an item id longer than {MAX_ID_CHARACTERS} characters",
    "item-control": "a control character in the item id",
    "time": "a time that does not parse",
    "value": "a value that is not a finite number",
    "event": "no event",
    "item-unknown": "an item that is not in the catalogue",
}


class Columns(BaseModel):
    """Which column holds what, by name. `user` and `item` are needed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    user: str = Field(min_length=1)
    item: str = Field(min_length=1)
    time: str | None = None
    value: str | None = None
    event: str | None = None


class ReadConfig(TableFormat):
    """How to read an organisation's file, on top of its layout (`TableFormat`).

    Attributes:
        columns: the columns' names (in the header, or in `names` for a file without one).
        time_format: "seconds" or "milliseconds" since 1970 (decimals are cut), or a pattern with % signs as in
            "%Y-%m-%d %H:%M:%S", taken as UTC unless it has %z.
        on_bad_row: "stop" refuses the file, "skip" leaves bad rows out, up to `max_bad_rows` of them.
        on_unknown_item: for items outside the catalogue: "drop" leaves their rows out and counts them, "bad" calls
            them bad.
        min_value: rows with less are left out; needs columns.value.
        events: rows with another event are left out; needs columns.event.
    """

    columns: Columns
    time_format: str = Field(default="seconds", pattern=r"^(seconds|milliseconds|.*%.*)$", max_length=64)
    on_bad_row: Literal["stop", "skip"] = "stop"
    max_bad_rows: int = Field(default=1000, ge=0, le=2**31 - 1)
    on_unknown_item: Literal["drop", "bad"] = "drop"
    min_value: float | None = Field(default=None, allow_inf_nan=False)
    events: tuple[str, ...] | None = Field(default=None, strict=False, min_length=1, max_length=256)

    @model_validator(mode="after")
    def _filters_have_columns(self) -> Self:
        if self.min_value is not None and self.columns.value is None:
            raise ValueError("got min_value without columns.value, expected the column that holds the value")
        if self.events is not None and self.columns.event is None:
            raise ValueError("got events without columns.event, expected the column that holds the event")
        return self


@dataclass(frozen=True)
class ReadReport:
    """What became of the rows.

    rows_read = rows_bad + rows_below_min_value + rows_other_event + rows_unknown_item + rows_duplicate + rows_kept,
    each row counted where it first falls out. rows_kept is the number of distinct user-item pairs.

    Attributes:
        users: distinct users among the rows kept.
        bad_reasons: number of bad rows by reason (keys of `REASONS`).
        bad_lines: line number and reason of the first 20.
    """

    rows_read: int
    rows_kept: int
    users: int
    rows_bad: int = 0
    rows_duplicate: int = 0
    rows_unknown_item: int = 0
    rows_below_min_value: int = 0
    rows_other_event: int = 0
    bad_reasons: Mapping[str, int] = field(default_factory=dict)
    bad_lines: tuple[tuple[int, str], ...] = ()

    def __str__(self) -> str:
        left_out = {
            "repeated": self.rows_duplicate,
            "of items that the catalogue does not have": self.rows_unknown_item,
            "below the least value": self.rows_below_min_value,
            "of other events": self.rows_other_event,
            "bad": self.rows_bad,
        }
        text = ", ".join(f"{count} {what}" for what, count in left_out.items() if count) or "none"
        return f"{self.rows_read} rows read, {self.rows_kept} kept, of {self.users} users; left out: {text}"


def read_interactions(
    path: Path,
    config: ReadConfig,
    item_ids: Sequence[str],
    key: PseudonymKey,
    *,
    identifiers: dict[str, str] | None = None,
) -> tuple[Interactions, ReadReport]:
    """Reads a CSV, TSV or Parquet file (text forms also as .gz).

    item_ids: the catalogue's ids; item numbers are positions in it. Returns `Interactions` with `pseudonyms`, with
    `time` (earliest of a repeated pair) and `value` (largest) where those columns are configured. identifiers: where
    given, filled with the id of each pseudonym: only for a party that opted into keeping ids.
    Raises `DataError` with line numbers when bad rows are not to be skipped or are too many, and when no row is usable;
    `InputError` when the file cannot be read or is larger than agreed.
    """
    columns = config.columns
    roles = [role for role in ("user", "item", "time", "value", "event") if getattr(columns, role) is not None]
    wanted = [getattr(columns, role) for role in roles]
    items = pl.DataFrame(
        {"item": pl.Series(list(item_ids), dtype=pl.String), "number": pl.int_range(len(item_ids), eager=True)}
    )
    counts: Counter[str] = Counter()
    bad: Counter[str] = Counter()
    bad_lines: list[tuple[int, str]] = []
    numbers: dict[str, int] = {}  # pseudonym -> user number in order of appearance
    kept: list[pl.DataFrame] = []
    for chunk in table.read_chunks(Path(path), wanted, config, identifiers=2):
        frame = _checked(chunk.rename({str(place): role for place, role in enumerate(roles)}), config, items)
        counts["rows"] += len(frame)
        wrong = frame.filter(pl.col(REASON).is_not_null()).select(LINE, REASON)
        bad.update(wrong[REASON])
        bad_lines += wrong.head(REPORTED_LINES - len(bad_lines)).rows()
        frame = _filtered(frame.filter(pl.col(REASON).is_null()), config, counts)
        kept.append(_pseudonymised(frame, key, numbers, identifiers))
    _refuse_bad(config, counts["rows"], bad, bad_lines)
    rows = pl.concat(kept) if kept else None
    if rows is None or rows.is_empty():
        raise DataError(
            f"got no usable row among {counts['rows']}: {counts['unknown_item']} of unknown items,"
            f" {counts['below_min_value']} below the least value, {counts['other_event']} of other events,"
            f" {bad.total()} bad",
            lines=[line for line, _ in bad_lines],
            hint="check the columns, and that item ids are written as in the catalogue",
        )
    interactions = _assembled(rows, numbers, len(item_ids))
    report = ReadReport(
        rows_read=counts["rows"],
        rows_kept=interactions.nnz,
        users=interactions.users,
        rows_bad=bad.total(),
        rows_duplicate=len(rows) - interactions.nnz,
        rows_unknown_item=counts["unknown_item"],
        rows_below_min_value=counts["below_min_value"],
        rows_other_event=counts["other_event"],
        bad_reasons=dict(bad),
        bad_lines=tuple(bad_lines),
    )
    return interactions, report


def _checked(frame: pl.DataFrame, config: ReadConfig, items: pl.DataFrame) -> pl.DataFrame:
    """Adds the first reason against each row, numbers in place of times and values, and `number` for the item."""
    parsed = (
        [pl.lit(None, dtype=pl.Int64).alias("time")] if "time" not in frame.columns else [_time(config.time_format)]
    )
    if "value" in frame.columns:
        parsed.append(pl.col("value").cast(pl.Float64, strict=False))
    frame = frame.with_columns(parsed).join(items, on="item", how="left", maintain_order="left")
    checks: list[tuple[str, pl.Expr]] = []
    for role in ("user", "item"):
        text = pl.col(role)
        checks.append((f"{role}-empty", text == ""))
        checks.append((f"{role}-long", text.str.len_chars() > MAX_ID_CHARACTERS))
        checks.append((f"{role}-control", text.str.contains(r"\p{Cc}")))
    if config.columns.time is not None:
        checks.append(("time", pl.col("time").is_null()))
    if config.columns.value is not None:
        checks.append(("value", ~pl.col("value").is_finite().fill_null(False)))
    if config.columns.event is not None:
        checks.append(("event", pl.col("event") == ""))
    if config.on_unknown_item == "bad":
        checks.append(("item-unknown", pl.col("number").is_null()))
    reason = pl.coalesce(pl.col(REASON), *(pl.when(wrong).then(pl.lit(name)) for name, wrong in checks))
    return frame.with_columns(reason.alias(REASON)).drop("item")


def _time(pattern: str) -> pl.Expr:
    text = pl.col("time")
    if "%" in pattern:
        parsed = text.str.to_datetime(pattern, strict=False, time_unit="ms")
        return parsed.dt.epoch("s").alias("time")
    number = text.cast(pl.Float64, strict=False) / (1000.0 if pattern == "milliseconds" else 1.0)
    in_range = number.is_finite() & (number.abs() <= MAX_TIME)
    return pl.when(in_range).then(number.floor()).cast(pl.Int64, strict=False).alias("time")


def _filtered(frame: pl.DataFrame, config: ReadConfig, counts: Counter[str]) -> pl.DataFrame:
    """Leaves out, and counts, good rows that are not asked for."""
    for name, wanted in (
        ("below_min_value", None if config.min_value is None else pl.col("value") >= config.min_value),
        ("other_event", None if config.events is None else pl.col("event").is_in(list(config.events))),
        ("unknown_item", pl.col("number").is_not_null()),
    ):
        if wanted is not None:
            before = len(frame)
            frame = frame.filter(wanted)
            counts[name] += before - len(frame)
    return frame


def _pseudonymised(
    frame: pl.DataFrame, key: PseudonymKey, numbers: dict[str, int], identifiers: dict[str, str] | None
) -> pl.DataFrame:
    """Numbers in place of user ids; one HMAC for each distinct id of the chunk. After this no id is left in a frame."""
    ids = frame["user"].unique().to_list()
    for pseudonym in (pseudonyms := key.pseudonyms(ids)):
        numbers.setdefault(pseudonym, len(numbers))
    if identifiers is not None:
        identifiers.update(zip(pseudonyms, ids, strict=True))
    of_id = pl.DataFrame(
        {
            "user": pl.Series(ids, dtype=pl.String),
            "row": pl.Series([numbers[pseudonym] for pseudonym in pseudonyms], dtype=pl.Int64),
        }
    )
    joined = frame.join(of_id, on="user", how="left", maintain_order="left")
    return joined.select("row", "number", "time", *(["value"] if "value" in frame.columns else []))


def _refuse_bad(config: ReadConfig, rows: int, bad: Counter[str], bad_lines: Sequence[tuple[int, str]]) -> None:
    allowed = 0 if config.on_bad_row == "stop" else config.max_bad_rows
    if bad.total() <= allowed:
        return
    first = "; ".join(f"line {line}: {REASONS[reason]}" for line, reason in bad_lines[:3])
    raise DataError(
        f"got {bad.total()} bad rows among {rows} ({first}), expected at most {allowed}",
        lines=[line for line, _ in bad_lines],
        hint="correct the file, or set on_bad_row = skip and max_bad_rows",
    )


def _assembled(rows: pl.DataFrame, numbers: Mapping[str, int], items: int) -> Interactions:
    pseudonyms = sorted(numbers)
    place = np.empty(len(pseudonyms), np.int64)
    place[[numbers[pseudonym] for pseudonym in pseudonyms]] = np.arange(len(pseudonyms))
    return Interactions.from_pairs(
        place[rows["row"].to_numpy()],
        rows["number"].to_numpy(),
        users=len(pseudonyms),
        items=items,
        time=None if rows["time"].null_count() else rows["time"].to_numpy(),
        value=rows["value"].to_numpy() if "value" in rows.columns else None,
        pseudonyms=pseudonyms,
    )
