"""The kernels of `he_inference.engine.rotation`: one rotation of many ciphertexts, and the division by special primes.

Guarantee: exact modular arithmetic in 32-bit words; every unit of a parallel loop writes places of its own, so that
results do not depend on the number of threads. Callers check shapes.

Of one ciphertext, too, all threads take their part: each works on a prime, or on a run of coefficients.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from numpy.typing import NDArray

from he_inference.ring.convert import montgomery
from he_inference.ring.jit import kernel, parallel_kernel
from he_inference.ring.ntt import forward_one, inverse_one, times

u32 = np.uint32
# Coefficients that a conversion works on at a time.
_RUN = 512


def lift_constants(
    source: tuple[int, ...], target: tuple[int, ...], degree: int, *, divide: bool
) -> tuple[NDArray[np.generic], ...]:
    """Constants of `_lifted`, in the order that kernels unpack them.

    From x / N modulo the primes a_i with product A to x, or to x / A, modulo others.
    """
    whole = math.prod(source)
    first = [pow(whole // a * degree, -1, a) for a in source]
    weight = [[(pow(a, -1, q) if divide else whole // a) % q for q in target] for a in source]
    return (
        np.array(source, np.uint32),
        np.array(target, np.uint32),
        np.array(first, np.uint32),
        np.array([(x << 32) // a for x, a in zip(first, source, strict=True)], np.uint32),
        np.array(weight, np.uint32),
        np.array([[(x << 32) // q for x, q in zip(row, target, strict=True)] for row in weight], np.uint32),
        np.array([-(1 if divide else whole) % q for q in target], np.uint32),
    )


@kernel
def _lifted(values, out, start, zeros, source, target, first, first_shoup, weight, weight_shoup, whole) -> None:  # type: ignore[no-untyped-def]
    """A run of uint32[sources, N], of any 32 bits -> the same run of uint32[targets, N], below 8q (`ring.convert`):

    x = sum of y_i A / a_i - v A with y_i = x_i (A / a_i)^-1 mod a_i and v = floor(sum of y_i / a_i + 1/2).
    """
    y = np.empty((source.size, _RUN), np.uint32)
    fraction = np.empty(_RUN, np.float32)
    fraction[:] = np.float32(0.5)
    for i in range(source.size):
        a = source[i]
        f = first[i]
        fs = first_shoup[i]
        r = np.float32(1.0) / np.float32(a)
        x = values[i, start : start + _RUN]
        to = y[i]
        for j in range(_RUN):
            v = times(x[j], f, u32(fs + zeros[j]), a)
            v = min(v, u32(v - a))
            to[j] = v
            fraction[j] += np.float32(np.int32(v)) * r
    for k in range(target.size):
        q = target[k]
        negative = whole[k]
        to = out[k, start : start + _RUN]
        for j in range(_RUN):
            to[j] = u32(u32(np.int32(fraction[j])) * negative)
        for i in range(source.size):
            f = weight[i, k]
            fs = weight_shoup[i, k]
            x = y[i]
            for j in range(_RUN):
                to[j] = u32(to[j] + times(x[j], f, u32(fs + zeros[j]), q))
        q8 = u32(8 * q)
        for j in range(_RUN):
            to[j] = min(to[j], u32(to[j] - q8))


@kernel
def _gathered(source, places, out) -> None:  # type: ignore[no-untyped-def]
    for j in range(places.size):
        out[j] = source[places[j]]


@kernel
def _product(x, y, out, zeros, q, q_inverse) -> None:  # type: ignore[no-untyped-def]
    """x y / 2^32 modulo q, below 2q."""
    for start in range(0, x.size, _RUN):
        a = x[start : start + _RUN]
        b = y[start : start + _RUN]
        to = out[start : start + _RUN]
        for j in range(_RUN):
            to[j] = montgomery(a[j], b[j], u32(q + zeros[j]), q_inverse)


@kernel
def _product_more(x, y, out, zeros, q, q_inverse) -> None:  # type: ignore[no-untyped-def]
    """out += x y / 2^32 modulo q, below q as before."""
    for start in range(0, x.size, _RUN):
        a = x[start : start + _RUN]
        b = y[start : start + _RUN]
        to = out[start : start + _RUN]
        for j in range(_RUN):
            v = u32(montgomery(a[j], b[j], u32(q + zeros[j]), q_inverse) + to[j])
            v = min(v, u32(v - u32(2 * q)))
            to[j] = min(v, u32(v - q))


@kernel
def _less(value, less, q) -> None:  # type: ignore[no-untyped-def]
    """value -= less modulo q, below q; value below 2q, less below 8q."""
    q2 = u32(2 * q)
    q4 = u32(4 * q)
    q8 = u32(8 * q)
    for j in range(value.size):
        v = u32(value[j] + u32(q8 - less[j]))
        v = min(v, u32(v - q8))
        v = min(v, u32(v - q4))
        v = min(v, u32(v - q2))
        value[j] = min(v, u32(v - q))


@parallel_kernel
def rotate_all(  # type: ignore[no-untyped-def]
    first, second, places, keys, out_first, out_second, work, q, q_inverse, zeros, w, ws, late, lates, iw, iws, ilate,
    ilates, us, ut, uf, ufs, uw, uws, un, ds, dt, df, dfs, dw, dws, dn,
) -> None:  # fmt: skip
    """One rotation of each row (`he_inference.engine.rotation`). work: uint32[rows, 2, data + special, N]."""
    rows, data, n = second.shape
    primes = q.size
    special = primes - data
    pieces = n // _RUN
    for unit in numba.prange(rows * data):
        row = unit // data
        i = unit % data
        spent = np.empty(n, np.uint32)
        _gathered(second[row, i], places, work[row, 0, i])
        spent[:] = work[row, 0, i]
        inverse_one(spent, work[row, 1, i], zeros, iw[i], iws[i], ilate[i], ilates[i], q[i])
    for unit in numba.prange(rows * pieces):
        numbers = work[unit // pieces, 1]
        _lifted(numbers[:data], numbers[data:], unit % pieces * _RUN, zeros, us, ut, uf, ufs, uw, uws, un)
    for unit in numba.prange(rows * special):
        row = unit // special
        k = data + unit % special
        digit = work[row, 0, k]
        spent = np.empty(n, np.uint32)
        forward_one(work[row, 1, k], digit, zeros, w[k], ws[k], late[k], lates[k], q[k])
        _gathered(first[row, k], places, out_first[row, k])
        _product_more(digit, keys[row, 0, k], out_first[row, k], zeros, q[k], q_inverse[k])
        _product(digit, keys[row, 1, k], spent, zeros, q[k], q_inverse[k])
        inverse_one(spent, work[row, 1, k], zeros, iw[k], iws[k], ilate[k], ilates[k], q[k])
    for unit in numba.prange(rows * pieces):
        numbers = work[unit // pieces, 1]
        _lifted(numbers[data:], numbers[:data], unit % pieces * _RUN, zeros, ds, dt, df, dfs, dw, dws, dn)
    for unit in numba.prange(rows * data):
        row = unit // data
        i = unit % data
        digit = work[row, 0, i]
        less = np.empty(n, np.uint32)
        forward_one(work[row, 1, i], less, zeros, w[i], ws[i], late[i], lates[i], q[i])
        _product(digit, keys[row, 1, i], out_second[row, i], zeros, q[i], q_inverse[i])
        _less(out_second[row, i], less, q[i])
        _gathered(first[row, i], places, out_first[row, i])
        _product_more(digit, keys[row, 0, i], out_first[row, i], zeros, q[i], q_inverse[i])


@parallel_kernel
def divide_all(  # type: ignore[no-untyped-def]
    first, out, work, q, zeros, w, ws, late, lates, iw, iws, ilate, ilates, ds, dt, df, dfs, dw, dws, dn
) -> None:
    """out uint32[rows, 2, data, N]: its first halves. work: uint32[rows, data + special, N]."""
    rows, primes, n = first.shape
    data = out.shape[2]
    special = primes - data
    pieces = n // _RUN
    for unit in numba.prange(rows * special):
        row = unit // special
        k = data + unit % special
        spent = np.empty(n, np.uint32)
        spent[:] = first[row, k]
        inverse_one(spent, work[row, k], zeros, iw[k], iws[k], ilate[k], ilates[k], q[k])
    for unit in numba.prange(rows * pieces):
        numbers = work[unit // pieces]
        _lifted(numbers[data:], numbers[:data], unit % pieces * _RUN, zeros, ds, dt, df, dfs, dw, dws, dn)
    for unit in numba.prange(rows * data):
        row = unit // data
        i = unit % data
        less = np.empty(n, np.uint32)
        forward_one(work[row, i], less, zeros, w[i], ws[i], late[i], lates[i], q[i])
        out[row, 0, i, :] = first[row, i]
        _less(out[row, 0, i], less, q[i])


@parallel_kernel
def add_all(values, other, q) -> None:  # type: ignore[no-untyped-def]
    """values[row, p] += other[row, p], all below q[p]."""
    rows, primes, n = other.shape
    for unit in numba.prange(rows * primes):
        row = unit // primes
        p = unit % primes
        prime = q[p]
        x = values[row, p]
        y = other[row, p]
        for j in range(n):
            v = u32(x[j] + y[j])
            x[j] = min(v, u32(v - prime))
