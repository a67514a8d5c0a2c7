"""Rotation of a ciphertext: a Galois automorphism and the switch back to the one key.

Guarantee: for a ciphertext (c0, c1) under s modulo Q and a key for the automorphism sigma, the result decrypts to sigma
of the plaintext, modulo Q, with a further error e' in each coefficient of standard deviation at most

    sqrt(N/12) sigma_e Q/P + sqrt((1 + 2N/3) / 12)      (added in squares)

sigma_e: standard deviation of the key's errors, P: the product of the special primes, 2/3: the mean square of the
secret key's coefficients. The first term is sigma(c1) (uniform below Q) times the errors, divided by P; the second the
rounding of both halves in that division. k rotations in a row add k independent errors.

    sigma(c1) is one digit: lifted from Q to Q P, times the key (b, a), where b = -a s + e + P sigma(s) modulo Q P; the
    sum divided by P and rounded, sigma(c0) added to its first half.

How it is fast: all is kept transformed, where sigma permutes places. The first half of a sum of rotations is divided by
P only once, at the end (its P-fold is carried modulo Q P; Q-residues are held divided by P already): 8 transforms for
each rotation and 4 at the end, instead of 12 each. One digit suffices because P > Q.

Source: K. Han, D. Ki, eprint 2019/688, section 3 (hybrid key switching, here with a single digit); lazy division:
J.-P. Bossuat, C. Mouchet, J. Troncoso-Pastoriza, J.-P. Hubaux, eprint 2020/1203, section 5.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numba
import numpy as np
from numpy.typing import NDArray

from he_inference.ring.convert import Conversion, conversion, converted, montgomery
from he_inference.ring.jit import kernel, parallel_kernel
from he_inference.ring.moduli import Moduli, Words, galois_places, moduli
from he_inference.ring.ntt import forward_one, forward_tables, inverse_one, inverse_tables

u32 = np.uint32
Places = NDArray[np.uint32]
# Residues of a ciphertext's first half, then of the special primes.
_DATA = 2
# Polynomials of working memory for one rotation.
WORK = 10


@dataclass(frozen=True, eq=False)
class Switching:
    """Everything that depends on the primes alone: two data primes, then two special ones."""

    ring: Moduli
    up: Conversion = field(repr=False)
    down: Conversion = field(repr=False)
    q: Words = field(repr=False)
    q_inverse: Words = field(repr=False)

    @property
    def primes(self) -> int:
        """How many primes a key has residues for."""
        return len(self.ring.primes)

    @property
    def tables(self) -> tuple[object, ...]:
        """What kernels need, in the order that they unpack it (flat: parallel loops take no tuples in tuples)."""
        return (
            self.q, self.q_inverse, self.ring.zeros, *forward_tables(self.ring), *inverse_tables(self.ring),
            *self.up.constants(), *self.down.constants(),
        )  # fmt: skip


@lru_cache(maxsize=16)
def switching(degree: int, data: tuple[int, ...], special: tuple[int, ...]) -> Switching:
    """Tables for two data and two special primes; raises `ConfigError` for other numbers."""
    ring = moduli(degree, data + special)
    return Switching(
        ring,
        conversion(data, special, degree, divide=False),
        conversion(special, data, degree, divide=True),
        np.array(ring.primes, np.uint32),
        np.array([pow(q, -1, 1 << 32) for q in ring.primes], np.uint32),
    )


def places_of(ring: Moduli, element: int) -> Places:
    """uint32[N]: place i of sigma(f) is place p[i] of f, both in the order of kernels (`Moduli.order`)."""
    return ring.place[galois_places(ring.degree, element)[ring.order]].astype(np.uint32)


def prepared_keys(keys: Words, switch: Switching) -> Words:
    """Keys uint32[elements, 2, 4, N] as they travel -> the form that kernels take, the same shape.

    In their order, times 2^32 (for Montgomery's multiplication), the data primes' part divided by P.
    """
    primes = switch.ring.primes
    whole = primes[2] * primes[3]
    factors = [(1 << 32) * (pow(whole, -1, q) if i < _DATA else 1) % q for i, q in enumerate(primes)]
    ordered = keys[..., switch.ring.order].astype(np.uint64)
    scaled = ordered * np.array(factors, np.uint64)[:, None] % np.array(primes, np.uint64)[:, None]
    return np.ascontiguousarray(scaled.astype(np.uint32))


@kernel
def _gathered(source, places, out) -> None:  # type: ignore[no-untyped-def]
    for j in range(places.size):
        out[j] = source[places[j]]


@kernel
def _product(x, y, out, q, q_inverse, zeros) -> None:  # type: ignore[no-untyped-def]
    """Below 2q; see `montgomery`."""
    for start in range(0, x.size, zeros.size):
        a = x[start : start + zeros.size]
        b = y[start : start + zeros.size]
        to = out[start : start + zeros.size]
        for j in range(zeros.size):
            to[j] = montgomery(a[j], b[j], u32(q + zeros[j]), q_inverse)


@kernel
def _product_less(x, y, less, out, q, q_inverse, zeros) -> None:  # type: ignore[no-untyped-def]
    """x y - less modulo q, below q; `less` below 8q."""
    for start in range(0, x.size, zeros.size):
        a = x[start : start + zeros.size]
        b = y[start : start + zeros.size]
        c = less[start : start + zeros.size]
        to = out[start : start + zeros.size]
        for j in range(zeros.size):
            v = u32(montgomery(a[j], b[j], u32(q + zeros[j]), q_inverse) + u32(u32(8 * q) - c[j]))
            v = min(v, u32(v - u32(8 * q)))
            v = min(v, u32(v - u32(4 * q)))
            v = min(v, u32(v - u32(2 * q)))
            to[j] = min(v, u32(v - q))


@kernel
def _product_more(x, y, source, places, out, q, q_inverse, zeros) -> None:  # type: ignore[no-untyped-def]
    """source[places] + x y modulo q, below q."""
    _gathered(source, places, out)
    for start in range(0, x.size, zeros.size):
        a = x[start : start + zeros.size]
        b = y[start : start + zeros.size]
        to = out[start : start + zeros.size]
        for j in range(zeros.size):
            v = u32(montgomery(a[j], b[j], u32(q + zeros[j]), q_inverse) + to[j])
            v = min(v, u32(v - u32(2 * q)))
            to[j] = min(v, u32(v - q))


@kernel
def rotate_step(c0, c1, out0, out1, places, key, work, tables) -> None:  # type: ignore[no-untyped-def]
    """One rotation. Below their primes, all of them in the order of kernels:

    c0, out0: uint32[4, N], the first half modulo Q (held over P) and its P-fold modulo the special primes; c1, out1:
    uint32[2, N]; key: uint32[2, 4, N] of `prepared_keys`; work: uint32[WORK, N].
    """
    q, q_inverse, zeros, w, ws, late, lates, iw, iws, ilate, ilates = tables[:11]
    up = tables[11:18]
    down = tables[18:]
    digit = work[:4]
    a = work[4:6]
    b = work[6:8]
    for i in range(2):
        _gathered(c1[i], places, digit[i])
        a[i, :] = digit[i]
        inverse_one(a[i], b[i], zeros, iw[i], iws[i], ilate[i], ilates[i], q[i])
    converted(b[0], b[1], a[0], a[1], zeros, up)
    for k in range(2):
        p = 2 + k
        forward_one(a[k], digit[p], zeros, w[p], ws[p], late[p], lates[p], q[p])
        _product(digit[p], key[1, p], a[k], q[p], q_inverse[p], zeros)
        inverse_one(a[k], b[k], zeros, iw[p], iws[p], ilate[p], ilates[p], q[p])
    converted(b[0], b[1], a[0], a[1], zeros, down)
    for i in range(2):
        forward_one(a[i], b[i], zeros, w[i], ws[i], late[i], lates[i], q[i])
        _product_less(digit[i], key[1, i], b[i], out1[i], q[i], q_inverse[i], zeros)
    for p in range(4):
        _product_more(digit[p], key[0, p], c0[p], places, out0[p], q[p], q_inverse[p], zeros)


@kernel
def divided(c0, work, tables) -> None:  # type: ignore[no-untyped-def]
    """The first half modulo Q, in c0[:2], from uint32[4, N] as `rotate_step` leaves it; spends c0[2:]."""
    q, _, zeros, w, ws, late, lates, iw, iws, ilate, ilates = tables[:11]
    down = tables[18:]
    a = work[4:6]
    b = work[6:8]
    for k in range(2):
        p = 2 + k
        inverse_one(c0[p], b[k], zeros, iw[p], iws[p], ilate[p], ilates[p], q[p])
    converted(b[0], b[1], a[0], a[1], zeros, down)
    for i in range(2):
        forward_one(a[i], b[i], zeros, w[i], ws[i], late[i], lates[i], q[i])
        prime = q[i]
        value = c0[i]
        less = b[i]
        for j in range(value.size):
            v = u32(value[j] + u32(u32(8 * prime) - less[j]))
            v = min(v, u32(v - u32(8 * prime)))
            v = min(v, u32(v - u32(4 * prime)))
            v = min(v, u32(v - u32(2 * prime)))
            value[j] = min(v, u32(v - prime))


@parallel_kernel
def _rotate_all(ciphertexts, results, places, keys, which, tables) -> None:  # type: ignore[no-untyped-def]
    for row in numba.prange(ciphertexts.shape[0]):
        n = ciphertexts.shape[3]
        work = np.empty((WORK, n), np.uint32)
        first = np.zeros((2, 4, n), np.uint32)
        first[0, :2] = ciphertexts[row, 0]
        rotate_step(first[0], ciphertexts[row, 1], first[1], results[row, 1], places, keys[which[row]], work, tables)
        divided(first[1], work, tables)
        results[row, 0] = first[1, :2]


def rotate(ciphertexts: Words, places: Places, keys: Words, which: NDArray[np.int64], switch: Switching) -> Words:
    """Rotates uint32[rows, 2, 2, N] once, on all threads; row r by key `which[r]` of `prepared_keys`."""
    results = np.empty_like(ciphertexts)
    _rotate_all(ciphertexts, results, places.astype(np.uint32, copy=False), keys, which, switch.tables)
    return results
