"""A party's labelled texts from a file: a user, a text and its labels in each row.

Guarantee: as `veil.recsys.user_rows`; besides, a label is one of a public list that is given beforehand, in its order,
so that the columns mean the same at every party, and no label is ever learnt from rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from veil.deidentify.free_text import Pattern, masked
from veil.errors import ConfigError, DataError
from veil.recsys import user_rows
from veil.recsys.pseudonyms import PseudonymKey
from veil.recsys.texts import MAX_LABELS, MAX_TEXT_CHARACTERS, LabelledTexts
from veil.recsys.user_rows import UserRowFormat, read_user_rows

REASONS: Mapping[str, str] = {
    **user_rows.REASONS,
    "text-empty": "no text",
    "text-long": f"a text longer than {MAX_TEXT_CHARACTERS} characters",
    "labels-empty": "no label",
    "label-unknown": "a label that is not in the public list",
}


class TextColumns(BaseModel):
    """Which column holds what, by name."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    user: str = Field(min_length=1)
    text: str = Field(min_length=1)
    labels: str = Field(min_length=1)


class TextReadConfig(UserRowFormat):
    """How to read the file.

    Attributes:
        columns: the columns' names.
        label_separator: stands between the labels of one text.
        on_unknown_label: for labels outside the public list: "bad" calls the row bad; "drop" leaves the label out and
            counts it, and leaves out rows that have no label then.
        on_long_text: "bad" calls the row bad, "cut" keeps the first 4,096 characters.
        mask: what to replace in the texts (`veil.deidentify.free_text`): "email", "url", "number".
    """

    columns: TextColumns
    label_separator: str = Field(default="|", min_length=1, max_length=8)
    on_unknown_label: Literal["bad", "drop"] = "bad"
    on_long_text: Literal["bad", "cut"] = "bad"
    mask: tuple[Pattern, ...] = Field(default=(), strict=False, max_length=8)


@dataclass(frozen=True)
class TextsReport:
    """What became of the rows: rows_read = rows_bad + rows_unlabelled + rows_kept.

    Attributes:
        users: distinct users among the rows kept.
        rows_unlabelled: rows none of whose labels is in the public list.
        labels_dropped: labels outside the public list, over all rows.
        texts_cut: texts that were longer than 4,096 characters.
        masked: number of replacements by pattern.
        bad_reasons: number of bad rows by reason (keys of `REASONS`).
        bad_lines: line number and reason of the first 20.
    """

    rows_read: int
    rows_kept: int
    users: int
    rows_bad: int = 0
    rows_unlabelled: int = 0
    labels_dropped: int = 0
    texts_cut: int = 0
    masked: Mapping[str, int] = field(default_factory=dict)
    bad_reasons: Mapping[str, int] = field(default_factory=dict)
    bad_lines: tuple[tuple[int, str], ...] = ()

    def __str__(self) -> str:
        left_out = {"without a public label": self.rows_unlabelled, "bad": self.rows_bad}
        text = ", ".join(f"{count} {what}" for what, count in left_out.items() if count) or "none"
        return f"{self.rows_read} texts read, {self.rows_kept} kept, of {self.users} users; left out: {text}"


def read_texts(
    path: Path, config: TextReadConfig, labels: Sequence[str], key: PseudonymKey
) -> tuple[LabelledTexts, TextsReport]:
    """Reads a CSV, TSV or Parquet file (text forms also as .gz); a text in a text file may not hold a line break.

    labels: the public list; columns of `LabelledTexts.label` are in its order. Returns `LabelledTexts` with `names` and
    `pseudonyms`; a user's texts are in the file's order.
    Raises `ConfigError` for a list of labels that does not fit the separator, `DataError` with line numbers when bad
    rows are not to be skipped or are too many, and when no row is usable; `InputError` when the file cannot be read.
    """
    names = _checked(labels, config.label_separator)
    text, given = pl.col("text"), pl.col("labels")
    separated = given.str.split(config.label_separator).list.eval(pl.element().str.strip_chars())
    separated = separated.list.eval(pl.element().filter(pl.element() != ""))
    unknown = separated.list.set_difference(pl.lit(list(names), dtype=pl.List(pl.String)))
    checks = [("text-empty", text == ""), ("labels-empty", separated.list.len() == 0)]
    if config.on_long_text == "bad":
        checks.append(("text-long", text.str.len_chars() > MAX_TEXT_CHARACTERS))
    if config.on_unknown_label == "bad":
        checks.append(("label-unknown", unknown.list.len() > 0))
    columns = {"user": config.columns.user, "text": config.columns.text, "labels": config.columns.labels}
    rows = read_user_rows(path, config, columns, key, checks=checks, reasons=REASONS)
    frame = rows.frame.select("line", "user", "text", separated.alias("labels"), unknown.alias("unknown"))
    dropped = int(frame["unknown"].list.len().sum())
    known = frame.filter(pl.col("labels").list.unique().list.len() > pl.col("unknown").list.len())
    if known.is_empty():
        raise DataError(
            f"got no text with a label of the public list among {rows.rows_read} rows",
            hint="check labels, and that the file writes them alike",
        )
    texts, masks = masked(known["text"], config.mask)
    cut = int((texts.str.len_chars() > MAX_TEXT_CHARACTERS).sum())
    known = known.with_columns(texts.str.slice(0, MAX_TEXT_CHARACTERS).alias("text")).sort("user", "line")
    found = _texts(known, names, rows.pseudonyms)
    report = TextsReport(
        rows_read=rows.rows_read,
        rows_kept=len(found.text),
        users=found.users,
        rows_bad=sum(rows.bad_reasons.values()),
        rows_unlabelled=len(frame) - len(known),
        labels_dropped=dropped,
        texts_cut=cut,
        masked=masks,
        bad_reasons=rows.bad_reasons,
        bad_lines=rows.bad_lines,
    )
    return found, report


def _checked(labels: Sequence[str], separator: str) -> tuple[str, ...]:
    """The list as a tuple, when its labels can be told apart in a file."""
    names = tuple(labels)
    wrong = [name for name in names if not name or name != name.strip() or separator in name]
    if wrong or not 1 <= len(names) <= MAX_LABELS or len(set(names)) != len(names):
        raise ConfigError(
            f"got {len(names)} labels, {len(wrong)} of them empty, with white space around or {separator!r} inside,"
            f" expected 1 to {MAX_LABELS} distinct ones"
        )
    return names


def _texts(frame: pl.DataFrame, names: tuple[str, ...], pseudonyms: Sequence[str]) -> LabelledTexts:
    """Users who have a text left, renumbered in the order of their pseudonyms."""
    present, user = np.unique(frame["user"].to_numpy(), return_inverse=True)
    place = pl.DataFrame({"labels": pl.Series(list(names), dtype=pl.String), "place": range(len(names))})
    pairs = (
        frame.select(pl.int_range(pl.len()).alias("row"), "labels")
        .explode("labels")
        .join(place, on="labels", how="inner")
    )
    label = np.zeros((len(frame), len(names)), np.bool_)
    label[pairs["row"].to_numpy(), pairs["place"].to_numpy()] = True
    return LabelledTexts(
        users=len(present),
        user=user.astype(np.int64),
        text=tuple(frame["text"].to_list()),
        label=label,
        names=names,
        pseudonyms=[pseudonyms[number] for number in present.tolist()],
    )
