"""Exact coins: arguments, determinism, and generators that are broken. The laws: tests/statistical/test_laplace.py."""

from __future__ import annotations

import numpy as np
import pytest

from veil.errors import InputError, StateError
from veil.privacy.coins import LARGEST, below, exp_coins, unit_coins
from veil.privacy.noise import keyed_source

KEY = b"\x07" * 32


@pytest.mark.parametrize("bound", [1, 2, 3, 7, 16, 17, 255, 4096, 4097, 2**28 + 1, 2**52 - 1, LARGEST])
def test_draws_stay_below_their_bound(bound: int) -> None:
    values = below(bound, 2000, keyed_source(KEY, b"bound"))
    assert values.dtype == np.int64
    assert 0 <= values.min() <= values.max() < bound
    if bound <= 16:
        assert set(values.tolist()) == set(range(bound))
    if bound > 2**28:
        assert values.max() > bound * 0.99  # the whole range, not a part of it


def test_a_draw_above_the_last_multiple_is_drawn_again() -> None:
    # 3 * 85 = 255: of one byte, 255 alone is refused
    bytes_given = iter([b"\xff\x00", b"\x04"])
    assert below(3, 2, lambda size: next(bytes_given)).tolist() == [0, 1]


def test_coins_are_true_for_zero_and_keep_their_places() -> None:
    numerator = np.array([0, 10**9, 0, 10**9, 0], np.int64)
    coins = exp_coins(numerator, 1, keyed_source(KEY, b"places"))
    assert coins.tolist() == [True, False, True, False, True]


def test_the_same_source_throws_the_same_coins() -> None:
    numerator = np.arange(100, dtype=np.int64)
    first, second = (exp_coins(numerator, 37, keyed_source(KEY, b"again")) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_a_generator_that_never_fails_is_found() -> None:
    with pytest.raises(StateError, match="generator is broken"):
        unit_coins(3, lambda size: bytes(size))


@pytest.mark.parametrize(
    "call",
    [
        lambda source: below(0, 1, source),
        lambda source: below(LARGEST + 1, 1, source),
        lambda source: below(3, -1, source),
        lambda source: exp_coins(np.array([-1]), 2, source),
        lambda source: exp_coins(np.array([1]), 0, source),
        lambda source: exp_coins(np.array([1.0]), 1, source),  # type: ignore[arg-type]
    ],
)
def test_arguments_out_of_range_are_refused(call: object) -> None:
    with pytest.raises(InputError):
        call(keyed_source(KEY, b"refused"))  # type: ignore[operator]
