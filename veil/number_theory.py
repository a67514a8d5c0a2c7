"""Primes for number-theoretic transforms of length N, their roots of unity, and the order of transformed places.

Guarantee: primes are q = 1 mod 2N, found by a test that is exact below 3.4e14; roots are the smallest primitive 2N-th
ones. SEAL chooses both alike, so that residues here and there mean the same polynomial.

Sources: G. Jaeschke, "On strong pseudoprimes to several bases", Math. Comp. 61, 1993 (the test).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from veil.errors import ConfigError


def largest_primes(degree: int, bits: int, count: int) -> list[int]:
    """The `count` largest primes q = 1 mod 2N of exactly `bits` bits, largest first; bits up to 48.

    Raises `ConfigError` when there are not so many.
    """
    step = 2 * degree
    candidate, primes = ((1 << bits) - 1) // step * step + 1, list[int]()
    while len(primes) < count:
        if candidate <= 1 << (bits - 1):
            raise ConfigError(f"got {count} primes of {bits} bits wanted at degree {degree}, expected fewer")
        if candidate < 1 << bits and _is_prime(candidate):
            primes.append(candidate)
        candidate -= step
    return primes


def _is_prime(number: int) -> bool:
    if number < 2 or number % 2 == 0:
        return number == 2
    odd, twos = number - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    # These bases decide every number below 3.4e14 (Jaeschke 1993).
    for base in (2, 3, 5, 7, 11, 13, 17):
        if number == base:
            return True
        power = pow(base, odd, number)
        if power in (1, number - 1):
            continue
        for _ in range(twos - 1):
            power = power * power % number
            if power == number - 1:
                break
        else:
            return False
    return True


def smallest_root(degree: int, prime: int) -> int:
    """The smallest primitive 2N-th root of unity modulo `prime`."""
    generator = next(g for g in range(2, prime) if pow(g, (prime - 1) // 2, prime) == prime - 1)
    root = pow(generator, (prime - 1) // (2 * degree), prime)
    square, power, best = root * root % prime, root, root
    for _ in range(degree - 1):
        power = power * square % prime
        best = min(best, power)
    return best


def reversed_bits(count: int) -> NDArray[np.int64]:
    """int64[count]: the reversal of the bits of each number below a power of two."""
    places = np.arange(count)
    result = np.zeros(count, np.int64)
    for _ in range(count.bit_length() - 1):
        result = (result << 1) | (places & 1)
        places >>= 1
    return result
