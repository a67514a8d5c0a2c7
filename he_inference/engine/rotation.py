"""Rotations of ciphertexts under any number of data and special primes: those of histories have three of each.

Guarantee: exact modular arithmetic, the same for any number of threads and of ciphertexts that come together. Errors
are those of `he_inference.ring.switch`, the form for two and two primes.

All is kept transformed, in the order of kernels. A ciphertext on its way through several rotations is held as

    first    uint32[rows, data + special, N]    the first half: residues modulo Q, and a part to be divided by P yet
    second   uint32[rows, data, N]              the second half

so that the first half is divided by P, the product of the special primes, once. For a key (k0, k1) and d, which is
sigma(second) lifted from Q to Q P:

    first  <- sigma(first) + d k0           data residues of keys are divided by P beforehand
    second <- d k1 / P, rounded

Source: K. Han, D. Ki, eprint 2019/688, section 3; J.-P. Bossuat et al., eprint 2020/1203, section 5 (lazy division).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from he_inference.engine.rotation_kernels import add_all, divide_all, lift_constants, rotate_all
from he_inference.ring.moduli import Words, moduli
from he_inference.ring.ntt import forward_tables, inverse_tables
from he_inference.ring.switch import Places, places_of


@dataclass(frozen=True, eq=False)
class Held:
    """Ciphertexts between rotations; see the module."""

    first: Words = field(repr=False)
    second: Words = field(repr=False)


class Rotations:
    """Everything that depends on the primes alone."""

    def __init__(self, degree: int, data: tuple[int, ...], special: tuple[int, ...]) -> None:
        """Use `rotations_of`."""
        self.data = moduli(degree, data)
        self._ring = moduli(degree, data + special)
        self._special = special
        self._q = np.array(self._ring.primes, np.uint32)
        self._q_inverse = np.array([pow(q, -1, 1 << 32) for q in self._ring.primes], np.uint32)
        self._tables = (self._ring.zeros, *forward_tables(self._ring), *inverse_tables(self._ring))
        self._up = lift_constants(data, special, degree, divide=False)
        self._down = lift_constants(special, data, degree, divide=True)

    def places(self, element: int) -> Places:
        """Where each place of a rotated polynomial comes from."""
        return places_of(self.data, element)

    def prepared(self, keys: Words) -> Words:
        """Keys uint32[elements, 2, data + special, N] as they travel -> the form that kernels take.

        In their order, times 2^32 (for Montgomery's multiplication), the data primes' part divided by P.
        """
        product, data = math.prod(self._special), len(self.data.primes)
        factors = [(1 << 32) * (pow(product, -1, q) if i < data else 1) % q for i, q in enumerate(self._ring.primes)]
        scaled = keys[..., self.data.order].astype(np.uint64) * np.array(factors, np.uint64)[:, None]
        return (scaled % self._q.astype(np.uint64)[:, None]).astype(np.uint32)

    def held(self, ciphertexts: Words) -> Held:
        """Of uint32[rows, 2, data, N]."""
        rows, _, data, n = ciphertexts.shape
        first = np.zeros((rows, len(self._q), n), np.uint32)
        first[:, :data] = ciphertexts[:, 0]
        return Held(first, np.ascontiguousarray(ciphertexts[:, 1]))

    def rotated(self, held: Held, places: Places, keys: Words) -> Held:
        """One rotation of each row; keys: uint32[rows, 2, data + special, N], `prepared`."""
        rows, primes, n = held.first.shape
        first, second = np.empty_like(held.first), np.empty_like(held.second)
        work = np.empty((rows, 2, primes, n), np.uint32)
        rotate_all(
            held.first, held.second, places, keys, first, second, work, self._q, self._q_inverse, *self._tables,
            *self._up, *self._down,
        )  # fmt: skip
        return Held(first, second)

    def add(self, held: Held, ciphertexts: Words) -> None:
        """Adds uint32[rows, 2, data, N] to what is held."""
        add_all(held.first, np.ascontiguousarray(ciphertexts[:, 0]), self._q)
        add_all(held.second, np.ascontiguousarray(ciphertexts[:, 1]), self._q)

    def added(self, held: Held, other: Held) -> None:
        """Adds what is held elsewhere."""
        add_all(held.first, other.first, self._q)
        add_all(held.second, other.second, self._q)

    def divided(self, held: Held) -> Words:
        """uint32[rows, 2, data, N]: the ciphertexts, divided by P where they have to be."""
        rows, data, n = held.second.shape
        result = np.empty((rows, 2, data, n), np.uint32)
        result[:, 1] = held.second
        divide_all(held.first, result, np.empty_like(held.first), self._q, *self._tables, *self._down)
        return result


@lru_cache(maxsize=16)
def rotations_of(degree: int, data: tuple[int, ...], special: tuple[int, ...]) -> Rotations:
    """Tables; special primes have at least as many bits as data primes together (`Parameters`)."""
    return Rotations(degree, data, special)


def steps(turn: Rotations, ciphertexts: Words, places: Places, keys: Words, count: int) -> Words:
    """uint32[count, rows, 2, data, N]: ciphertexts rotated 0, 1, 2, ... times."""
    now = turn.held(ciphertexts)
    all_held = [now]
    for _ in range(count - 1):
        now = turn.rotated(now, places, keys)
        all_held.append(now)
    first = np.concatenate([held.first for held in all_held])
    second = np.concatenate([held.second for held in all_held])
    return turn.divided(Held(first, second)).reshape(count, *ciphertexts.shape)


def horner(turn: Rotations, sums: Words, places: Places, keys: Words) -> Held:
    """sums[0] + rotate(sums[1] + rotate(sums[2] + ...)) of uint32[groups, rows, 2, data, N]."""
    total = turn.held(sums[-1])
    for group in range(len(sums) - 2, -1, -1):
        total = turn.rotated(total, places, keys)
        turn.add(total, sums[group])
    return total


def images(turn: Rotations, held: Held, places: Places, keys: Words, count: int) -> Held:
    """The sum of what is held and of its rotations once, twice, ..., count - 1 times."""
    total = Held(held.first.copy(), held.second.copy())
    for _ in range(count - 1):
        total = turn.rotated(total, places, keys)
        turn.added(total, held)
    return total
