from __future__ import annotations

import json
import math
from typing import Any

import pytest
from pydantic import ValidationError

from veil.errors import ConfigError
from veil.tabular.schema import (
    CategoricalColumn,
    HashedColumn,
    Label,
    NumericColumn,
    PartyColumns,
    TabularSchema,
    equal_shares,
)


def _party(name: str, share: float) -> PartyColumns:
    return PartyColumns(party=name, identifier="id", norm_share=share, columns=(HashedColumn(name="x", buckets=8),))


def _schema(*shares: float, bits: int = 13) -> TabularSchema:
    parties = tuple(_party(f"p{rank}", share) for rank, share in enumerate(shares))
    return TabularSchema(slots=8, bits=bits, parties=parties, label=Label(name="y"), label_party="p0")


def test_survives_json_unchanged(schema: TabularSchema) -> None:
    again = TabularSchema.model_validate_json(schema.model_dump_json())
    assert again == schema
    assert again.model_dump_json() == schema.model_dump_json()
    # as a part of a job text, which is parsed first and validated after
    assert TabularSchema.model_validate(json.loads(schema.model_dump_json())) == schema


def test_places_and_widths_of_features(schema: TabularSchema) -> None:
    bank, shop = schema.parties
    # income + indicator; three bins + indicator; two regions + other + indicator
    assert (bank.width, shop.width, schema.width) == (2 + 4 + 4, 4 + 1, 15)
    assert bank.slices() == [slice(0, 2), slice(2, 6), slice(6, 10)]
    assert (schema.place("bank"), schema.place("shop")) == (slice(0, 10), slice(10, 15))
    with pytest.raises(ConfigError, match="expected one of bank, shop"):
        schema.of("nobody")
    with pytest.raises(ConfigError, match="expected one of bank, shop"):
        schema.place("nobody")


@pytest.mark.parametrize("parties", [1, 2, 3, 5, 7, 16])
@pytest.mark.parametrize("bits", [4, 13, 20])
def test_equal_shares_fill_the_norm_and_no_more(parties: int, bits: int) -> None:
    share = equal_shares(parties, bits)
    schema = _schema(*[share] * parties, bits=bits)
    assert schema.row_bound == 1 << bits
    assert parties * (share * 2**bits) ** 2 <= 4**bits < parties * (share * 2**bits + 1) ** 2


def test_refuses_shares_above_one_in_integers() -> None:
    with pytest.raises(ValidationError, match="squares sum to"):
        _schema(0.8, 0.7)
    # 0.6 and 0.8 are exact in decimals only; on the grid they are below.
    assert _schema(0.6, 0.8).width == 16
    # 1.5 steps over the bound, in one party's share alone
    with pytest.raises(ValidationError):
        _schema(0.6, 0.8 + 1.5 / 2**13)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (NumericColumn, {"lower": 1.0, "upper": 1.0}, "larger upper"),
        (NumericColumn, {"lower": -1e308, "upper": 1e308}, "larger upper"),
        (NumericColumn, {"lower": 0.0, "upper": math.inf}, "finite"),
        (NumericColumn, {"lower": 0.0, "upper": 9.0, "edges": (3.0, 3.0)}, "ascend"),
        (NumericColumn, {"lower": 0.0, "upper": 9.0, "edges": (9.0,)}, "ascend"),
        (NumericColumn, {"lower": 0.0, "upper": 9.0, "edges": (3.0,), "transform": "log"}, "edges on the scale"),
        (NumericColumn, {"lower": 0.0, "upper": 1e-17, "transform": "log"}, "range below"),
        (NumericColumn, {"lower": 0.0, "upper": 9.0, "missing": "indicator"}, "expected it exactly"),
        (NumericColumn, {"lower": 0.0, "upper": 9.0, "fill": 1.0}, "expected it exactly"),
        (NumericColumn, {"lower": 0.0, "upper": 9.0, "name": "a\nb"}, "pattern"),
        (NumericColumn, {"lower": 0.0, "upper": 9.0, "weight": 0.0}, "greater than 0"),
        (NumericColumn, {"lower": "0", "upper": 9.0}, "valid number"),
        (CategoricalColumn, {"vocabulary": ("a", "a")}, "repeated"),
        (CategoricalColumn, {"vocabulary": ("a", "")}, "empty"),
        (CategoricalColumn, {"vocabulary": ()}, "at least 1"),
        (CategoricalColumn, {"vocabulary": ("a" * 257,)}, "at most 256"),
        (HashedColumn, {"buckets": 1}, "greater than or equal to 2"),
        (HashedColumn, {"buckets": 2**20}, "less than or equal"),
        (HashedColumn, {"buckets": 8, "salt": "x"}, "not permitted"),
    ],
)
def test_refuses_a_column_out_of_bounds(kind: type[Any], fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        kind(**{"name": "x", **fields})


def test_refuses_inconsistent_tables() -> None:
    column = HashedColumn(name="x", buckets=8)
    with pytest.raises(ValidationError, match="each name once"):
        PartyColumns(party="a", identifier="x", norm_share=1.0, columns=(column,))
    with pytest.raises(ValidationError, match="at most 65536"):
        wide = tuple(HashedColumn(name=f"x{n}", buckets=4096) for n in range(17))
        PartyColumns(party="a", identifier="id", norm_share=1.0, columns=wide)
    mine = PartyColumns(party="a", identifier="id", norm_share=0.5, columns=(column,))
    with pytest.raises(ValidationError, match="a column of its own"):
        TabularSchema(slots=8, parties=(mine,), label=Label(name="x"), label_party="a")
    with pytest.raises(ValidationError, match="each party once"):
        TabularSchema(slots=8, parties=(mine, mine), label=Label(name="y"), label_party="a")
    with pytest.raises(ValidationError, match="each party once"):
        TabularSchema(slots=8, parties=(mine,), label=Label(name="y"), label_party="b")
    with pytest.raises(ValidationError, match="expected two"):
        Label(name="y", positive="0")
