"""Conversion between bases against Python's integers."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from he_inference.ring.convert import conversion, converted
from he_inference.ring.moduli import find_primes
from he_inference.ring.switch import switching
from veil.errors import ConfigError

_N = 2048
_PRIMES = find_primes(_N, (27, 27, 27, 28))
_SLACK = Fraction(1, 2**20)


def _convert(x: int, source: tuple[int, ...], target: tuple[int, ...], *, divide: bool, lazy: bool) -> list[int]:
    """Residues of x (or x / A, rounded) modulo the targets, from those of N x as an inverse transform leaves them."""
    rows = np.zeros((4, _N), np.uint32)
    for i, prime in enumerate(source):
        rows[i] = x * _N % prime + (prime if lazy else 0)
    made = conversion(source, target, _N, divide=divide)
    converted(rows[0], rows[1], rows[2], rows[3], np.zeros(_N // 2, np.uint32), made.constants())
    assert (rows[2:] == rows[2:, :1]).all()
    for i, prime in enumerate(target):
        assert rows[2 + i, 0] < 8 * prime
    return [int(rows[2 + i, 0]) % prime for i, prime in enumerate(target)]


_Q, _P = _PRIMES[0] * _PRIMES[1], _PRIMES[2] * _PRIMES[3]


@settings(max_examples=300, deadline=None)
@given(x=st.integers(0, _Q - 1), lazy=st.booleans())
@example(0, False)
@example(1, True)
@example(_Q - 1, False)
@example(_Q // 2, False)
@example(_Q // 2 + 1, True)
@example(_PRIMES[0], False)
@example(_Q - _PRIMES[1], True)
def test_a_lift_is_the_integer_of_smallest_size(x: int, lazy: bool) -> None:
    got = _convert(x, _PRIMES[:2], _PRIMES[2:], divide=False, lazy=lazy)
    candidates = [y for y in (x, x - _Q) if abs(Fraction(y, _Q)) <= Fraction(1, 2) + _SLACK]
    assert got in [[y % prime for prime in _PRIMES[2:]] for y in candidates]


@settings(max_examples=300, deadline=None)
@given(x=st.integers(0, _Q * _P - 1), lazy=st.booleans())
@example(0, False)
@example(_P // 2, False)
@example(_P // 2 + 1, True)
@example(_Q * _P - 1, False)
@example(_Q * _P // 2, True)
def test_a_division_rounds(x: int, lazy: bool) -> None:
    """(x - [x]_P) / P modulo the data primes, where the conversion gives [x]_P / P."""
    part = _convert(x % _P, _PRIMES[2:], _PRIMES[:2], divide=True, lazy=lazy)
    got = [(x * pow(_P, -1, prime) - p) % prime for p, prime in zip(part, _PRIMES[:2], strict=True)]
    exact = Fraction(x, _P)
    near = [y for y in (x // _P, x // _P + 1) if abs(y - exact) <= Fraction(1, 2) + _SLACK]
    assert got in [[y % prime for prime in _PRIMES[:2]] for y in near]


def test_other_numbers_of_primes_are_refused() -> None:
    with pytest.raises(ConfigError):
        conversion(_PRIMES[:1], _PRIMES[1:3], _N, divide=False)
    with pytest.raises(ConfigError):
        switching(_N, _PRIMES[:3], _PRIMES[3:])
