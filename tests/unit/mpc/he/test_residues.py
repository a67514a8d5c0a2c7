"""Arithmetic on residues against Python's integers."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.mpc.he.numbers import uniform
from veil.mpc.he import residues
from veil.mpc.he.ring import Ring, Words, find_primes, ring
from veil.mpc.he.spaces import DEGREE, kept, rounding, whole


def _random(made: Ring, *shape: int, seed: int = 0) -> Words:
    drawn = np.random.default_rng(seed).integers(0, 2**32, (*shape[:-1], len(made.primes), shape[-1]), dtype=np.uint32)
    return (drawn % made.q[:, None]).astype(np.uint32)


def _numbers(values: Words, made: Ring) -> list[int]:
    """The numbers below the product of the primes with residues uint32[primes, n]."""
    units = [made.modulus // q * pow(made.modulus // q, -1, q) for q in made.primes]
    return [sum(int(r) * u for r, u in zip(column, units, strict=True)) % made.modulus for column in values.T]


def test_signed_and_long_numbers() -> None:
    values = uniform(1, 300)
    out = residues.of_signed(values, whole())
    assert out.tolist() == [[int(v) % q for v in values] for q in whole().primes]
    words = uniform(2, 3, 200).view(np.uint64)
    words[:, 7] = 2**64 - 1
    made = ring(DEGREE, find_primes(DEGREE, 30, 6))
    exact = [sum(int(w) << (64 * i) for i, w in enumerate(column)) for column in words.T]
    assert residues.of_words(words, made).tolist() == [[x % q for x in exact] for q in made.primes]


def test_joined_numbers_are_those_of_their_residues() -> None:
    for count in (2, 4, 6):
        made = ring(DEGREE, find_primes(DEGREE, 30, count))
        values = _random(made, 400)
        values[:, 0], values[:, 1] = 0, made.q - 1
        exact = _numbers(values, made)
        low, high = residues.joined(values, made)
        assert [int(a) + (int(b) << 64) for a, b in zip(low, high, strict=True)] == [x % 2**128 for x in exact]


def test_products_and_factors() -> None:
    made = whole()
    q = made.q.astype(np.uint64)[:, None]
    total, left, right = (_random(made, *shape, seed=i) for i, shape in enumerate([(3, 500), (3, 500), (500,)]))
    left[0], right[:] = made.q[:, None] - 1, np.where(right % 2, right, made.q[:, None] - 1)
    expected = (total + left.astype(np.uint64) * right % q) % q
    residues.plus_product(total, left, right, made)
    assert np.array_equal(total, expected)
    factors = tuple(prime - 2 for prime in made.primes)
    residues.times_each(total, factors, made)
    assert np.array_equal(total, expected * np.array(factors, np.uint64)[:, None] % q)
    with pytest.raises(ValueError, match="expected"):
        residues.plus_product(total, left[:1], right, made)


@pytest.mark.parametrize("length", [8, 128, 1024])
def test_sums_of_products_at_their_highest(length: int) -> None:
    made, count = whole(), 130  # more than are summed without a reduction
    q = made.q.astype(np.uint64)[:, None]
    base = np.broadcast_to(made.q[:, None] - 1, (count, 2, len(made.primes), DEGREE)).astype(np.uint32)
    base[::3] = _random(made, len(base[::3]), 2, DEGREE)
    short = _random(made, count, length)
    spread = residues.spread(short, DEGREE)
    places = np.repeat(short, DEGREE // length, axis=-1)[..., made.transposed]
    expected = np.zeros((2, len(made.primes), DEGREE), np.uint64)
    for row, factor in zip(base, places, strict=True):
        expected = (expected + row.astype(np.uint64) * factor) % q
    assert np.array_equal(residues.sum_of_products(base, spread, made), expected)
    assert length * 64 <= DEGREE or spread.shape[-2] == length * 64 // DEGREE
    with pytest.raises(ValueError, match="expected"):
        residues.sum_of_products(base, spread[:-1], made)


def test_rounding_is_to_the_nearest() -> None:
    made, less = whole(), kept()
    divisor = made.modulus // less.modulus
    values = _random(made, 2, 300)
    # Just below and above a half, and at the ends.
    half, little = divisor // 2, divisor >> 45
    edges = [0, made.modulus - 1, half - little, half + little, made.modulus - half - little]
    values[0][:, : len(edges)] = np.array([[e % q for e in edges] for q in made.primes], np.uint32)
    out = rounding()(values)
    for row, result in zip(values, out, strict=True):
        nearest = [(2 * x + divisor) // (2 * divisor) % less.modulus for x in _numbers(row, made)]
        assert _numbers(result, less) == nearest


def test_sums() -> None:
    made = whole()
    left, right = _random(made, 200), _random(made, 200, seed=1)
    left[:, :3], right[:, :3] = 0, 0
    exact = (left.astype(np.int64) - right) % made.q[:, None].astype(np.int64)
    assert np.array_equal(residues.plus(left, residues.negative(right, made), made), exact)
