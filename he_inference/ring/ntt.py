"""The number-theoretic transform on 32-bit residues, there and back.

Guarantee: `forward` takes residues below q to the values at psi^(2 brv(i) + 1), in the order `Moduli.order`; `inverse`
takes them back, both exactly, below q again. Between stages values lie below 8q, which 28-bit primes leave room for.

How it is fast: two stages are done in one pass over the data. Butterflies of stride 64 and more run along the array.
Then it is taken as rows of 64 and transposed, so that the rest, too, runs along long contiguous rows, each place with a
root of its own; it stays transposed, which is what the order means. Every loop is plain 32-bit arithmetic that
compilers turn into vectors. (D. Harvey, arXiv 1205.2926, algorithms 2 to 4.)
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from he_inference.ring.jit import kernel, parallel_kernel, small
from he_inference.ring.moduli import COLUMNS, Moduli, Words

u32 = np.uint32
u64 = np.uint64


@small
def times(x: Any, w: Any, w_shoup: Any, q: Any) -> Any:
    """w x mod q, below 2q, for any x of 32 bits; w_shoup = floor(2^32 w / q)."""
    high = u32((u64(x) * u64(w_shoup)) >> u64(32))
    return u32(u32(x * w) - u32(high * q))


@small
def _forward_runs(
    x0: Any, x1: Any, x2: Any, x3: Any, w1: Any, t1: Any, w2: Any, t2: Any, w3: Any, t3: Any, zeros: Any, q: Any
) -> None:
    # Two stages on four runs below 8q: w1 is the root of the first one, w2 and w3 of the second. Adding zeros from
    # memory keeps t a vector of 32-bit numbers, for which there is a short way to the upper half of a product; a
    # constant is widened to 64 bits outside of the loop.
    q2 = u32(2 * q)
    q4 = u32(4 * q)
    for j in range(x0.size):
        s1 = u32(t1 + zeros[j])
        s2 = u32(t2 + zeros[j])
        s3 = u32(t3 + zeros[j])
        u0 = min(x0[j], u32(x0[j] - q4))
        u1 = min(x1[j], u32(x1[j] - q4))
        v0 = times(x2[j], w1, s1, q)
        v1 = times(x3[j], w1, s1, q)
        y0 = u32(u0 + v0)
        y1 = u32(u1 + v1)
        y2 = u32(u0 + u32(q2 - v0))
        y3 = u32(u1 + u32(q2 - v1))
        v0 = times(y1, w2, s2, q)
        v1 = times(y3, w3, s3, q)
        x0[j] = u32(y0 + v0)
        x1[j] = u32(y0 + u32(q2 - v0))
        x2[j] = u32(y2 + v1)
        x3[j] = u32(y2 + u32(q2 - v1))


@small
def _forward_rows(
    x0: Any, x1: Any, x2: Any, x3: Any, w1: Any, s1: Any, w2: Any, s2: Any, w3: Any, s3: Any, q: Any
) -> None:
    # The same with roots of their own for each place.
    q2 = u32(2 * q)
    q4 = u32(4 * q)
    for r in range(x0.size):
        u0 = min(x0[r], u32(x0[r] - q4))
        u1 = min(x1[r], u32(x1[r] - q4))
        v0 = times(x2[r], w1[r], s1[r], q)
        v1 = times(x3[r], w1[r], s1[r], q)
        y0 = u32(u0 + v0)
        y1 = u32(u1 + v1)
        y2 = u32(u0 + u32(q2 - v0))
        y3 = u32(u1 + u32(q2 - v1))
        v0 = times(y1, w2[r], s2[r], q)
        v1 = times(y3, w3[r], s3[r], q)
        x0[r] = u32(y0 + v0)
        x1[r] = u32(y0 + u32(q2 - v0))
        x2[r] = u32(y2 + v1)
        x3[r] = u32(y2 + u32(q2 - v1))


@kernel
def forward_one(a, out, zeros, w, w_shoup, late, late_shoup, prime) -> None:  # type: ignore[no-untyped-def]
    """uint32[N] below 8q -> out, below 8q, in the order of `Moduli.order`; `a` is spent. Tables: rows of `Moduli`."""
    n = a.size
    rows = n // COLUMNS
    q = u32(prime)
    stride = n >> 1
    groups = 1
    passes = 0
    while rows >> (2 * passes) > 1:
        passes += 1
    if 1 << (2 * passes) != rows:  # an odd number of stages: the first one alone
        q2 = u32(2 * q)
        q4 = u32(4 * q)
        root = w[1]
        shoup = w_shoup[1]
        x = a[:stride]
        y = a[stride:]
        for j in range(stride):
            u = min(x[j], u32(x[j] - q4))
            v = times(y[j], root, u32(shoup + zeros[j]), q)
            x[j] = u32(u + v)
            y[j] = u32(u + u32(q2 - v))
        stride >>= 1
        groups = 2
    while groups < rows:
        length = stride >> 1
        for i in range(groups):
            g = groups + i
            h = 2 * g
            run = a[4 * i * length : 4 * (i + 1) * length]
            _forward_runs(
                run[:length], run[length : 2 * length], run[2 * length : 3 * length], run[3 * length :],
                w[g], w_shoup[g], w[h], w_shoup[h], w[h + 1], w_shoup[h + 1], zeros, q,
            )  # fmt: skip
        stride >>= 2
        groups <<= 2
    transposed(a, out, rows, COLUMNS)
    length = COLUMNS >> 2
    groups = 1
    base = 0
    while groups < COLUMNS:
        step = length * rows
        for i in range(groups):
            g = base + i * rows
            h = base + (groups + 2 * i) * rows
            for j in range(length):
                x = out[4 * i * step + j * rows :]
                _forward_rows(
                    x[:rows], x[step : step + rows], x[2 * step : 2 * step + rows], x[3 * step : 3 * step + rows],
                    late[g : g + rows], late_shoup[g : g + rows], late[h : h + rows], late_shoup[h : h + rows],
                    late[h + rows : h + 2 * rows], late_shoup[h + rows : h + 2 * rows], q,
                )  # fmt: skip
        base += 3 * groups * rows
        length >>= 2
        groups <<= 2


@small
def _inverse_runs(
    x0: Any, x1: Any, x2: Any, x3: Any, w1: Any, t1: Any, w2: Any, t2: Any, w3: Any, t3: Any, zeros: Any, q: Any
) -> None:
    q2 = u32(2 * q)
    q4 = u32(4 * q)
    for j in range(x0.size):
        s1 = u32(t1 + zeros[j])
        s2 = u32(t2 + zeros[j])
        s3 = u32(t3 + zeros[j])
        y0 = u32(x0[j] + x1[j])
        y1 = times(u32(x0[j] + u32(q2 - x1[j])), w2, s2, q)
        y2 = u32(x2[j] + x3[j])
        y3 = times(u32(x2[j] + u32(q2 - x3[j])), w3, s3, q)
        z0 = u32(y0 + y2)
        z0 = min(z0, u32(z0 - q4))
        z1 = u32(y1 + y3)
        x0[j] = min(z0, u32(z0 - q2))
        x1[j] = min(z1, u32(z1 - q2))
        x2[j] = times(u32(y0 + u32(q4 - y2)), w1, s1, q)
        x3[j] = times(u32(y1 + u32(q2 - y3)), w1, s1, q)


@small
def _inverse_rows(
    x0: Any, x1: Any, x2: Any, x3: Any, w1: Any, s1: Any, w2: Any, s2: Any, w3: Any, s3: Any, q: Any
) -> None:
    q2 = u32(2 * q)
    q4 = u32(4 * q)
    for r in range(x0.size):
        y0 = u32(x0[r] + x1[r])
        y1 = times(u32(x0[r] + u32(q2 - x1[r])), w2[r], s2[r], q)
        y2 = u32(x2[r] + x3[r])
        y3 = times(u32(x2[r] + u32(q2 - x3[r])), w3[r], s3[r], q)
        z0 = u32(y0 + y2)
        z0 = min(z0, u32(z0 - q4))
        z1 = u32(y1 + y3)
        x0[r] = min(z0, u32(z0 - q2))
        x1[r] = min(z1, u32(z1 - q2))
        x2[r] = times(u32(y0 + u32(q4 - y2)), w1[r], s1[r], q)
        x3[r] = times(u32(y1 + u32(q2 - y3)), w1[r], s1[r], q)


@kernel
def inverse_one(a, out, zeros, w, w_shoup, late, late_shoup, prime) -> None:  # type: ignore[no-untyped-def]
    """N times the inverse of `forward_one`: uint32[N] below 2q -> out, below 2q; `a` is spent."""
    n = a.size
    rows = n // COLUMNS
    q = u32(prime)
    length = 1
    groups = COLUMNS >> 2
    base = (COLUMNS - 1) * rows
    while groups >= 1:
        base -= 3 * groups * rows
        step = length * rows
        for i in range(groups):
            g = base + i * rows
            h = base + (groups + 2 * i) * rows
            for j in range(length):
                x = a[4 * i * step + j * rows :]
                _inverse_rows(
                    x[:rows], x[step : step + rows], x[2 * step : 2 * step + rows], x[3 * step : 3 * step + rows],
                    late[g : g + rows], late_shoup[g : g + rows], late[h : h + rows], late_shoup[h : h + rows],
                    late[h + rows : h + 2 * rows], late_shoup[h + rows : h + 2 * rows], q,
                )  # fmt: skip
        length <<= 2
        groups >>= 2
    transposed(a, out, COLUMNS, rows)
    length = COLUMNS
    groups = rows >> 2
    while groups >= 1:
        for i in range(groups):
            g = groups + i
            h = 2 * g
            run = out[4 * i * length : 4 * (i + 1) * length]
            _inverse_runs(
                run[:length], run[length : 2 * length], run[2 * length : 3 * length], run[3 * length :],
                w[g], w_shoup[g], w[h], w_shoup[h], w[h + 1], w_shoup[h + 1], zeros, q,
            )  # fmt: skip
        length <<= 2
        groups >>= 2
    if length < n:
        q2 = u32(2 * q)
        root, shoup = w[1], w_shoup[1]
        x, y = out[:length], out[length:]
        for j in range(length):
            u = x[j]
            v = y[j]
            total = u32(u + v)
            x[j] = min(total, u32(total - q2))
            y[j] = times(u32(u + u32(q2 - v)), root, u32(shoup + zeros[j]), q)


@kernel
def transposed(source, target, rows, columns) -> None:  # type: ignore[no-untyped-def]
    """uint32[rows * columns]: rows -> columns."""
    for c in range(columns):
        out = target[c * rows : (c + 1) * rows]
        for r in range(rows):
            out[r] = source[r * columns + c]


@parallel_kernel
def _forward_all(polynomials, q, tables, zeros) -> None:  # type: ignore[no-untyped-def]
    w, ws, late, lates = tables
    for row in numba.prange(polynomials.shape[0]):
        p = row % q.size
        values = polynomials[row]
        forward_one(values.copy(), values, zeros, w[p], ws[p], late[p], lates[p], q[p])
        q1 = u32(q[p])
        for j in range(values.size):
            v = values[j]
            v = min(v, u32(v - u32(4 * q1)))
            v = min(v, u32(v - u32(2 * q1)))
            values[j] = min(v, u32(v - q1))


@parallel_kernel
def _inverse_all(polynomials, q, tables, scale, scale_shoup, zeros) -> None:  # type: ignore[no-untyped-def]
    w, ws, late, lates = tables
    for row in numba.prange(polynomials.shape[0]):
        p = row % q.size
        values = polynomials[row]
        inverse_one(values.copy(), values, zeros, w[p], ws[p], late[p], lates[p], q[p])
        q1 = u32(q[p])
        factor = scale[p, 0]
        shoup = scale_shoup[p, 0]
        for j in range(values.size):
            v = times(values[j], factor, shoup, q1)
            values[j] = min(v, u32(v - q1))


def forward(polynomials: Words, ring: Moduli) -> None:
    """Transforms uint32[..., primes, N] in place, on all threads: coefficients -> values in `Moduli.order`."""
    _forward_all(_rows(polynomials, ring), ring.q, forward_tables(ring), ring.zeros)


def inverse(polynomials: Words, ring: Moduli) -> None:
    """Transforms uint32[..., primes, N] back in place, on all threads."""
    _inverse_all(_rows(polynomials, ring), ring.q, inverse_tables(ring), ring.scale, ring.scale_shoup, ring.zeros)


def forward_tables(ring: Moduli) -> tuple[Words, Words, Words, Words]:
    return ring.forward, ring.forward_shoup, ring.forward_late, ring.forward_late_shoup


def inverse_tables(ring: Moduli) -> tuple[Words, Words, Words, Words]:
    return ring.inverse, ring.inverse_shoup, ring.inverse_late, ring.inverse_late_shoup


def _rows(polynomials: Words, ring: Moduli) -> Words:
    if polynomials.dtype != np.uint32 or not polynomials.flags.c_contiguous:
        raise ValueError("got polynomials that are not a contiguous uint32 array, expected one")
    if polynomials.shape[-2:] != (len(ring.primes), ring.degree):
        raise ValueError(f"got shape {polynomials.shape}, expected [..., {len(ring.primes)}, {ring.degree}]")
    return polynomials.reshape(-1, ring.degree)
