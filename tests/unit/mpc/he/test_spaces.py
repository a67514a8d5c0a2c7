"""Plaintexts: scaling up by Q / t and down again, against Python's integers."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.mpc.he.numbers import uniform
from veil.mpc.he.spaces import RING, Space, kept, slots, whole


@pytest.mark.parametrize("space", [RING, *slots()], ids=["ring", "first", "second", "third"])
def test_messages_are_scaled_to_the_nearest(space: Space) -> None:
    modulus, made = space.modulus, whole()
    message = [int(m) % modulus for m in uniform(1, 100)]
    scaled = [m * space.factor % modulus for m in message]
    centred = [x - modulus if x > modulus // 2 else x for x in scaled]
    rows = space.scaled(np.array([(x + 2**63) % 2**64 - 2**63 for x in centred], np.int64))
    for m, column in zip(message, rows.T, strict=True):
        nearest = (2 * made.modulus * m + modulus) // (2 * modulus)
        assert column.tolist() == [nearest % q for q in made.primes]


@pytest.mark.parametrize("space", [RING, *slots()], ids=["ring", "first", "second", "third"])
def test_numbers_are_rounded_and_their_distance_told(space: Space) -> None:
    less, t = kept(), space.modulus
    numbers = [int.from_bytes(np.random.default_rng(n).bytes(10), "little") % less.modulus for n in range(50)]
    numbers += [0, less.modulus - 1, less.modulus // 2]
    values = np.array([[x % q for x in numbers] for q in less.primes], np.uint32)
    rounded, distances = space.rounded(values)
    for place, x in enumerate(numbers):
        nearest = (2 * t * x + less.modulus) // (2 * less.modulus)
        exact = (t * x - nearest * less.modulus) / less.modulus
        for row, modulus in zip(rounded, space.primes or (2**64,), strict=True):
            assert int(row[place]) % modulus == nearest % modulus
        assert abs(float(distances[place]) - exact) < 2**-24


def test_floods_take_about_half_of_what_decryption_bears() -> None:
    for space in (RING, *slots()):
        assert 0.25 < 2**space.flood_bits * space.modulus / whole().modulus <= 0.52
