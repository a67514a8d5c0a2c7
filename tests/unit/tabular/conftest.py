"""A small joint table of two parties with every kind of column."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from veil.tabular.schema import (
    CategoricalColumn,
    HashedColumn,
    Label,
    NumericColumn,
    PartyColumns,
    TabularSchema,
    equal_shares,
)

SHARE = equal_shares(2, 13)


@pytest.fixture
def schema() -> TabularSchema:
    bank = PartyColumns(
        party="bank",
        identifier="customer",
        norm_share=SHARE,
        columns=(
            NumericColumn(name="income", lower=0.0, upper=1000.0, transform="log", missing="indicator", fill=0.0),
            NumericColumn(name="age", lower=0.0, upper=120.0, edges=(30.0, 60.0), missing="indicator"),
            CategoricalColumn(name="region", vocabulary=("north", "south"), missing="indicator"),
        ),
    )
    shop = PartyColumns(
        party="shop",
        identifier="member",
        norm_share=SHARE,
        columns=(
            HashedColumn(name="item", buckets=4),
            NumericColumn(name="balance", lower=-1.0, upper=1.0, missing="fill", fill=0.0),
        ),
    )
    return TabularSchema(slots=16, parties=(bank, shop), label=Label(name="bought"), label_party="shop")


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes lines as a CSV file."""

    def lines(*rows: str, name: str = "rows.csv") -> Path:
        path = tmp_path / name
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")
        return path

    return lines


BANK = (
    "customer,income,age,region",
    "a,0,29,north",
    "b,1000,30,south",
    "c,,60,",
    f"d,{math.sqrt(1001) - 1},,east",
    "e,5000,200,north",
)
SHOP = (
    "member,item,balance,bought",
    "a,tea,0.5,1",
    "b,milk,,0",
    "c,,-1,0",
    "d,tea,2,",
    "e,salt,0.25,1",
)
