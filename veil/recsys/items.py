"""Public facts about items, and the files that organisations keep them in.

Guarantee: an `ItemTable` is complete and bounded once it exists: as many titles and categories as ids, every id once.
Everything in it is public; nothing about users belongs here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from veil.errors import DataError
from veil.recsys.table import LINE, REASON, REASONS, TableFormat, read_chunks

MAX_ITEMS = 10_000_000
MAX_ID_CHARACTERS = 256
MAX_TITLE_CHARACTERS = 1_000
MAX_CATEGORIES_PER_ITEM = 64
MAX_TEXT_CHARACTERS = 20_000
YEARS = range(1000, 3000)


@dataclass(frozen=True)
class ItemTable:
    """Public facts about items, in index order.

    Attributes:
        ids: unique, 1 to 256 characters each.
        titles: may be empty where unknown.
        categories: zero or more names for each item.
        years: year of publication, 0 where unknown; () when no item has one.
        texts: further public text, for the encoder; () when there is none.
    """

    ids: tuple[str, ...]
    titles: tuple[str, ...]
    categories: tuple[tuple[str, ...], ...]
    years: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks lengths, bounds and uniqueness; raises `DataError` with the 1-based numbers of the items at fault."""
        items = len(self.ids)
        if not 1 <= items <= MAX_ITEMS:
            raise DataError(f"got {items} items, expected 1 to {MAX_ITEMS}")
        for name in ("titles", "categories", "years", "texts"):
            size = len(getattr(self, name))
            if size != items and not (size == 0 and name in ("years", "texts")):
                raise DataError(f"got {size} {name}, expected {items}, one for each item")
        occurrences = Counter(self.ids)
        _refuse("an id that another item has", (occurrences[one] > 1 for one in self.ids))
        _refuse("an unusable id", (not _is_name(one) for one in self.ids))
        _refuse("an unusable title", (not _is_text(one, MAX_TITLE_CHARACTERS) for one in self.titles))
        _refuse("an unusable text", (not _is_text(one, MAX_TEXT_CHARACTERS) for one in self.texts))
        _refuse("an unusable year", (one != 0 and one not in YEARS for one in self.years))
        _refuse("unusable categories", (not _are_categories(names) for names in self.categories))

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"ItemTable(items={len(self.ids)}, years={bool(self.years)}, texts={bool(self.texts)})"


class ItemColumns(BaseModel):
    """Which column of an items file holds what, by name. `id` is needed; texts may come from several columns."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: str = Field(min_length=1)
    title: str | None = None
    categories: str | None = None
    year: str | None = None
    texts: tuple[str, ...] = Field(default=(), strict=False, max_length=16)


def read_items(
    path: Path, columns: ItemColumns, layout: TableFormat | None = None, *, category_separator: str = "|"
) -> ItemTable:
    """Reads an items file (CSV, TSV, Parquet, .gz of a text form), in the order of its rows.

    category_separator: between the names in the categories column. Years that do not parse count as unknown.
    Raises `DataError` with line numbers on any bad row: a catalogue is public and small enough to be put right.
    """
    singles = {role: name for role in ("id", "title", "categories", "year") if (name := getattr(columns, role))}
    wanted = [*singles.values(), *columns.texts]
    frame = pl.concat(list(read_chunks(Path(path), wanted, layout or TableFormat(), identifiers=1)))
    bad = frame.filter(pl.col(REASON).is_not_null())
    _refuse_lines(bad[LINE].to_list(), "; ".join(sorted({REASONS[reason] for reason in bad[REASON]})))
    place = {role: str(position) for position, role in enumerate(singles)}
    doubled = frame.filter(pl.col("0").is_duplicated() | (pl.col("0") == ""))
    _refuse_lines(doubled[LINE].to_list(), "no id, or one that another row has")
    rows = len(frame)

    def column(role: str) -> list[str]:
        return frame[place[role]].to_list() if role in place else [""] * rows

    years = [int(text) if text.isascii() and text.isdigit() and len(text) == 4 else 0 for text in column("year")]
    texts = [
        " ".join(filter(None, parts))[:MAX_TEXT_CHARACTERS]
        for parts in zip(*(frame[str(len(singles) + number)] for number in range(len(columns.texts))), strict=True)
    ]
    try:
        return ItemTable(
            ids=tuple(column("id")),
            titles=tuple(column("title")),
            categories=tuple(_split(text, category_separator) for text in column("categories")),
            years=tuple(year if year in YEARS else 0 for year in years) if any(years) else (),
            texts=tuple(texts) if any(texts) else (),
        )
    except DataError as error:
        # The table counts items; the reader of this message looks at lines.
        lines = [frame[LINE][number - 1] for number in error.lines]
        raise DataError(error.message, lines=lines, hint=error.hint) from None


def _split(text: str, separator: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(separator) if name.strip()))


def _is_name(text: str) -> bool:
    return 1 <= len(text) <= MAX_ID_CHARACTERS and text.isprintable()


def _is_text(text: str, limit: int) -> bool:
    return len(text) <= limit and "\x00" not in text


def _are_categories(names: tuple[str, ...]) -> bool:
    return len(names) <= MAX_CATEGORIES_PER_ITEM and len(set(names)) == len(names) and all(map(_is_name, names))


def _refuse(what: str, wrong: Iterable[bool]) -> None:
    numbers = [number for number, is_wrong in enumerate(wrong, 1) if is_wrong]
    if numbers:
        raise DataError(
            f"got {len(numbers)} items with {what} (first: item {numbers[0]})",
            lines=numbers[:20],
            hint=f"ids and categories have 1 to {MAX_ID_CHARACTERS} printable characters, titles at most"
            f" {MAX_TITLE_CHARACTERS}, texts {MAX_TEXT_CHARACTERS}, an item {MAX_CATEGORIES_PER_ITEM} categories",
        )


def _refuse_lines(lines: list[int], why: str) -> None:
    if lines:
        raise DataError(f"got {len(lines)} bad rows in the items file: {why}", lines=lines[:20])
