"""Rings Z[X] / (X^N + 1) modulo several primes: their primes, roots of unity, and the tables that transforms read.

Guarantee: primes are q = 1 mod 2N, found by a test that is exact below 3.4e14, and all distinct; roots are the smallest
primitive ones, as in SEAL, so that residues of both mean the same polynomial.

Letters: N the degree, a power of two; psi the smallest primitive 2N-th root of unity modulo q; brv(i) the reversal of
the bits of i. Place i of a transformed polynomial holds its value at psi^(2 brv(i) + 1); kernels keep the places in the
order `transposed`: as rows of 64, column after column.

Sources: P. Longa, M. Naehrig, eprint 2016/504 (the transform); D. Harvey, arXiv 1205.2926 (lazy butterflies).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from veil.errors import ConfigError
from veil.number_theory import largest_primes, reversed_bits, smallest_root

# A butterfly keeps values below 4q in 32 bits.
MOST_BITS = 30
# The last six stages of a transform run on this many columns of the transposed array, so that their loops are long.
COLUMNS = 64

Words = NDArray[np.uint32]


def find_primes(degree: int, bits: int, count: int) -> tuple[int, ...]:
    """The `count` largest primes q = 1 mod 2N below 2^bits, largest first, all of exactly that many bits."""
    if not 20 <= bits <= MOST_BITS:
        raise ConfigError(f"got primes of {bits} bits, expected 20 to {MOST_BITS}")
    return tuple(largest_primes(degree, bits, count))


def shoup(values: NDArray[np.uint64], prime: int) -> Words:
    """uint32: floor(2^32 v / q), the companion of v that a product by it needs."""
    return ((values << np.uint64(32)) // np.uint64(prime)).astype(np.uint32)


@dataclass(frozen=True, eq=False)
class Ring:
    """A ring and its tables, uint32[primes, N] each.

    forward, inverse: psi^brv(i) and its inverse, with their companions (`shoup`); the _late ones in the order in which
    the last six stages, on transposed data, read them.
    """

    degree: int
    primes: tuple[int, ...]
    forward: Words = field(repr=False)
    forward_shoup: Words = field(repr=False)
    forward_late: Words = field(repr=False)
    forward_late_shoup: Words = field(repr=False)
    inverse: Words = field(repr=False)
    inverse_shoup: Words = field(repr=False)
    inverse_late: Words = field(repr=False)
    inverse_late_shoup: Words = field(repr=False)

    @cached_property
    def q(self) -> Words:
        """uint32[primes]."""
        return np.array(self.primes, np.uint32)

    @cached_property
    def constants(self) -> Words:
        """uint32[primes, 6]: 1 / N, 2^32 and 1 modulo q, each with its companion."""
        rows = [[pow(self.degree, -1, q), (1 << 32) % q, 1] for q in self.primes]
        pairs = [
            [number for value in row for number in (value, (value << 32) // q)]
            for row, q in zip(rows, self.primes, strict=True)
        ]
        return np.array(pairs, np.uint32)

    @cached_property
    def modulus(self) -> int:
        """The product of the primes."""
        return math.prod(self.primes)

    @cached_property
    def transposed(self) -> NDArray[np.int64]:
        """int64[N]: place i of the kernels' arrays holds the value of place transposed[i]."""
        return np.ascontiguousarray(np.arange(self.degree).reshape(-1, COLUMNS).T).ravel()


@lru_cache(maxsize=16)
def ring(degree: int, primes: tuple[int, ...]) -> Ring:
    """The ring of such primes, made once in a process (10 ms a prime)."""
    if len(set(primes)) != len(primes):
        raise ConfigError("got a prime twice, expected distinct ones")
    columns = zip(*(_tables(degree, prime) for prime in primes), strict=True)
    return Ring(degree, primes, *(np.ascontiguousarray(np.stack(column)) for column in columns))


def _tables(degree: int, prime: int) -> list[Words]:
    root, result = smallest_root(degree, prime), list[Words]()
    for psi in (root, pow(root, -1, prime)):
        powers = np.ones(1, np.uint64)
        while len(powers) < degree:
            powers = np.concatenate([powers, powers * np.uint64(pow(psi, len(powers), prime)) % np.uint64(prime)])
        table = powers[reversed_bits(degree)]
        for values in (table, table[_late_order(degree)]):
            result += [values.astype(np.uint32), shoup(values, prime)]
    return result


def _late_order(degree: int) -> NDArray[np.int64]:
    """Which root each row of each late stage needs: of g groups a row, group i of row r takes number R g + r g + i."""
    rows = degree // COLUMNS
    order, groups = [], 1
    while groups < COLUMNS:
        order += [rows * groups + np.arange(rows) * groups + group for group in range(groups)]
        groups *= 2
    return np.concatenate([*order, np.zeros(rows, np.int64)])
