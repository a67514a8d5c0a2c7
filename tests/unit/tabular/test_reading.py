from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from tests.unit.tabular.conftest import BANK, SHOP
from veil.errors import ConfigError, DataError, InputError
from veil.recsys.table import TableFormat
from veil.tabular.reading import read_party
from veil.tabular.schema import TabularSchema

Write = Callable[..., Path]


def test_reads_columns_missing_values_and_labels(schema: TabularSchema, write: Write) -> None:
    bank = read_party(write(*BANK), schema, "bank")
    assert bank.identifiers == ("a", "b", "c", "d", "e")
    assert bank.labels is None
    assert bank.columns[0].to_list()[:3] == [0.0, 1000.0, None]
    assert bank.columns[2].to_list() == ["north", "south", "", "east", "north"]
    shop = read_party(write(*SHOP), schema, "shop")
    assert shop.labels is not None
    assert shop.labels.tolist() == [1, 0, 0, -1, 1]
    assert repr(shop) == "PartyTable(shop, rows=5, columns=2)"


def test_rows_to_be_scored_need_no_label(schema: TabularSchema, write: Write) -> None:
    path = write("member,item,balance", "a,tea,0.5")
    table = read_party(path, schema, "shop", labelled=False)
    assert table.labels is not None and table.labels.tolist() == [-1]
    with pytest.raises(DataError, match="no columns named 'bought'"):
        read_party(path, schema, "shop")


def test_parquet_and_csv_read_alike(schema: TabularSchema, write: Write, tmp_path: Path) -> None:
    text = read_party(write(*BANK), schema, "bank")
    frame = pl.read_csv(write(*BANK))
    frame.write_parquet(tmp_path / "rows.parquet")
    typed = read_party(tmp_path / "rows.parquet", schema, "bank")
    assert typed.identifiers == text.identifiers
    for one, other in zip(text.columns, typed.columns, strict=True):
        assert one.to_list() == other.to_list()


def test_categories_are_texts_or_whole_numbers_in_a_typed_file(schema: TabularSchema, tmp_path: Path) -> None:
    """As a float, 7 would be the text 7.0, in another bucket than the 7 of a CSV file, and nobody would notice."""
    path = tmp_path / "rows.parquet"
    columns = {"member": ["a", "b"], "balance": [0.5, 1.0], "bought": ["1", ""]}
    pl.DataFrame({**columns, "item": [7, None]}).write_parquet(path)
    assert read_party(path, schema, "shop").columns[0].to_list() == ["7", ""]
    pl.DataFrame({**columns, "item": [7.0, None]}).write_parquet(path)
    with pytest.raises(DataError, match="'item' of type Float64, expected text or whole numbers"):
        read_party(path, schema, "shop")


def test_reads_a_file_without_header_and_with_other_columns(schema: TabularSchema, write: Write) -> None:
    layout = TableFormat(names=("customer", "unused", "region", "age", "income"))
    table = read_party(write("a,zz,north,40,7"), schema, "bank", layout)
    assert table.columns[0].to_list() == [7.0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a,1,2,north", "more than one row at lines 2, 4"),
        (",1,2,north", "ids that are empty"),
        ("i" * 300 + ",1,2,north", "ids that are empty, too long"),
        ("z,elf,2,north", "'income' that are no finite numbers at lines 4"),
        ("z,nan,2,north", "'income' that are no finite numbers"),
        ("z,1e999,2,north", "'income' that are no finite numbers"),
        ("z,1,2", "rows that do not parse at lines 4"),
        ("z,1,2," + "n" * 300, "'region' above 256"),
    ],
)
def test_refuses_what_does_not_fit_by_line_number(schema: TabularSchema, write: Write, row: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_party(write(BANK[0], *BANK[1:3], row), schema, "bank")
    assert 4 in caught.value.lines
    for value in ("north", "elf", "iii", "nnn"):
        assert value not in str(caught.value)


def test_refuses_labels_and_values_outside_of_the_schema(schema: TabularSchema, write: Write) -> None:
    with pytest.raises(DataError, match="labels that are neither outcome at lines 3"):
        read_party(write(*SHOP[:2], "b,milk,0,2"), schema, "shop")
    raw = schema.model_dump()
    raw["parties"][0]["columns"][2].update(unknown="refuse")
    raw["parties"][0]["columns"][0].update(missing="refuse", fill=None)
    strict = TabularSchema.model_validate(raw)
    with pytest.raises(DataError, match="'region' outside of the vocabulary at lines 3"):
        read_party(write(BANK[0], "c,1,60,", "d,1,60,east"), strict, "bank")
    with pytest.raises(DataError, match="no value of 'income' at lines 2"):
        read_party(write(BANK[0], "c,,60,"), strict, "bank")


def test_refuses_more_rows_than_slots_and_none(schema: TabularSchema, write: Write) -> None:
    many = [f"u{number},1,2,north" for number in range(17)]
    with pytest.raises(InputError, match="more than 16 rows"):
        read_party(write(BANK[0], *many), schema, "bank")
    with pytest.raises(DataError, match="expected at most the schema's 16 slots"):
        read_party(write(BANK[0], *many), schema, "bank", TableFormat())
    with pytest.raises(DataError, match="without rows"):
        read_party(write(BANK[0]), schema, "bank")
    with pytest.raises(DataError, match="no columns named 'income'"):
        read_party(write("customer,age,region", "a,1,north"), schema, "bank")
    with pytest.raises(ConfigError):
        read_party(write(*BANK), schema, "nobody")
    with pytest.raises(InputError):
        read_party(Path("/nonexistent/rows.csv"), schema, "bank")
