from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.tabular.conftest import BANK, SHOP
from veil.errors import InputError
from veil.jobs.spec import Release
from veil.tabular.encoding import encode_features
from veil.tabular.grid import encode_rows
from veil.tabular.reading import read_party
from veil.tabular.rows import take_rows
from veil.tabular.schema import HashedColumn, Label, PartyColumns, TabularSchema
from veil.tabular.statistics import (
    MOST_SCALE,
    STATISTICS_BITS,
    Standardisation,
    contribution,
    entries,
    norm_bound,
    release_name,
    sensitivity,
    standardise,
    statistics_release,
)

Write = Callable[..., Path]


def test_sums_are_those_of_the_features(schema: TabularSchema, write: Write) -> None:
    table = read_party(write(*SHOP), schema, "shop")
    sums = contribution(schema, table) / 2.0**STATISTICS_BITS
    features = encode_features(table)
    assert sums[0] == pytest.approx(5, abs=1e-3)  # each row a step short at most
    assert sums[1:6] == pytest.approx(features.sum(axis=0), abs=1e-3)
    assert sums[6] == pytest.approx(np.square(features[:, 4]).sum(), abs=1e-3)
    assert sums[7:] == pytest.approx([2, 2], abs=1e-3)  # positive, negative; one row has no label
    assert len(sums) == entries(schema, "shop") == 9
    assert entries(schema, "bank") == 1 + 10 + 1


def test_one_user_moves_the_sums_by_at_most_the_sensitivity(schema: TabularSchema, write: Write) -> None:
    # The worst row there is: a value at its bound in every linear column, a label, every one-hot column hit.
    everything = contribution(schema, read_party(write(*SHOP, "f,tea,1,1"), schema, "shop"))
    without = contribution(schema, read_party(write(*SHOP, name="less.csv"), schema, "shop"))
    moved = [int(step) for step in everything - without]
    squares = sum(step * step for step in moved)
    assert squares <= sensitivity(schema, "shop") ** 2
    # and the bound is met, up to one step: 1 + 1 (label) + 1 (item) + 1 (balance) + 1 (its square)
    assert norm_bound(schema, "shop") == math.sqrt(5)
    assert squares > (sensitivity(schema, "shop") - 4) ** 2


@given(st.lists(st.tuples(st.floats(-9, 2000), st.floats(-5, 200), st.sampled_from(["north", "", "?"])), min_size=1))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_any_row_is_within_the_sensitivity(
    schema: TabularSchema, write: Write, rows: list[tuple[float, float, str]]
) -> None:
    for number, (income, age, region) in enumerate(rows[:3]):
        one = read_party(write(BANK[0], f"u{number},{income},{age},{region}"), schema, "bank")
        moved = contribution(schema, one)
        assert sum(int(step) ** 2 for step in moved) <= sensitivity(schema, "bank") ** 2


def test_without_noise_features_come_out_standardised(schema: TabularSchema, write: Write) -> None:
    rng = np.random.default_rng(5)
    lines = [f"u{n},t{rng.integers(9)},{rng.normal() / 2},{rng.integers(2)}" for n in range(300)]
    wide = schema.model_copy(update={"slots": 512})
    table = read_party(write(SHOP[0], *lines), wide, "shop")
    found = standardise(wide, "shop", contribution(wide, table))
    rows = (encode_features(table) - found.offset) * found.scale
    assert np.abs(rows.mean(axis=0)).max() < 1e-3
    # mean squared norm: the share; one linear column of weight 1 has the variance of weight 1
    assert np.square(rows).sum(axis=1).mean() == pytest.approx(wide.of("shop").norm_share ** 2, rel=1e-2)
    assert found.rate == pytest.approx((table.labels == 1).mean() if table.labels is not None else None, abs=1e-3)
    assert found.users == pytest.approx(300, abs=0.1)
    g = found.scale[0]  # a one-hot feature of weight 1
    deviation = encode_features(table)[:, 4].std()
    assert found.scale[4] * deviation == pytest.approx(g, rel=1e-2)


def test_noise_never_leaves_what_is_possible(schema: TabularSchema, write: Write) -> None:
    table = read_party(write(*SHOP), schema, "shop")
    rng = np.random.default_rng(3)
    for _ in range(50):
        noise = np.rint(rng.normal(size=9) * 100 * 2**STATISTICS_BITS).astype(np.int64)
        found = standardise(schema, "shop", contribution(schema, table) + noise)
        assert np.isfinite(found.scale).all() and (found.scale >= 0).all()
        assert (np.abs(found.offset) <= 1).all()
        assert found.rate is not None and 0 < found.rate < 1
        assert 1 <= found.users <= schema.slots


def test_a_column_that_hardly_weighs_does_not_scale_another_beyond_every_number() -> None:
    """Any schema may be in a job text: a column without variance beside one that varies and weighs next to nothing."""
    columns = tuple(HashedColumn(name=name, buckets=2, weight=weight) for name, weight in (("x", 100.0), ("y", 1e-100)))
    schema = TabularSchema(
        slots=1000,
        parties=(PartyColumns(party="shop", identifier="user", columns=columns, norm_share=1.0),),
        label=Label(name="bought"),
        label_party="shop",
    )
    opened = np.array([1000, 1000, 0, 500, 500, 300, 700], dtype=np.int64) << STATISTICS_BITS
    found = standardise(schema, "shop", opened)
    assert np.isfinite(found.scale).all() and found.scale.min() >= 0 and found.scale.max() == MOST_SCALE


def test_rare_features_can_be_left_out(schema: TabularSchema, write: Write) -> None:
    table = read_party(write(*BANK), schema, "bank")
    found = standardise(schema, "bank", contribution(schema, table), least_users=1.5)
    features = encode_features(table).sum(axis=0)
    one_hot = np.r_[2:10]
    assert ((found.scale[one_hot] == 0) == (features[one_hot] < 1.5)).all()
    assert (found.scale[:1] > 0).all()


def test_release_lists_what_is_released(schema: TabularSchema) -> None:
    release = statistics_release(schema, "bank", 4.0)
    assert (release.name, release.shape) == ("statistics-bank", (12,))
    assert release.sigma == 4 * release.sensitivity == 4 * sensitivity(schema, "bank")
    assert len(release_name("p" * 48)) == 48


def test_parties_whose_names_begin_alike_have_releases_of_their_own() -> None:
    names = ["p" * 40 + "1", "p" * 40 + "2", "p" * 37, "p" * 36 + "-", "p" * 36, "p" * 38, "p" * 38 + "-"]
    found = {release_name(name) for name in names}
    assert len(found) == len(names)
    for name in found:
        Release(name=name, shape=(1,), sensitivity=1, sigma=1)


def test_public_form_is_exact_and_checked(schema: TabularSchema, write: Write) -> None:
    table = read_party(write(*SHOP), schema, "shop")
    found = standardise(schema, "shop", contribution(schema, table))
    parts = found.public()
    again = Standardisation.of_public(parts, 5)
    assert (again.offset == found.offset).all() and (again.scale == found.scale).all()
    assert (again.rate, again.users) == (found.rate, found.users)
    bank = read_party(write(*BANK, name="bank.csv"), schema, "bank")
    assert Standardisation.of_public(standardise(schema, "bank", contribution(schema, bank)).public(), 10).rate is None
    for name, wrong in (("offset", 1 << 21), ("scale", -1), ("rest", 0)):
        broken = {**parts, name: np.full_like(parts[name], wrong)}
        with pytest.raises(InputError, match="out of range"):
            Standardisation.of_public(broken, 5)
    with pytest.raises(InputError, match="for 6 features"):
        Standardisation.of_public(parts, 6)


def test_blocks_of_rows_add_up(schema: TabularSchema, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    table = read_party(write(*SHOP), schema, "shop")
    whole = contribution(schema, table)
    monkeypatch.setattr("veil.tabular.reading._BLOCK_ENTRIES", 10)
    assert [block.rows for block in table.blocks()] == [2, 2, 1]
    assert contribution(schema, table).tolist() == whole.tolist()
    flat = Standardisation(np.zeros(5), np.ones(5), None, 5.0)
    in_blocks = encode_rows(schema, table, flat)
    monkeypatch.undo()
    assert in_blocks.tolist() == encode_rows(schema, table, flat).tolist()


def test_no_common_user_is_sums_of_zero(schema: TabularSchema, write: Write) -> None:
    table = take_rows(read_party(write(*SHOP), schema, "shop"), np.empty(0, dtype=np.int64))
    assert contribution(schema, table).tolist() == [0] * entries(schema, "shop")
    found = standardise(schema, "shop", contribution(schema, table))
    assert np.isfinite(found.scale).all() and found.rate == 0.5 and found.users == 1
    assert encode_rows(schema, table, found).shape == (0, 5)


def test_refuses_sums_of_another_shape(schema: TabularSchema) -> None:
    with pytest.raises(InputError, match="one per entry"):
        standardise(schema, "shop", np.zeros(8, dtype=np.int64))
    with pytest.raises(InputError, match="fill"):
        standardise(schema, "shop", np.zeros(9, dtype=np.int64), fill=0.0)
