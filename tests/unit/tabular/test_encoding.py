from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.tabular.conftest import BANK, SHOP
from veil.errors import InputError
from veil.tabular.encoding import bucket, encode_features, scaled, squares_bound
from veil.tabular.reading import PartyTable, read_party
from veil.tabular.schema import CategoricalColumn, NumericColumn, PartyColumns, TabularSchema

Write = Callable[..., Path]


def test_every_kind_of_column_and_of_missing_value(schema: TabularSchema, write: Write) -> None:
    features = encode_features(read_party(write(*BANK), schema, "bank"))
    income, age, region = (features[:, place] for place in schema.of("bank").slices())
    # lower bound, upper bound, missing (fill 0 is the lower bound), half the logarithm, clamped
    assert income[:, 0] == pytest.approx([-1, 1, -1, 0, 1])
    assert income[:, 1].tolist() == [0, 0, 1, 0, 0]
    assert age.argmax(axis=1).tolist() == [0, 1, 2, 3, 2]
    assert region.argmax(axis=1).tolist() == [0, 1, 3, 2, 0]
    assert (age.sum(axis=1) == 1).all() and (region.sum(axis=1) == 1).all()


def test_hashing_is_sha256_and_a_fill_is_a_value(schema: TabularSchema, write: Write) -> None:
    features = encode_features(read_party(write(*SHOP), schema, "shop"))
    for row, value in enumerate(("tea", "milk", "", "tea", "salt")):
        digest = hashlib.sha256(b"veil/tabular-bucket/v1\x00item\x00" + value.encode()).digest()
        assert features[row, :4].argmax() == int.from_bytes(digest[:8], "big") % 4
    assert features[:, 4].tolist() == [0.5, 0.0, -1.0, 1.0, 0.25]


def test_buckets_are_fixed_for_good() -> None:
    # Known answers: another number here would silently change every published model's columns.
    assert [bucket("item", value, 1000) for value in ("", "tea", "grün")] == [403, 437, 938]
    counts = np.bincount([bucket("x", str(n), 10) for n in range(5000)], minlength=10)
    assert counts.min() > 400 and counts.max() < 600


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.floats(allow_nan=False), st.sampled_from(["none", "log"]))
def test_numbers_stay_within_one(lower: float, span: float, value: float, transform: str) -> None:
    if lower + span <= lower:
        return
    column = NumericColumn.model_validate({"name": "x", "lower": lower, "upper": lower + span, "transform": transform})
    result = float(scaled(column, np.array([value]))[0])
    assert -1.0 <= result <= 1.0
    assert scaled(column, np.array([lower, lower + span])).tolist() == [-1.0, 1.0]


def test_bounds_near_the_largest_number_do_not_overflow() -> None:
    column = NumericColumn(name="x", lower=0.0, upper=1.5 * 2.0**1023)
    assert scaled(column, np.array([0.75, 1.125, 1.5]) * 2.0**1023).tolist() == [0.0, 0.5, 1.0]


def test_a_text_is_found_without_a_search_through_the_vocabulary() -> None:
    """Thousands of categories times millions of texts would be hours."""
    looks = [0]

    class Counted(tuple[str, ...]):
        def __contains__(self, value: object) -> bool:
            looks[0] += 1
            return super().__contains__(value)

    names = Counted(f"c{number}" for number in range(50))
    column = CategoricalColumn(name="v", vocabulary=names, missing="indicator")
    object.__setattr__(column, "vocabulary", names)
    party = PartyColumns.model_construct(party="p", identifier="id", columns=(column,), norm_share=1.0)
    values = pl.Series(["c3", "", "d", *(f"e{number}" for number in range(97)), "c49"], dtype=pl.String)
    table = PartyTable(party, tuple(map(str, range(len(values)))), (values,), None)
    codes = encode_features(table).argmax(axis=1)
    assert codes.tolist() == [3, 51, 50, *[50] * 97, 49]
    assert looks[0] <= 50


def test_the_bound_on_squares_holds_and_is_met() -> None:
    both = NumericColumn(name="x", lower=-1.0, upper=1.0, missing="indicator", fill=1.0)
    assert squares_bound(both) == 2.0
    middle = NumericColumn(name="x", lower=-1.0, upper=1.0, missing="indicator", fill=0.0)
    assert squares_bound(middle) == 1.0


def test_refuses_columns_of_another_length(schema: TabularSchema, write: Write) -> None:
    table = read_party(write(*SHOP), schema, "shop")
    short = PartyTable(table.party, table.identifiers, (table.columns[0].head(2), table.columns[1]), table.labels)
    with pytest.raises(InputError, match="got 2 values of 'item'"):
        encode_features(short)
