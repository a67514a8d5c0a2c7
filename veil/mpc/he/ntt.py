"""The number-theoretic transform on 32-bit residues, there and back.

Guarantee: `forward` takes residues below q to the values at psi^(2 brv(i) + 1), in the order `Ring.transposed`, and
`inverse` takes them back; both exactly, below q again. Between stages values lie below 4q, which 30-bit primes leave
room for.

How it is fast: butterflies of stride 64 and more run along the array. Then it is taken as rows of 64 and transposed, so
that the rest, too, runs along long contiguous rows, each place with a root of its own; it stays transposed, which is
what the order means. Every loop is plain 32-bit arithmetic that compilers turn into vectors. (D. Harvey, arXiv
1205.2926, algorithms 2 to 4.)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from veil.mpc.he.jit import kernel, small
from veil.mpc.he.ring import COLUMNS, Ring, Words

u32 = np.uint32
u64 = np.uint64


@small
def times(x: Any, w: Any, w_shoup: Any, q: Any) -> Any:
    """w x mod q, below 2q, for any x of 32 bits; w_shoup = floor(2^32 w / q)."""
    high = u32((u64(x) * u64(w_shoup)) >> u64(32))
    return u32(u32(x * w) - u32(high * q))


@small
def _forward_run(x: Any, y: Any, w: Any, t: Any, zeros: Any, q: Any) -> None:
    # Adding zeros from memory keeps the companion a vector of 32-bit numbers, for which there is a short way to the
    # upper half of a product; a constant is widened to 64 bits outside of the loop.
    q2 = u32(2 * q)
    for j in range(x.size):
        s = u32(t + zeros[j])
        u = min(x[j], u32(x[j] - q2))
        v = times(y[j], w, s, q)
        x[j] = u32(u + v)
        y[j] = u32(u + u32(q2 - v))


@small
def _forward_rows(x: Any, y: Any, w: Any, s: Any, q: Any) -> None:
    q2 = u32(2 * q)
    for r in range(x.size):
        u = min(x[r], u32(x[r] - q2))
        v = times(y[r], w[r], s[r], q)
        x[r] = u32(u + v)
        y[r] = u32(u + u32(q2 - v))


@kernel
def _forward_one(a, out, zeros, w, w_shoup, late, late_shoup, q) -> None:  # type: ignore[no-untyped-def]
    # uint32[N] below 4q -> out, below 4q; `a` is spent.
    rows = a.size // COLUMNS
    length = a.size >> 1
    groups = 1
    while groups < rows:
        for i in range(groups):
            run = a[2 * i * length : 2 * (i + 1) * length]
            _forward_run(run[:length], run[length:], w[groups + i], w_shoup[groups + i], zeros, q)
        length >>= 1
        groups <<= 1
    _transpose(a, out, rows, COLUMNS)
    length = COLUMNS >> 1
    groups = 1
    base = 0
    while groups < COLUMNS:
        step = length * rows
        for i in range(groups):
            g = base + i * rows
            for j in range(length):
                x = out[2 * i * step + j * rows :]
                _forward_rows(x[:rows], x[step : step + rows], late[g : g + rows], late_shoup[g : g + rows], q)
        base += groups * rows
        length >>= 1
        groups <<= 1


@small
def _inverse_run(x: Any, y: Any, w: Any, t: Any, zeros: Any, q: Any) -> None:
    q2 = u32(2 * q)
    for j in range(x.size):
        s = u32(t + zeros[j])
        total = u32(x[j] + y[j])
        difference = u32(x[j] + u32(q2 - y[j]))
        x[j] = min(total, u32(total - q2))
        y[j] = times(difference, w, s, q)


@small
def _inverse_rows(x: Any, y: Any, w: Any, s: Any, q: Any) -> None:
    q2 = u32(2 * q)
    for r in range(x.size):
        total = u32(x[r] + y[r])
        difference = u32(x[r] + u32(q2 - y[r]))
        x[r] = min(total, u32(total - q2))
        y[r] = times(difference, w[r], s[r], q)


@kernel
def _inverse_one(a, out, zeros, w, w_shoup, late, late_shoup, q) -> None:  # type: ignore[no-untyped-def]
    # N times the inverse of _forward_one: uint32[N] below 2q -> out, below 2q; `a` is spent.
    rows = a.size // COLUMNS
    length = 1
    groups = COLUMNS >> 1
    base = (COLUMNS - 1) * rows
    while groups >= 1:
        base -= groups * rows
        step = length * rows
        for i in range(groups):
            g = base + i * rows
            for j in range(length):
                x = a[2 * i * step + j * rows :]
                _inverse_rows(x[:rows], x[step : step + rows], late[g : g + rows], late_shoup[g : g + rows], q)
        length <<= 1
        groups >>= 1
    _transpose(a, out, COLUMNS, rows)
    length = COLUMNS
    groups = rows >> 1
    while groups >= 1:
        for i in range(groups):
            run = out[2 * i * length : 2 * (i + 1) * length]
            _inverse_run(run[:length], run[length:], w[groups + i], w_shoup[groups + i], zeros, q)
        length <<= 1
        groups >>= 1


@kernel
def _transpose(source, target, rows, columns) -> None:  # type: ignore[no-untyped-def]
    for c in range(columns):
        out = target[c * rows : (c + 1) * rows]
        for r in range(rows):
            out[r] = source[r * columns + c]


@kernel
def _forward_all(polynomials, qs, w, w_shoup, late, late_shoup) -> None:  # type: ignore[no-untyped-def]
    n = polynomials.shape[1]
    spent = np.empty(n, np.uint32)
    zeros = np.zeros(n >> 1, np.uint32)
    for row in range(polynomials.shape[0]):
        p = row % qs.size
        q = qs[p]
        values = polynomials[row]
        spent[:] = values
        _forward_one(spent, values, zeros, w[p], w_shoup[p], late[p], late_shoup[p], q)
        q2 = u32(2 * q)
        for j in range(n):
            v = min(values[j], u32(values[j] - q2))
            values[j] = min(v, u32(v - q))


@kernel
def _inverse_all(polynomials, qs, w, w_shoup, late, late_shoup, constants) -> None:  # type: ignore[no-untyped-def]
    n = polynomials.shape[1]
    spent = np.empty(n, np.uint32)
    zeros = np.zeros(n >> 1, np.uint32)
    for row in range(polynomials.shape[0]):
        p = row % qs.size
        q = qs[p]
        values = polynomials[row]
        spent[:] = values
        _inverse_one(spent, values, zeros, w[p], w_shoup[p], late[p], late_shoup[p], q)
        factor = constants[p, 0]
        companion = constants[p, 1]
        for j in range(n):
            v = times(values[j], factor, u32(companion + zeros[j & 1]), q)
            values[j] = min(v, u32(v - q))


@kernel
def _forward_short(polynomials, qs, w, w_shoup) -> None:  # type: ignore[no-untyped-def]
    # Rows of any power of two up to N, plain radix 2, in the order brv: the first roots of the table serve them all.
    k = polynomials.shape[1]
    for row in range(polynomials.shape[0]):
        p = row % qs.size
        q = qs[p]
        q2 = u32(2 * q)
        a = polynomials[row]
        length = k >> 1
        groups = 1
        while groups < k:
            for i in range(groups):
                for j in range(2 * i * length, 2 * i * length + length):
                    u = min(a[j], u32(a[j] - q2))
                    v = times(a[j + length], w[p, groups + i], w_shoup[p, groups + i], q)
                    a[j] = u32(u + v)
                    a[j + length] = u32(u + u32(q2 - v))
            length >>= 1
            groups <<= 1
        for j in range(k):
            v = min(a[j], u32(a[j] - q2))
            a[j] = min(v, u32(v - q))


def forward(polynomials: Words, ring: Ring) -> None:
    """Transforms uint32[..., primes, N] in place: coefficients -> values in the order `Ring.transposed`."""
    rows = _rows(polynomials, ring, ring.degree)
    _forward_all(rows, ring.q, ring.forward, ring.forward_shoup, ring.forward_late, ring.forward_late_shoup)


def inverse(polynomials: Words, ring: Ring) -> None:
    """Transforms uint32[..., primes, N] back in place."""
    rows = _rows(polynomials, ring, ring.degree)
    tables = (ring.inverse, ring.inverse_shoup, ring.inverse_late, ring.inverse_late_shoup)
    _inverse_all(rows, ring.q, *tables, ring.constants)


def forward_short(polynomials: Words, ring: Ring) -> None:
    """uint32[..., primes, K] in place, K a power of two up to N: coefficients of a polynomial in X^(N / K) to values.

    Place i holds the value at those X whose places among N, before `Ring.transposed`, are i N / K and the N / K - 1
    that follow.
    """
    length = polynomials.shape[-1]
    if length < 1 or length & (length - 1) or length > ring.degree:
        raise ValueError(f"got {length} coefficients, expected a power of two up to {ring.degree}")
    _forward_short(_rows(polynomials, ring, length), ring.q, ring.forward, ring.forward_shoup)


def _rows(polynomials: Words, ring: Ring, length: int) -> Words:
    if polynomials.dtype != np.uint32 or not polynomials.flags.c_contiguous:
        raise ValueError("got polynomials that are not a contiguous uint32 array, expected one")
    if polynomials.shape[-2:] != (len(ring.primes), length):
        raise ValueError(f"got shape {polynomials.shape}, expected [..., {len(ring.primes)}, {length}]")
    return polynomials.reshape(-1, length)
