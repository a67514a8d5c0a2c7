"""Results for the wire: coefficients modulo Q, rounded to their leading bits and packed.

Guarantee: `truncated` gives round(c 2^t / Q) mod 2^t for each coefficient c of each polynomial, which is the same
ciphertext modulo 2^t instead of Q, with a rounding error of at most half a step (and 2^-18 of one, by floating point)
in each coefficient, times the secret key's coefficients for the second polynomial. `packed` and
`he_inference.ring.bits` agree on the order of bits.

    c / Q = y_0 / q_0 + y_1 / q_1  modulo 1,    y_i = c (Q / q_i)^-1 mod q_i

Source: Z. Brakerski, C. Gentry, V. Vaikuntanathan, eprint 2011/277, section 4 (modulus switching, to a power of two).
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from he_inference.ring.bits import packed_bytes
from he_inference.ring.jit import kernel, parallel_kernel
from he_inference.ring.moduli import Moduli, Words
from he_inference.ring.ntt import inverse_one, inverse_tables, times
from veil.errors import ConfigError

u32 = np.uint32
u64 = np.uint64


@kernel
def _scaled(values, factor, factor_shoup, prime, zeros) -> None:  # type: ignore[no-untyped-def]
    for start in range(0, values.size, zeros.size):
        run = values[start : start + zeros.size]
        for j in range(zeros.size):
            v = times(run[j], factor, u32(factor_shoup + zeros[j]), prime)
            run[j] = min(v, u32(v - prime))


@kernel
def _rounded(first, second, unit0, unit1, mask, out) -> None:  # type: ignore[no-untyped-def]
    # Residues and results have 28 and 33 bits: signed conversions do.
    for j in range(out.size):
        share = np.float64(np.int32(first[j])) * unit0 + np.float64(np.int32(second[j])) * unit1
        out[j] = u32(u64(np.int64(share + 0.5)) & mask)


@kernel
def _pack_one(numbers, bits, words) -> None:  # type: ignore[no-untyped-def]
    buffer = u64(0)
    held = u64(0)
    place = 0
    for j in range(numbers.size):
        buffer |= u64(numbers[j]) << held
        held += bits
        if held >= u64(32):
            words[place] = u32(buffer)
            buffer >>= u64(32)
            held -= u64(32)
            place += 1


@parallel_kernel
def _truncated(polynomials, q, tables, zeros, factor, factor_shoup, bits, out) -> None:  # type: ignore[no-untyped-def]
    w, ws, late, lates = tables
    unit0 = 2.0**bits / np.float64(q[0])
    unit1 = 2.0**bits / np.float64(q[1])
    mask = u64((u64(1) << u64(bits)) - u64(1))
    for row in numba.prange(polynomials.shape[0]):
        y = np.empty((2, polynomials.shape[2]), np.uint32)
        for i in range(2):
            prime = u32(q[i])
            inverse_one(polynomials[row, i], y[i], zeros, w[i], ws[i], late[i], lates[i], prime)
            _scaled(y[i], factor[i], factor_shoup[i], prime, zeros)
        _rounded(y[0], y[1], unit0, unit1, mask, out[row])


@parallel_kernel
def _pack(values, bits, out) -> None:  # type: ignore[no-untyped-def]
    for row in numba.prange(values.shape[0]):
        _pack_one(values[row], u64(bits), out[row])


def truncated(polynomials: Words, ring: Moduli, bits: int) -> Words:
    """uint32[rows, N] of `bits` bits (8 to 32) from transformed uint32[rows, 2, N], which are spent in the course."""
    if len(ring.primes) != 2 or not 8 <= bits <= 32:
        raise ConfigError(f"got {len(ring.primes)} primes and {bits} bits, expected 2 primes and 8 to 32 bits")
    q0, q1 = ring.primes
    factor = [pow(q1 * ring.degree, -1, q0), pow(q0 * ring.degree, -1, q1)]
    shoup = [(x << 32) // q for x, q in zip(factor, ring.primes, strict=True)]
    out = np.empty((len(polynomials), ring.degree), np.uint32)
    _truncated(
        polynomials, ring.q, inverse_tables(ring), ring.zeros, np.array(factor, np.uint32), np.array(shoup, np.uint32),
        bits, out,
    )  # fmt: skip
    return out


def packed(values: Words, bits: int) -> NDArray[np.uint8]:
    """uint8[rows, n bits / 8, rounded up]: each row of uint32[rows, n] as one run of bits, the lowest first."""
    rows, n = values.shape
    if n % 32:
        # The kernel writes whole words; few coefficients of a result may travel.
        values = np.concatenate([values, np.zeros((rows, -n % 32), np.uint32)], axis=1)
    out = np.empty((rows, values.shape[1] * bits // 32), np.uint32)
    _pack(values, bits, out)
    return np.ascontiguousarray(out.astype("<u4", copy=False).view(np.uint8)[:, : packed_bytes(n, bits)])
