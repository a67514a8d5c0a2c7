"""The primes of a ring, their roots of unity, and the tables that transforms read.

Guarantee: primes are the ones that SEAL's `CoeffModulus::Create` chooses for the same bit sizes and roots are the
smallest primitive ones, as in SEAL: residues of both mean the same polynomial (a test compares them).

Letters: N the degree, a power of two; q a prime with q = 1 mod 2N; psi its smallest primitive 2N-th root of unity;
brv(i) the reversal of the bits of i. Place i of a transformed polynomial holds its value at psi^(2 brv(i) + 1).

Sources: P. Longa, M. Naehrig, eprint 2016/504 (the transform); D. Harvey, arXiv 1205.2926 (lazy butterflies with
Shoup's multiplication, here on 32-bit words).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from veil.errors import ConfigError
from veil.number_theory import largest_primes, reversed_bits, smallest_root

DEGREES = (2048, 4096, 8192)
# A butterfly keeps values below 8q in 32 bits, and a product of two residues leaves room for 2^8 more in 64.
MOST_BITS = 28
# The last stages of a transform run on this many columns of the transposed array, so that their loops are long; 4^3.
COLUMNS = 64
# Coefficients of a term that lie beside each other in an index (`accumulate`).
TILE = 64

Words = NDArray[np.uint32]


@lru_cache(maxsize=64)
def find_primes(degree: int, bits: tuple[int, ...]) -> tuple[int, ...]:
    """Distinct primes of exactly those sizes, q = 1 mod 2N, the largest first for each size.

    A size that is wanted k times takes the k largest primes, handed out in rising order of preference as SEAL does:
    the first place gets the smallest of the k.
    """
    if degree not in DEGREES:
        raise ConfigError(f"got ring degree {degree}, expected one of {', '.join(map(str, DEGREES))}")
    found: dict[int, list[int]] = {}
    for size in set(bits):
        if not 20 <= size <= MOST_BITS:
            raise ConfigError(f"got a prime of {size} bits, expected 20 to {MOST_BITS}")
        found[size] = largest_primes(degree, size, bits.count(size))
    return tuple(found[size].pop() for size in bits)


def galois_places(degree: int, element: int) -> NDArray[np.int64]:
    """int64[N]: place i of sigma(f) is place p[i] of f, for sigma: X -> X^element, both transformed."""
    reverse = reversed_bits(degree)
    exponent = (element * (2 * reverse + 1)) % (2 * degree)
    return reverse[(exponent - 1) // 2]


@dataclass(frozen=True, eq=False)
class Moduli:
    """A ring Z[X] / (X^N + 1) modulo several primes. Tables are uint32[primes, N].

    forward, forward_shoup: psi^brv(i) and floor(2^32 times it / q), for the stages whose loops are long. The _late ones
    are the same numbers in the order in which the last stages, on transposed data, read them. inverse*: for the way
    back, with 1 / N in `scale`.
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
    scale: Words = field(repr=False)
    scale_shoup: Words = field(repr=False)

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """int64[N]: place i of the kernels' arrays holds the value of place order[i]: rows of 64 as columns."""
        return np.ascontiguousarray(np.arange(self.degree).reshape(-1, COLUMNS).T).ravel()

    @cached_property
    def place(self) -> NDArray[np.int64]:
        """int64[N]: the inverse of `order`."""
        return np.argsort(self.order)

    @cached_property
    def zeros(self) -> Words:
        """uint32[N / 2] of zeros (`ntt`)."""
        return np.zeros(self.degree // 2, np.uint32)

    @property
    def q(self) -> NDArray[np.uint64]:
        """uint64[primes]."""
        return np.array(self.primes, np.uint64)

    @property
    def modulus(self) -> int:
        """The product of the primes."""
        product = 1
        for prime in self.primes:
            product *= prime
        return product


@lru_cache(maxsize=32)
def moduli(degree: int, primes: tuple[int, ...]) -> Moduli:
    """Tables for primes that `find_primes` gave."""
    rows = [_tables(degree, prime) for prime in primes]
    columns = [np.ascontiguousarray(np.stack(column)) for column in zip(*rows, strict=True)]
    return Moduli(degree, primes, *columns)


def _tables(degree: int, prime: int) -> list[Words]:
    root = smallest_root(degree, prime)
    reverse = reversed_bits(degree)
    result: list[Words] = []
    for base in (root, pow(root, -1, prime)):
        powers = [1]
        for _ in range(degree - 1):
            powers.append(powers[-1] * base % prime)
        table = np.array(powers, np.uint64)[reverse]
        late = table[_late_order(degree)]
        for values in (table, late):
            result += [values.astype(np.uint32), ((values << np.uint64(32)) // np.uint64(prime)).astype(np.uint32)]
    scale = pow(degree, -1, prime)
    result += [np.array([scale], np.uint32), np.array([(scale << 32) // prime], np.uint32)]
    return result


def _late_order(degree: int) -> NDArray[np.int64]:
    """Which twiddle each row of each late stage needs: stage with m groups a row, group i, row r -> R m + r m + i."""
    rows = degree // COLUMNS
    order = []
    groups = 1
    while groups < COLUMNS:
        for group in range(groups):
            order.append(rows * groups + np.arange(rows) * groups + group)
        groups *= 2
    return np.concatenate([np.concatenate(order), np.zeros(rows, np.int64)])
