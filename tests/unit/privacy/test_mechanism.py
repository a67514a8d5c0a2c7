"""Clipping, truncation, sums and sensitivities, against rational and Python-integer arithmetic."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veil.errors import ConfigError, DataError, InputError, StateError
from veil.privacy.mechanism import (
    check_headroom,
    outer_sensitivity,
    outer_sum,
    to_grid,
    variance_factor,
    vector_sensitivity,
    vector_sum,
    within,
)

FINITE = st.floats(allow_nan=False, allow_infinity=False, width=64)
NORMS = st.floats(min_value=2.0**-8, max_value=8.0)


def squared(row: npt.NDArray[np.int64]) -> int:
    return sum(int(v) ** 2 for v in row)


@settings(max_examples=300, deadline=None)
@given(rows=st.lists(st.lists(FINITE, min_size=3, max_size=3), max_size=6), norm=NORMS, bits=st.integers(8, 40))
def test_no_row_exceeds_its_sensitivity(rows: list[list[float]], norm: float, bits: int) -> None:
    grid = to_grid(np.array(rows, dtype=np.float64).reshape(len(rows), 3), norm, bits)
    assert grid.dtype == np.int64 and grid.shape == (len(rows), 3)
    bound = vector_sensitivity(norm, bits)
    assert all(squared(row) <= bound**2 for row in grid)


@settings(max_examples=300, deadline=None)
@given(row=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8), norm=NORMS, bits=st.integers(8, 30))
def test_result_is_the_clipped_row_within_one_step(row: list[float], norm: float, bits: int) -> None:
    grid = to_grid(np.array([row]), norm, bits)[0]
    exact = [Fraction(v) for v in row]
    length = math.sqrt(math.fsum(v * v for v in row))
    scale = Fraction(min(1.0, norm / length)) if length else Fraction(1)
    for got, value in zip(grid.tolist(), exact, strict=True):
        wanted = value * scale * 2**bits
        # Never away from zero by more than a last-place error, never toward zero by more than a step (two, where the
        # bound is a rounded-down number of steps).
        assert abs(got) <= abs(wanted) * (1 + Fraction(1, 2**40)) + Fraction(1, 2**20)
        assert abs(wanted) - abs(got) <= 2 + abs(wanted) / 2**30
        assert got == 0 or (got > 0) == (wanted > 0)


def test_unclipped_rows_are_truncated_exactly() -> None:
    rows = np.array([[0.75, -0.5], [0.1, -0.1], [0.0, 0.0], [1 - 2.0**-30, 2.0**-40], [-5e-324, 1e-310]])
    grid = to_grid(rows, 2.0, 20)
    for row, values in zip(grid.tolist(), rows.tolist(), strict=True):
        assert row == [math.trunc(Fraction(v) * 2**20) for v in values]


def test_rows_on_and_far_beyond_the_norm() -> None:
    bound = 2**20
    rows = np.array([[1.0, 0.0], [0.6, 0.8], [3e300, 4e300], [1.7e308, -1.7e308], [1e-200, 0.0]])
    grid = to_grid(rows, 1.0, 20)
    assert grid[0].tolist() == [bound, 0]
    assert grid[4].tolist() == [0, 0]
    for row, wanted in ((grid[1], (0.6, 0.8)), (grid[2], (0.6, 0.8)), (grid[3], (0.5**0.5, -(0.5**0.5)))):
        assert squared(row) <= bound**2
        assert np.allclose(row / bound, wanted, atol=2 / bound)


def test_wide_rows_keep_their_bound_where_squares_leave_64_bits() -> None:
    generator = np.random.default_rng(1)  # the test's rows, not noise
    rows = generator.standard_normal((40, 5000))
    for bits in (20, 44, 48):
        grid = to_grid(rows, 4.0, bits) if bits < 48 else to_grid(rows, 8.0, bits)
        bound = vector_sensitivity(4.0 if bits < 48 else 8.0, bits)
        assert all(squared(row) <= bound**2 for row in grid)
        # Truncation costs little: the norm is close to the bound.
        assert all(squared(row) > (0.99 * bound) ** 2 for row in grid)


def test_rows_do_not_influence_each_other() -> None:
    generator = np.random.default_rng(2)
    rows = generator.standard_normal((50, 30)) * generator.exponential(size=(50, 1)) * 10.0 ** generator.integers(-9, 9)
    whole = to_grid(rows, 0.3, 24)
    for i in range(50):
        assert np.array_equal(to_grid(rows[i : i + 1], 0.3, 24)[0], whole[i])


@pytest.mark.parametrize("columns", [1000, 10_000])  # more columns than numpy's buffer of 8,192 holds, and fewer
def test_the_last_bits_of_wide_rows_are_their_own(columns: int) -> None:
    rows = np.random.default_rng(1).standard_normal((20, columns))
    whole = to_grid(rows, 1.0, 47)
    for i in range(20):
        assert np.array_equal(to_grid(rows[i : i + 1], 1.0, 47)[0], whole[i])
    assert np.array_equal(to_grid(np.asfortranarray(rows), 1.0, 47), whole)


def test_blocks_meet() -> None:
    generator = np.random.default_rng(3)
    rows = generator.standard_normal((2100, 1000))  # more than one block of about a million entries
    whole = to_grid(rows, 1.0, 20)
    for i in (0, 1047, 1048, 1049, 2099):
        assert np.array_equal(to_grid(rows[i : i + 1], 1.0, 20)[0], whole[i])
    assert to_grid(np.empty((0, 4)), 1.0, 20).shape == (0, 4)
    assert to_grid(np.empty((4, 0)), 1.0, 20).shape == (4, 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_a_number_is_refused_without_values(bad: float) -> None:
    rows = np.full((5, 3), 123.456)
    rows[3, 1] = bad
    with pytest.raises(DataError, match=r"\[3\]") as caught:
        to_grid(rows, 1.0, 20)
    assert "123" not in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5), st.integers(0, 2**52 - 1))
def test_within_is_exact(row: list[int], bound: int) -> None:
    root = math.isqrt(sum(v * v for v in row))
    for limit in {bound, min(root, 2**52 - 1), max(0, min(root - 1, 2**52 - 1)), min(root + 1, 2**52 - 1)}:
        got = within(np.array([row], dtype=np.int64), limit)
        assert got.tolist() == [sum(v * v for v in row) <= limit**2]


def test_within_is_exact_at_the_edge_of_wide_rows() -> None:
    grid = np.full((1, 4096), 2**40, dtype=np.int64)  # norm exactly 2^46
    assert within(grid, 2**46).tolist() == [True]
    assert within(grid, 2**46 - 1).tolist() == [False]
    grid[0, 0] += 1
    assert within(grid, 2**46).tolist() == [False]


def test_sensitivities_bound_what_one_user_adds() -> None:
    """Add or remove one user: the sums differ by at most the sensitivity, in exact integer norm."""
    generator = np.random.default_rng(4)
    left_rows, right_rows = generator.standard_normal((30, 40)) * 5, generator.standard_normal((30, 8)) * 5
    left, right = to_grid(left_rows, 1.0, 20), to_grid(right_rows, 0.2, 22)
    bound, outer_bound = vector_sensitivity(1.0, 20), outer_sensitivity(1.0, 20, 0.2, 22)
    assert outer_bound == 2**20 * int(Fraction(0.2) * 2**22)
    for user in range(30):
        others = np.arange(30) != user
        assert squared(vector_sum(left) - vector_sum(left[others])) <= bound**2
        moved = outer_sum(left, right) - outer_sum(left[others], right[others])
        assert 0 < squared(moved.ravel()) <= outer_bound**2
    # The bound is nearly reached, so it is not slack either.
    assert squared(vector_sum(left[:1])) > (0.999 * bound) ** 2


def object_outer(left: npt.NDArray[np.int64], right: npt.NDArray[np.int64]) -> list[list[int]]:
    return (left.astype(object).T @ right.astype(object)).tolist()


@pytest.mark.parametrize(("left_bits", "right_bits"), [(10, 10), (20, 20), (26, 27), (27, 27), (28, 30), (1, 52)])
def test_outer_sum_is_exact_in_every_range(left_bits: int, right_bits: int) -> None:
    generator = np.random.default_rng(5)
    left = generator.integers(-(2**left_bits), 2**left_bits + 1, size=(15, 7))
    right = generator.integers(-(2**right_bits), 2**right_bits + 1, size=(15, 5))
    left[0, 0], right[0, 0] = -(2**left_bits), 2**right_bits
    assert outer_sum(left, right).tolist() == object_outer(left, right)


def test_outer_sum_is_exact_where_one_float_product_would_not_be() -> None:
    # One product of two such entries is nearly 2^52; three of them together would already round.
    left = np.full((1500, 2), 2**26 - 1, dtype=np.int64)
    right = np.full((1500, 3), 2**26 - 3, dtype=np.int64)
    wanted = [[1500 * (2**26 - 1) * (2**26 - 3)] * 3] * 2
    assert (left.T.astype(float) @ right.astype(float)).astype(np.int64).tolist() != wanted
    assert outer_sum(left, right).tolist() == wanted


def test_sums_that_might_wrap_are_refused() -> None:
    big = np.full((8, 2), 2**30, dtype=np.int64)
    with pytest.raises(StateError, match="64 bits"):
        outer_sum(big, big)
    with pytest.raises(StateError, match="64 bits"):
        vector_sum(np.full((2, 1), -(2**63), dtype=np.int64))
    assert vector_sum(np.empty((0, 3), dtype=np.int64)).tolist() == [0, 0, 0]
    assert outer_sum(np.empty((0, 3), dtype=np.int64), np.empty((0, 2), dtype=np.int64)).shape == (3, 2)


def test_wrong_shapes_and_types_are_refused() -> None:
    grid = np.zeros((3, 2), dtype=np.int64)
    for call in (
        lambda: to_grid(np.zeros(3), 1.0, 20),
        lambda: outer_sum(grid, grid[:2]),
        lambda: outer_sum(grid, grid[0]),
        lambda: vector_sum(grid[0]),
        lambda: within(grid[0], 1),
        lambda: within(grid, 2**52),
        lambda: vector_sum(np.zeros((3, 2))),  # type: ignore[arg-type]
    ):
        with pytest.raises(InputError):
            call()


def test_sensitivity_is_the_exact_floor() -> None:
    assert vector_sensitivity(1.0, 20) == 2**20
    assert vector_sensitivity(0.1, 40) == math.floor(Fraction(0.1) * 2**40)
    assert vector_sensitivity(math.nextafter(1.0, 0.0), 20) == 2**20 - 1
    for norm, bits in (
        (1.0, -1),
        (1.0, 49),
        (0.0, 20),
        (-1.0, 20),
        (math.nan, 20),
        (math.inf, 20),
        (0.1, 3),
        (16.0, 48),
    ):
        with pytest.raises(ConfigError):
            vector_sensitivity(norm, bits)
    with pytest.raises(ConfigError, match="outer product"):
        outer_sensitivity(1.0, 26, 1.0, 26)


def test_variance_factor() -> None:
    assert [variance_factor("dealer", n) for n in (2, 5)] == [1, 1]
    assert [variance_factor("parties", n) for n in (2, 5)] == [2, 5]
    for source, parties in (("nobody", 3), ("dealer", 0)):
        with pytest.raises(ConfigError):
            variance_factor(source, parties)


def test_headroom_counts_users_and_noise() -> None:
    fits = {"sensitivity": 2**40, "sigma": 2**42, "users": 1_000_000, "noise_source": "parties", "parties": 5}
    assert check_headroom(**fits) == 10**6 * 2**40 + 40 * 2**42 * 3 + 5
    assert check_headroom(sensitivity=1, sigma=1, users=1, noise_source="dealer", parties=3) == 42
    for change in ({"users": 2**23}, {"sigma": 2**58}, {"users": 0}, {"sigma": 0}, {"noise_source": "x"}):
        with pytest.raises(ConfigError):
            check_headroom(**{**fits, **change})
