from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from veil.errors import DataError
from veil.recsys.items import ItemColumns, ItemTable, read_items
from veil.recsys.table import TableFormat

COLUMNS = ItemColumns(id="id", title="name", categories="kinds", year="year", texts=("blurb", "maker"))


def test_a_file_becomes_a_table(tmp_path: Path) -> None:
    path = tmp_path / "items.csv"
    path.write_text('id,name,kinds,year,blurb,maker\n7,"Heat, again",Crime| Drama|Crime,1995,Two men,Mann\nx,,,n/a,,\n')
    table = read_items(path, COLUMNS)
    assert table == ItemTable(
        ("7", "x"), ("Heat, again", ""), (("Crime", "Drama"), ()), (1995, 0), ("Two men Mann", "")
    )
    pl.read_csv(path, infer_schema_length=0).write_parquet(tmp_path / "items.parquet")
    assert read_items(tmp_path / "items.parquet", COLUMNS) == table


def test_only_the_id_is_needed_and_names_may_be_given(tmp_path: Path) -> None:
    path = tmp_path / "items.tsv"
    path.write_text('a\t"quoted" title\nb\tother\n')
    layout = TableFormat(names=("id", "name"))
    assert read_items(path, ItemColumns(id="id"), layout) == ItemTable(("a", "b"), ("", ""), ((), ()))
    assert read_items(path, ItemColumns(id="id", title="name"), layout).titles == ('"quoted" title', "other")


@pytest.mark.parametrize(
    ("row", "message"),
    [("1,again", "another row"), (",no id", "no id"), ("2", "number of fields"), ("2,x\x00", "NUL"),
     ("x" * 300 + ",t", "unusable id"), ("2," + "t" * 1001, "unusable title")],
)  # fmt: skip
def test_bad_rows_are_named_by_line(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "items.csv"
    path.write_text(f"id,name\n1,one\n\n{row}\n")
    with pytest.raises(DataError, match=message) as caught:
        read_items(path, ItemColumns(id="id", title="name"))
    assert 4 in caught.value.lines


@pytest.mark.parametrize(
    "arguments",
    [
        ((), (), ()),
        (("a", "a"), ("", ""), ((), ())),
        (("a",), ("", ""), ((),)),
        (("a",), ("",), (("",),)),
        (("a",), ("",), (("x", "x"),)),
        (("a",), ("",), ((),), (99,)),
        (("a",), ("",), ((),), (), ("t" * 20_001,)),
        (("a\n",), ("",), ((),)),
    ],
)
def test_inconsistent_tables_are_refused(arguments: tuple) -> None:
    with pytest.raises(DataError):
        ItemTable(*arguments)
