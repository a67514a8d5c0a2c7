"""Arithmetic on residues of several primes at once: reduction, products, sums of products, rounding to fewer primes.

Guarantee: every result is the residue below its prime, exactly; shapes are checked here, so that kernels need not.

All arrays of residues are uint32[..., primes, n]. Reduction of a 64-bit number x = h 2^32 + l takes Shoup's products
h (2^32 mod q) and l 1, each below 2q. Rounding to fewer primes: S. Halevi, Y. Polyakov, V. Shoup, eprint 2018/117,
section 2.4, with the quotient by floating point; it is off by one at worst for a number within 2^-50 of a half, which
moves the result by one unit of the noise.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from veil.mpc.he.jit import kernel, small
from veil.mpc.he.ntt import times
from veil.mpc.he.ring import COLUMNS, Ring, Words

u32 = np.uint32
u64 = np.uint64
Longs = NDArray[np.uint64]
Integers = NDArray[np.int64]
# So many products of two residues below 2^29, and what is left of the sum before them, stay below 2^64.
_TERMS = 60


@small
def below(v: Any, q: Any) -> Any:
    """v mod q, for v below 4q."""
    w = min(v, u32(v - u32(2 * q)))
    return min(w, u32(w - q))


@small
def reduced(x: Any, constants: Any, q: Any) -> Any:
    """x mod q for 64 bits; constants: a row of `Ring.constants`."""
    high = times(u32(x >> u64(32)), constants[2], constants[3], q)
    low = times(u32(x & u64(0xFFFFFFFF)), constants[4], constants[5], q)
    return below(u32(high + low), q)


@kernel
def _of_signed(values, out, qs, constants) -> None:  # type: ignore[no-untyped-def]
    for p in range(qs.size):
        q = qs[p]
        wrap = u32(q - below(times(constants[p, 2], constants[p, 2], constants[p, 3], q), q))  # -2^64
        for j in range(values.size):
            r = reduced(u64(values[j]), constants[p], q)
            r = u32(r + (wrap if values[j] < 0 else u32(0)))
            out[p, j] = min(r, u32(r - q))


@kernel
def _of_words(words, out, qs, constants) -> None:  # type: ignore[no-untyped-def]
    for p in range(qs.size):
        q = qs[p]
        base = below(times(constants[p, 2], constants[p, 2], constants[p, 3], q), q)  # 2^64
        companion = u32((u64(base) << u64(32)) // u64(q))
        out[p] = 0
        for w in range(words.shape[0] - 1, -1, -1):
            for j in range(words.shape[1]):
                high = times(out[p, j], base, companion, q)
                out[p, j] = below(u32(high + reduced(words[w, j], constants[p], q)), q)


@kernel
def _times_each(values, factors, companions, qs) -> None:  # type: ignore[no-untyped-def]
    for row in range(values.shape[0]):
        p = row % qs.size
        q = qs[p]
        for j in range(values.shape[1]):
            v = times(values[row, j], factors[p], companions[p], q)
            values[row, j] = min(v, u32(v - q))


@kernel
def _plus_product(total, left, right, qs, constants) -> None:  # type: ignore[no-untyped-def]
    for row in range(total.shape[0]):
        p = row % qs.size
        q = qs[p]
        other = row % right.shape[0]
        for j in range(total.shape[1]):
            product = u64(left[row, j]) * u64(right[other, j]) + u64(total[row, j])
            total[row, j] = reduced(product, constants[p], q)


@kernel
def _sum_of_products(base, factors, out, qs, constants, terms) -> None:  # type: ignore[no-untyped-def]
    # base[u, h, p, N], factors[u, p, groups, N / 64] -> out[h, p, N]
    rows = base.shape[3] // COLUMNS
    per_group = COLUMNS // factors.shape[2]
    tile = 8  # columns whose sums stay in the innermost cache
    sums = np.empty(tile * rows, np.uint64)
    for h in range(base.shape[1]):
        for p in range(qs.size):
            q = qs[p]
            for first in range(0, COLUMNS, tile):
                sums[:] = 0
                for u in range(base.shape[0]):
                    if u % terms == terms - 1:
                        for j in range(sums.size):
                            sums[j] = u64(reduced(sums[j], constants[p], q))
                    for c in range(tile):
                        source = base[u, h, p, (first + c) * rows : (first + c + 1) * rows]
                        factor = factors[u, p, (first + c) // per_group]
                        total = sums[c * rows : (c + 1) * rows]
                        for r in range(rows):
                            total[r] += u64(source[r]) * u64(factor[r])
                target = out[h, p, first * rows : (first + tile) * rows]
                for j in range(sums.size):
                    target[j] = reduced(sums[j], constants[p], q)


@kernel
def _rounded(values, out, kept, qs, constants, inverses, weights, back) -> None:  # type: ignore[no-untyped-def]
    # values[row, P, n] -> out[row, kept, n]; tables of `Rounding`.
    dropped = qs.size - kept
    n = values.shape[2]
    y = np.empty((dropped, n), np.uint32)
    quotient = np.empty(n, np.uint32)
    for row in range(values.shape[0]):
        parts = np.full(n, 0.5)
        for d in range(dropped):
            q = qs[kept + d]
            for j in range(n):
                v = times(values[row, kept + d, j], inverses[d, 0], inverses[d, 1], q)
                v = min(v, u32(v - q))
                y[d, j] = v
                parts[j] += v / np.float64(q)
        for j in range(n):
            quotient[j] = u32(parts[j])
        for k in range(kept):
            q = qs[k]
            for j in range(n):
                total = u64(quotient[j]) * u64(weights[k, dropped])
                for d in range(dropped):
                    total += u64(y[d, j]) * u64(weights[k, d])
                v = u32(values[row, k, j] + u32(q - reduced(total, constants[k], q)))
                v = times(v, back[k, 0], back[k, 1], q)
                out[row, k, j] = min(v, u32(v - q))


@kernel
def _joined(values, out, qs, inverses, weights) -> None:  # type: ignore[no-untyped-def]
    # Mixed radix, digit by digit: values[p] becomes the digit of weight q_0 ... q_(p-1), given modulo 2^128 in two
    # words; out[2, n] sums them modulo 2^128. Primes of one size.
    mask = u64(0xFFFFFFFF)
    out[:] = 0
    for p in range(qs.size):
        q = qs[p]
        for d in range(p):
            for j in range(out.shape[1]):
                digit = min(values[d, j], u32(values[d, j] - q))
                v = times(u32(values[p, j] + u32(q - digit)), inverses[p, d, 0], inverses[p, d, 1], q)
                values[p, j] = min(v, u32(v - q))
        low, high = weights[p, 0], weights[p, 1]
        for j in range(out.shape[1]):
            digit = u64(values[p, j])
            first = digit * (low & mask)
            second = digit * (low >> u64(32)) + (first >> u64(32))
            part = (second << u64(32)) | (first & mask)
            total = out[0, j] + part
            out[1, j] += digit * high + (second >> u64(32)) + u64(total < part)
            out[0, j] = total


def of_signed(values: Integers, ring: Ring) -> Words:
    """uint32[primes, n] of int64[n]."""
    out = np.empty((len(ring.primes), values.size), np.uint32)
    _of_signed(np.ascontiguousarray(values.reshape(-1)), out, ring.q, ring.constants)
    return out


def of_words(words: Longs, ring: Ring) -> Words:
    """uint32[primes, n] of uint64[words, n], numbers of several words, the least significant first."""
    out = np.empty((len(ring.primes), words.shape[1]), np.uint32)
    _of_words(np.ascontiguousarray(words), out, ring.q, ring.constants)
    return out


def times_each(values: Words, factors: tuple[int, ...], ring: Ring) -> None:
    """Multiplies uint32[..., primes, n] in place by one number for each prime, given below it."""
    rows = _rows(values, ring)
    pairs = _pairs(list(factors), ring.primes)
    _times_each(rows, np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1]), ring.q)


def plus_product(total: Words, left: Words, right: Words, ring: Ring) -> None:
    """total += left right in place: uint32[..., primes, n]; the last is one polynomial, or as many as the others."""
    rows, factors = _rows(total, ring), _rows(right, ring)
    if left.shape != total.shape or rows.shape[0] % factors.shape[0] or rows.shape[1] != factors.shape[1]:
        raise ValueError(f"got shapes {total.shape}, {left.shape} and {right.shape}, expected ones that fit")
    _plus_product(rows, _rows(left, ring), factors, ring.q, ring.constants)


def plus(left: Words, right: Words, ring: Ring) -> Words:
    """The sum of two uint32[..., primes, n], at most q each and not both."""
    total: Words = left + right
    result: Words = np.minimum(total, total - ring.q[:, None])
    return result


def negative(values: Words, ring: Ring) -> Words:
    """What adds up to zero with uint32[..., primes, n]; it may be q, for `plus` only."""
    result: Words = ring.q[:, None] - values
    return result


def sum_of_products(base: Words, factors: Words, ring: Ring) -> Words:
    """uint32[2, primes, N]: the sum over u of base[u] factors[u].

    base: uint32[U, 2, primes, N]. factors: uint32[U, primes, G, N / 64], what columns c G / 64 .. of the transposed
    order are multiplied by (`spread`). Primes below 2^29.
    """
    count, halves, primes, degree = base.shape
    if max(ring.primes) >> 29 or (primes, degree) != (len(ring.primes), ring.degree):
        raise ValueError(f"got a base of shape {base.shape}, expected one of this ring, with primes below 2^29")
    if factors.shape[:2] != (count, primes) or factors.shape[3] != degree // COLUMNS or COLUMNS % factors.shape[2]:
        raise ValueError(f"got factors of shape {factors.shape} for a base of {base.shape}, expected ones that fit")
    out = np.empty((halves, primes, degree), np.uint32)
    _sum_of_products(base, factors, out, ring.q, ring.constants, _TERMS)
    return out


def spread(values: Words, degree: int) -> Words:
    """uint32[..., K] from `ntt.forward_short` -> uint32[..., G, N / 64] for `sum_of_products`."""
    rows, length = degree // COLUMNS, values.shape[-1]
    if length <= rows:
        return np.ascontiguousarray(np.repeat(values, rows // length, axis=-1)[..., None, :])
    return np.ascontiguousarray(np.moveaxis(values.reshape(*values.shape[:-1], rows, length // rows), -1, -2))


def joined(values: Words, ring: Ring) -> Longs:
    """uint64[2, n]: the numbers below the product of all primes with residues uint32[primes, n], modulo 2^128.

    The least significant word first; the primes have the same number of bits. Garner's algorithm: D. Knuth, The Art of
    Computer Programming, section 4.3.2.
    """
    primes = ring.primes
    inverses = np.zeros((len(primes), len(primes), 2), np.uint32)
    weights = np.empty((len(primes), 2), np.uint64)
    for p, prime in enumerate(primes):
        inverses[p, :p] = _pairs([pow(other, -1, prime) for other in primes[:p]], (prime,) * p).reshape(-1, 2)
        weight = math.prod(primes[:p])
        weights[p] = weight % (1 << 64), (weight >> 64) % (1 << 64)
    out = np.empty((2, values.shape[1]), np.uint64)
    _joined(values.copy(), out, ring.q, inverses, weights)
    return out


class Rounding:
    """Takes residues modulo Q = K D to the nearest number modulo K, divided by D; K: the first `kept` primes."""

    def __init__(self, ring: Ring, kept: int) -> None:
        primes = ring.primes[kept:]
        product = math.prod(primes)
        self._ring, self._kept = ring, kept
        self._inverses = _pairs([pow(product // d, -1, d) for d in primes], primes)
        self._weights = np.array(
            [[*(product // d % q for d in primes), -product % q] for q in ring.primes[:kept]], np.uint32
        )
        self._back = _pairs([pow(product, -1, q) for q in ring.primes[:kept]], ring.primes[:kept])

    def __call__(self, values: Words) -> Words:
        """uint32[..., kept, n] of uint32[..., primes, n], coefficients."""
        rows = np.ascontiguousarray(values).reshape(-1, len(self._ring.primes), values.shape[-1])
        out = np.empty((len(rows), self._kept, values.shape[-1]), np.uint32)
        tables = (self._inverses, self._weights, self._back)
        _rounded(rows, out, self._kept, self._ring.q, self._ring.constants, *tables)
        return out.reshape(*values.shape[:-2], self._kept, values.shape[-1])


def _pairs(values: list[int], primes: tuple[int, ...]) -> Words:
    return np.array([[value, (value << 32) // q] for value, q in zip(values, primes, strict=True)], np.uint32)


def _rows(values: Words, ring: Ring) -> Words:
    if values.dtype != np.uint32 or not values.flags.c_contiguous or values.shape[-2] != len(ring.primes):
        raise ValueError(f"got {values.dtype}{values.shape}, expected contiguous uint32[..., {len(ring.primes)}, n]")
    return values.reshape(-1, values.shape[-1])
