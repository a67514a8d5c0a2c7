"""Correlations of two and more parties: exact sums, uniform bits, exact truncation pairs."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from tests.unit.mpc.he.numbers import Integers, product, together, total, uniform
from veil.errors import InputError
from veil.mpc.communicator import TensorCommunicator
from veil.mpc.he.exchange import Exchange
from veil.mpc.he.keys import MOST_TERMS
from veil.mpc.he.shared import SharedProducts, _cheaper

PARTIES = (2, 3)


def _run(parties: int, program: Callable[[SharedProducts], tuple[Integers, ...]]) -> list[Integers]:
    """The sums of the shares that `program` gives."""

    def started(communicator: TensorCommunicator) -> tuple[Integers, ...]:
        exchange = Exchange(communicator)
        exchange.start()
        return program(SharedProducts(exchange))

    return [total(column) for column in zip(*together(parties, started), strict=True)]


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize("shape", [(6, 5, 4), (2, 30, 40)])
def test_products_of_matrices(parties: int, shape: tuple[int, int, int]) -> None:
    rows, inner, columns = shape  # the second is cheaper turned round

    def program(products: SharedProducts) -> tuple[Integers, ...]:
        left, right = uniform(products.rank, rows, inner), products.uniform((inner, columns))
        return left, right, products.matmul(left, right)

    left, right, result = _run(parties, program)
    assert np.array_equal(result, product(left, right))


@pytest.mark.parametrize("owners", [(0, -1), (1, -1), (-1, 1), (0, 1), (1, 1)])
def test_masks_with_owners(owners: tuple[int, int]) -> None:
    def program(products: SharedProducts) -> tuple[Integers, ...]:
        held = [products.holders(owner) for owner in owners]
        left, right = (
            products.uniform(shape) if products.rank in ranks else np.zeros(shape, np.int64)
            for shape, ranks in zip(((4, 3), (3, 2)), held, strict=True)
        )
        flat = left.ravel(), np.resize(right, 12)
        return left, right, products.matmul(left, right, *held), *flat, products.mul(*flat, *held)

    left, right, matrix, first, second, vector = _run(3, program)
    assert np.array_equal(matrix, product(left, right))
    assert np.array_equal(vector, first * second)


@pytest.mark.parametrize("parties", PARTIES)
def test_products_of_vectors(parties: int) -> None:
    def program(products: SharedProducts) -> tuple[Integers, ...]:
        left, right = uniform(products.rank, 3, 20), products.uniform((3, 20))
        return left, right, products.mul(left, right)

    left, right, result = _run(parties, program)
    assert np.array_equal(result, left * right)


@pytest.mark.parametrize(
    ("shape", "fits"),
    [
        ((4097, 4000, 10), True),  # L alone has too many ciphertexts, as its rows are padded to 8192
        ((10, 4000, 4097), True),
        ((2049, 5000, 1), True),
        ((64, 65537, 64), False),  # longer than noise allows
        ((5000, 3000, 4500), False),  # too many ciphertexts either way
        ((64, 65536, 64), True),
        ((2**24 + 1, 1, 3), True),
    ],
)
def test_a_plan_is_found_where_there_is_one(shape: tuple[int, int, int], fits: bool) -> None:
    found = _cheaper(*shape)
    assert (found is not None) == fits
    if found is not None:
        plan, straight = found
        assert (plan.rows, plan.inner, plan.columns) == (shape if straight else shape[::-1])


def test_products_longer_than_a_plan_allows() -> None:
    inner = MOST_TERMS + 1

    def program(products: SharedProducts) -> tuple[Integers, ...]:
        left, right = uniform(products.rank, 2, inner), products.uniform((inner, 1))
        return left, right, products.matmul(left, right)

    left, right, result = _run(2, program)
    assert np.array_equal(result, product(left, right))


def test_factors_may_lie_in_memory_column_by_column() -> None:
    def program(products: SharedProducts) -> tuple[Integers, ...]:
        left, right = uniform(products.rank, 3, 20).T, products.uniform((3, 20)).T
        return left, right, products.mul(left, right), left & 1, right & 1, products.conjunction(left & 1, right & 1)

    left, right, result, first, second, both = _run(2, program)
    assert np.array_equal(result, left * right)
    assert np.array_equal(both & 1, first & second & 1)


@pytest.mark.parametrize("parties", [2, 3, 4])
def test_bits_are_bits_and_even(parties: int) -> None:
    (bits,) = _run(parties, lambda products: (products.bits(6001),))
    assert set(np.unique(bits)) == {0, 1}
    assert abs(int(bits.sum()) - 3000.5) < 7 * math.sqrt(6001) / 2


def test_two_parties_share_the_work_of_what_is_long() -> None:
    (bits,) = _run(2, lambda products: (products.bits(8192 + 77),))
    assert set(np.unique(bits)) == {0, 1}


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize("shift", [1, 17, 63])
def test_truncation_pairs_are_exact(parties: int, shift: int) -> None:
    r, cut, top = _run(parties, lambda products: products.truncation_pairs(40, shift))
    assert np.array_equal(cut.view(np.uint64), r.view(np.uint64) >> np.uint64(shift))
    assert np.array_equal(top.view(np.uint64), r.view(np.uint64) >> np.uint64(63))
    assert len(np.unique(r)) == 40


def test_truncated_numbers_are_neighbours() -> None:
    numbers = np.array([0, 1, -1, 2**62 - 1, -(2**62) + 1, 12345 << 20, -(12345 << 20)])

    def program(products: SharedProducts) -> tuple[Integers, ...]:
        mask = uniform(9, len(numbers))
        return (products.truncated(numbers - mask if products.rank == 0 else mask, 20),)

    (cut,) = _run(2, program)
    assert set(np.unique(cut - (numbers >> 20))) <= {0, 1}
    with pytest.raises(InputError):
        _run(2, lambda products: products.truncation_pairs(4, 64))
