"""Primes and the tables that transforms read."""

from __future__ import annotations

import numpy as np
import pytest

from veil.errors import ConfigError
from veil.mpc.he.ring import find_primes, ring
from veil.number_theory import reversed_bits, smallest_root

DEGREE = 8192


def test_primes_are_distinct_and_of_their_size() -> None:
    primes = find_primes(DEGREE, 30, 6)
    assert len(set(primes)) == 6
    assert all(prime % (2 * DEGREE) == 1 and prime.bit_length() == 30 for prime in primes)
    for prime in primes:
        assert all(prime % divisor for divisor in range(2, 32768))
    with pytest.raises(ConfigError):
        find_primes(DEGREE, 31, 1)
    with pytest.raises(ConfigError):
        ring(DEGREE, (primes[0], primes[0]))


def test_tables_hold_powers_of_the_smallest_root() -> None:
    prime = find_primes(64, 20, 1)[0]
    made = ring(64, (prime,))
    root = smallest_root(64, prime)
    assert [r for r in range(2, root + 1) if pow(r, 64, prime) == prime - 1] == [root]
    powers = [pow(root, int(i), prime) for i in reversed_bits(64)]
    assert made.forward[0].tolist() == powers
    assert made.forward_shoup[0].tolist() == [(power << 32) // prime for power in powers]
    assert (made.forward[0].astype(np.uint64) * made.inverse[0] % prime == 1).all()
