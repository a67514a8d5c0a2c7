from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veil.deidentify.k_anonymity import Codes, classes_of, climb, count_classes, diversity, suppress


def sizes(codes: Codes) -> Counter[tuple[int, ...]]:
    return Counter(tuple(row) for row in codes.tolist())


def table(rows: list[list[int]]) -> Codes:
    return np.array(rows, np.int32)


TABLES = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(st.integers(-1, 3), min_size=width, max_size=width), min_size=1, max_size=60).map(
        table
    )
)


@given(TABLES, st.integers(2, 8))
@settings(deadline=None)
def test_counts_are_those_of_a_plain_count(codes: Codes, k: int) -> None:
    plain = sizes(codes)
    found = count_classes(codes, k)
    assert found.classes == len(plain) and found.smallest == min(plain.values())
    assert found.users_alone == sum(size for size in plain.values() if size == 1)
    assert found.users_below_k == sum(size for size in plain.values() if size < k)
    label, counted = classes_of(codes)
    assert [counted[one] for one in label] == [plain[tuple(row)] for row in codes.tolist()]


@given(TABLES, st.integers(2, 8))
@settings(deadline=None)
def test_suppression_gives_k_and_only_hides(codes: Codes, k: int) -> None:
    order = list(range(codes.shape[1]))
    before = codes.copy()
    found = suppress(codes, k, order)
    assert np.array_equal(codes, before)
    if len(codes) >= k:
        assert min(sizes(found).values()) >= k
    else:
        assert (found == -1).all()
    assert ((found == codes) | (found == -1)).all()
    # a user whose class is large enough keeps everything, unless the wholly unknown needed a class to join
    whole = (found == -1).all(axis=1)
    large = np.array([sizes(codes)[tuple(row)] >= k for row in codes.tolist()])
    assert (found[large & ~whole] == codes[large & ~whole]).all()


def test_one_attribute_is_hidden_before_the_next() -> None:
    codes = table([[0, 0]] * 3 + [[0, 1], [0, 2], [0, 3]] + [[1, 4]] * 3)
    assert sizes(suppress(codes, 3, [1, 0])) == {(0, 0): 3, (0, -1): 3, (1, 4): 3}


def test_few_unknown_users_take_the_smallest_class_with_them() -> None:
    codes = table([[0]] * 5 + [[1]] * 4 + [[2]])
    assert sizes(suppress(codes, 3, [0])) == {(0,): 5, (-1,): 5}


def test_an_unknown_user_among_known_ones_is_a_small_class() -> None:
    codes = table([[0]] * 4 + [[-1]])
    assert sizes(suppress(codes, 3, [0])) == {(-1,): 5}


def test_climbing_goes_up_only_as_far_as_needed() -> None:
    # ten ages of two users each, one region: pairs of ages have four users, halves have ten
    codes = table([[age, 0] for age in range(10) for _ in range(2)])
    pairs, halves = np.arange(10, dtype=np.int32) // 2, np.arange(10, dtype=np.int32) // 5
    found, height = climb(codes, 4, [[pairs, halves], []], allowed_below=0)
    assert height == [1, 0] and sizes(found) == {(pair, 0): 4 for pair in range(5)}
    found, height = climb(codes, 5, [[pairs, halves], []], allowed_below=0)
    assert height == [2, 0] and sizes(found) == {(0, 0): 10, (1, 0): 10}
    found, height = climb(codes, 11, [[pairs, halves], []], allowed_below=0)
    assert height == [3, 0] and sizes(found) == {(-1, 0): 20}
    found, height = climb(codes, 21, [[pairs, halves], []], allowed_below=0)
    assert height == [3, 1] and sizes(found) == {(-1, -1): 20}
    found, height = climb(codes, 5, [[pairs, halves], []], allowed_below=20)
    assert height == [0, 0] and np.array_equal(found, codes)


def test_unknown_stays_unknown_when_climbing() -> None:
    codes = table([[-1], [0], [1]])
    found, _ = climb(codes, 2, [[np.zeros(2, np.int32)]], allowed_below=1)
    assert found.ravel().tolist() == [-1, 0, 0]


@pytest.mark.parametrize(
    ("classes", "values", "smallest", "uniform"),
    [
        ([0, 0, 1, 1], [0, 1, 0, 1], 2, 0),
        ([0, 0, 1, 1], [0, 0, 0, 1], 1, 2),
        ([0, 0, 1, 1], [-1, 0, 0, 1], 1, 2),
        ([0, 0, 1, 1], [-1, -1, 0, 1], 2, 0),
        ([0, 0, 1, 1], [-1, -1, -1, -1], 0, 0),
    ],
)
def test_diversity(classes: list[int], values: list[int], smallest: int, uniform: int) -> None:
    found = diversity("diagnosis", table([[one] for one in classes]), np.array(values))
    assert (found.attribute, found.smallest, found.users_in_uniform_classes) == ("diagnosis", smallest, uniform)


def test_many_attributes_with_many_categories_do_not_overflow() -> None:
    random = np.random.default_rng(1)
    codes = random.integers(0, 32_000, (500, 40)).astype(np.int32)
    codes[250:] = codes[:250]
    assert count_classes(codes, 3).classes == 250
