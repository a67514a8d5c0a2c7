"""From residues modulo some primes to residues modulo others, and division by a product of primes.

Guarantee: for x modulo A = a0 a1, read as the integer of smallest size (-A/2 <= x < A/2), `converted` gives x, or x/A,
modulo two other primes. A value within 2^-20 A of the ends may come out as x +- A, which means a rounding to the
farther neighbour by 2^-20 in a division by A, and nothing at all in a key switch.

    y_i = x_i (A / a_i)^-1 mod a_i,    x = y_0 a_1 + y_1 a_0 - v A,    v = floor(y_0 / a_0 + y_1 / a_1 + 1/2)

Source: S. Halevi, Y. Polyakov, V. Shoup, eprint 2018/117, section 2.2 (conversion with a floating-point quotient).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from he_inference.ring.jit import kernel, small
from he_inference.ring.moduli import Words
from he_inference.ring.ntt import times
from veil.errors import ConfigError

u32 = np.uint32
u64 = np.uint64


@small
def reduced(x: Any, q: Any, reciprocal: Any) -> Any:
    """uint64 x below 2^63 modulo q (uint64 of at most 28 bits); reciprocal: 1 / q as float64."""
    # The quotient is off by one at most, so the remainder lies in (-q, 2q); "negative" is a huge unsigned number.
    # Signed conversions are single instructions, unsigned ones are not everywhere.
    rest = u64(x - u64(np.int64(np.float64(np.int64(x)) * reciprocal)) * q)
    rest = min(rest, u64(rest + q))
    return min(rest, u64(rest - q))


@small
def montgomery(x: Any, y: Any, q: Any, q_inverse: Any) -> Any:
    """x y / 2^32 mod q, in (0, 2q), for x of 32 bits and y below q; q_inverse: 1 / q mod 2^32."""
    high = u32((u64(x) * u64(y)) >> u64(32))
    m = u32(u32(x * y) * q_inverse)
    return u32(high + u32(q - u32((u64(m) * u64(q)) >> u64(32))))


@dataclass(frozen=True, eq=False)
class Conversion:
    """Constants of a conversion from two primes to two others, uint32 (Shoup's factors beside each).

    q_source, q_target: [2]. first: [2], (A / a_i)^-1 / N mod a_i, since transforms leave N times a polynomial. weight:
    [2, 2], A / a_i mod each target, or 1 / a_i when the result is divided by A. whole: [2], -A, or -1.
    """

    q_source: Words = field(repr=False)
    q_target: Words = field(repr=False)
    first: Words = field(repr=False)
    first_shoup: Words = field(repr=False)
    weight: Words = field(repr=False)
    weight_shoup: Words = field(repr=False)
    whole: Words = field(repr=False)

    def constants(self) -> tuple[Words, ...]:
        """In the order that kernels unpack them."""
        return (
            self.q_source, self.q_target, self.first, self.first_shoup, self.weight, self.weight_shoup, self.whole,
        )  # fmt: skip


@lru_cache(maxsize=32)
def conversion(source: tuple[int, ...], target: tuple[int, ...], degree: int, *, divide: bool) -> Conversion:
    """From the primes of `source` to those of `target`, disjoint pairs; of x / N, or x / (N A) when `divide`."""
    if len(source) != 2 or len(target) != 2:
        raise ConfigError(f"got {len(source)} and {len(target)} primes, expected two and two")
    whole = source[0] * source[1]
    first = [pow(whole // a * degree, -1, a) for a in source]
    weight = [[(pow(a, -1, q) if divide else whole // a) % q for q in target] for a in source]
    return Conversion(
        q_source=np.array(source, np.uint32),
        q_target=np.array(target, np.uint32),
        first=np.array(first, np.uint32),
        first_shoup=np.array([(x << 32) // a for x, a in zip(first, source, strict=True)], np.uint32),
        weight=np.array(weight, np.uint32),
        weight_shoup=np.array(
            [[(x << 32) // q for x, q in zip(row, target, strict=True)] for row in weight], np.uint32
        ),
        whole=np.array([-(1 if divide else whole) % q for q in target], np.uint32),
    )


@kernel
def converted(x0, x1, out0, out1, zeros, constants) -> None:  # type: ignore[no-untyped-def]
    """Coefficients uint32[N] modulo each source prime, of any 32 bits -> modulo each target prime q, below 8q."""
    q_source, q_target, first, first_shoup, weight, weight_shoup, whole = constants
    a0, a1 = q_source[0], q_source[1]
    b0, b1 = q_target[0], q_target[1]
    f0, f1 = first[0], first[1]
    fs0, fs1 = first_shoup[0], first_shoup[1]
    w00, w01, w10, w11 = weight[0, 0], weight[0, 1], weight[1, 0], weight[1, 1]
    ws00, ws01, ws10, ws11 = weight_shoup[0, 0], weight_shoup[0, 1], weight_shoup[1, 0], weight_shoup[1, 1]
    n0, n1 = whole[0], whole[1]
    r0 = np.float32(1.0) / np.float32(a0)
    r1 = np.float32(1.0) / np.float32(a1)
    half = np.float32(0.5)
    for start in range(0, x0.size, zeros.size):
        run = min(zeros.size, x0.size - start)
        u0 = x0[start : start + run]
        u1 = x1[start : start + run]
        z0 = out0[start : start + run]
        z1 = out1[start : start + run]
        for j in range(run):
            o = zeros[j]
            # Below 2a each: the formula holds for y + a as well, with a larger v.
            y0 = times(u0[j], f0, u32(fs0 + o), a0)
            y1 = times(u1[j], f1, u32(fs1 + o), a1)
            v = u32(np.int32(np.float32(np.int32(y0)) * r0 + np.float32(np.int32(y1)) * r1 + half))
            z0[j] = u32(times(y0, w00, u32(ws00 + o), b0) + times(y1, w10, u32(ws10 + o), b0) + u32(v * n0))
            z1[j] = u32(times(y0, w01, u32(ws01 + o), b1) + times(y1, w11, u32(ws11 + o), b1) + u32(v * n1))
