"""Uniform polynomials from seeds."""

from __future__ import annotations

import numpy as np

from he_inference.ring.expand import uniform
from he_inference.ring.moduli import find_primes

_PRIME = find_primes(4096, (27,))[0]


def test_a_polynomial_is_a_function_of_seed_label_and_prime() -> None:
    first = uniform(b"s" * 32, "query 0", _PRIME, 4096)
    assert np.array_equal(first, uniform(b"s" * 32, "query 0", _PRIME, 4096))
    for other in (
        uniform(b"t" * 32, "query 0", _PRIME, 4096),
        uniform(b"s" * 32, "query 1", _PRIME, 4096),
        uniform(b"s" * 32, "query 0", find_primes(4096, (27, 27))[0], 4096),
    ):
        assert (first == other).mean() < 0.01
    # A frozen value: another version must expand the same seed to the same polynomial.
    assert uniform(bytes(32), "x", _PRIME, 4)[:4].tolist() == [90672505, 53440792, 111640010, 129511201]


def test_numbers_are_uniform_below_the_prime() -> None:
    prime = 786433  # 1.5 * 2^19 + 1: a quarter of all 20-bit numbers is rejected
    values = uniform(b"u" * 32, "u", prime, 1 << 18)
    assert values.max() < prime
    counts = np.bincount(values * np.uint64(64) // np.uint64(prime), minlength=64)
    chi_squared = float(((counts - 4096.0) ** 2 / 4096).sum())
    assert chi_squared < 63 + 6 * np.sqrt(2 * 63)
