from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.unit.tabular.conftest import BANK, SHOP
from veil.errors import InputError
from veil.privacy.mechanism import vector_sensitivity
from veil.tabular.encoding import encode_features
from veil.tabular.grid import ABSENT, arrange, arrange_labels, encode_rows, first_slots
from veil.tabular.reading import read_party
from veil.tabular.schema import Label, TabularSchema
from veil.tabular.statistics import Standardisation

Write = Callable[..., Path]


def _standardisation(width: int, scale: float) -> Standardisation:
    return Standardisation(np.full(width, 0.25), np.full(width, scale), None, 5.0)


def test_small_rows_are_exact_and_large_ones_meet_the_bound(schema: TabularSchema, write: Write) -> None:
    table = read_party(write(*BANK), schema, "bank")
    small = encode_rows(schema, table, _standardisation(10, 2**-6))
    expected = np.trunc((encode_features(table) - 0.25) * 2**-6 * 2**13)
    assert small.tolist() == expected.tolist()
    large = encode_rows(schema, table, _standardisation(10, 1000.0))
    bound = vector_sensitivity(schema.of("bank").norm_share, 13)
    squares = [sum(int(step) ** 2 for step in row) for row in large]
    assert max(squares) <= bound**2
    assert min(squares) > (bound - 10) ** 2


def test_joint_rows_are_within_the_row_bound(schema: TabularSchema, write: Write) -> None:
    parts = []
    for party, lines, width in (("bank", BANK, 10), ("shop", SHOP, 5)):
        table = read_party(write(*lines, name=party + ".csv"), schema, party)
        parts.append(encode_rows(schema, table, _standardisation(width, 1000.0)))
    joint = np.concatenate(parts, axis=1)
    assert all(sum(int(step) ** 2 for step in row) <= schema.row_bound**2 for row in joint)


def test_a_row_depends_on_no_other_row(schema: TabularSchema, write: Write) -> None:
    table = read_party(write(*BANK), schema, "bank")
    alone = read_party(write(BANK[0], BANK[4], name="alone.csv"), schema, "bank")
    together = encode_rows(schema, table, _standardisation(10, 3.0))
    assert together[3].tolist() == encode_rows(schema, alone, _standardisation(10, 3.0))[0].tolist()


def test_slots_hold_rows_or_zeros() -> None:
    grid = np.arange(1, 7, dtype=np.int64).reshape(3, 2)
    positions = np.array([ABSENT, 2, ABSENT, 0], dtype=np.int64)
    assert arrange(grid, positions, 4).tolist() == [[0, 0], [5, 6], [0, 0], [1, 2]]
    assert first_slots(2, 4).tolist() == [0, 1, ABSENT, ABSENT]


def test_labels_and_weights_are_zero_without_a_label() -> None:
    label = Label(name="y", positive_weight=2.0, negative_weight=0.5)
    labels = np.array([1, 0, -1], dtype=np.int8)
    found = arrange_labels(label, 13, labels, np.array([0, ABSENT, 2, 1], dtype=np.int64), 4)
    assert found.labels.tolist() == [1, 0, 0, 0]
    assert found.weights.tolist() == [2 << 13, 0, 0, 1 << 12]
    assert repr(found) == "Outcomes(slots=4)"


def test_adding_a_user_changes_one_slot_from_zeros() -> None:
    rng = np.random.default_rng(1)
    grid = rng.integers(-9, 9, (3, 4))
    without = arrange(grid, np.array([0, 1, -1, -1], dtype=np.int64), 4)
    added = arrange(grid, np.array([0, 1, -1, 2], dtype=np.int64), 4)
    assert (added - without)[:3].any() == np.False_
    assert (added - without)[3].tolist() == grid[2].tolist()


@pytest.mark.parametrize(
    ("positions", "message"),
    [([0, 0, -1], "in two slots"), ([0, 3, -1], "outside"), ([0, -2, -1], "outside"), ([0, 1], "expected int64")],
)
def test_refuses_positions_that_are_no_placement(positions: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        arrange(np.ones((3, 2), dtype=np.int64), np.array(positions, dtype=np.int64), 3)


def test_refuses_a_standardisation_of_another_width(schema: TabularSchema, write: Write) -> None:
    table = read_party(write(*BANK), schema, "bank")
    with pytest.raises(InputError, match="expected 10 features"):
        encode_rows(schema, table, _standardisation(9, 1.0))
    with pytest.raises(InputError, match="at most as many rows"):
        first_slots(5, 4)
