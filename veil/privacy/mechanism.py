"""From real rows to integer sums of bounded sensitivity: clip, scale, truncate, sum, all of it exact.

Guarantee: what one user adds to a sum is an integer array whose L2 norm is at most the integer that
`vector_sensitivity` or `outer_sensitivity` returns, checked in integer arithmetic; the sum is exact or refused. With
the integer S as the sum, sigma the noise in grid steps and Z standard normal, the release is

    S + round(sigma Z) = round(S + sigma Z),

a function of S + sigma Z alone. By post-processing it is as private as the Gaussian mechanism with the noise multiplier
sigma / sensitivity; the rounding costs nothing (docs/privacy.md).

Neighbouring relation everywhere below: add or remove one user, where a user is all the rows of one pseudonym at one
party. Source of the clipping: Dwork and Roth, "The Algorithmic Foundations of Differential Privacy", section 3.5;
truncation toward zero instead of rounding is what keeps the norm from growing.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Final

import numpy as np
import numpy.typing as npt

from veil.errors import ConfigError, DataError, InputError, StateError

BITS_LIMIT: Final = 48
GRID_LIMIT: Final = 2**52
"""Sensitivities stay below this, so that float64 holds every grid value of one user exactly."""

RING_BITS: Final = 64
_BLOCK_ENTRIES: Final = 1 << 20
_TAIL_SIGMAS: Final = 40
_EXACT_FLOAT: Final = 2**53
_SIGNED_END: Final = 2**63


def vector_sensitivity(norm: float, bits: int) -> int:
    """L2 sensitivity, in grid steps of 2^-bits, of a sum of rows from `to_grid(rows, norm, bits)`.

    floor(norm * 2^bits), computed exactly. Raises `ConfigError` unless it lies in [1, 2^52).
    """
    if not 0 <= bits <= BITS_LIMIT:
        raise ConfigError(f"got {bits} fractional bits, expected 0 to {BITS_LIMIT}")
    if not (math.isfinite(norm) and norm > 0):
        raise ConfigError(f"got a clipping norm of {norm}, expected a positive number")
    # Sensitivity: a user adds one row v, absent otherwise, and `to_grid` lets no ||v||_2 above this integer through.
    steps = math.floor(Fraction(norm) * (1 << bits))
    if not 1 <= steps < GRID_LIMIT:
        raise ConfigError(
            f"got a clipping norm of {norm} with {bits} fractional bits, which is {steps} grid steps, "
            "expected 1 to 2^52 - 1",
            hint="choose other bits",
        )
    return steps


def outer_sensitivity(left_norm: float, left_bits: int, right_norm: float, right_bits: int) -> int:
    """L2 (Frobenius) sensitivity, in steps of 2^-(left_bits + right_bits), of `outer_sum` of two gridded factors.

    Raises `ConfigError` unless it lies below 2^52.
    """
    # Sensitivity: a user adds l r^T with integer l, r. ||l r^T||_F = ||l||_2 ||r||_2, since the sum over i, j of
    # l_i^2 r_j^2 factors; either norm is at most the integer of its own grid, so the product of the integers bounds it.
    steps = vector_sensitivity(left_norm, left_bits) * vector_sensitivity(right_norm, right_bits)
    if steps >= GRID_LIMIT:
        raise ConfigError(
            f"got an outer product of up to {steps} grid steps, expected below 2^52", hint="choose fewer bits"
        )
    return steps


def to_grid(rows: npt.NDArray[np.float64], norm: float, bits: int) -> npt.NDArray[np.int64]:
    """Each row clipped to L2 norm `norm`, in integer steps of 2^-bits, truncated toward zero; int64 of the same shape.

    `rows`: float64[n, d], one row a user. The squared integer norm of every row of the result is at most
    `vector_sensitivity(norm, bits)` squared, exactly. Rows are independent of each other: no row of the result depends
    on another user. Raises `DataError` with the positions (never the values) of rows that hold NaN or infinity.
    """
    bound = vector_sensitivity(norm, bits)
    # Row-major, so that a row is summed in one order whatever layout it comes in.
    values = np.ascontiguousarray(rows, dtype=np.float64)
    if values.ndim != 2:
        raise InputError(f"got rows of shape {values.shape}, expected two extents (users, columns)")
    out = np.empty(values.shape, dtype=np.int64)
    step = max(1, _BLOCK_ENTRIES // max(1, values.shape[1]))
    for start in range(0, values.shape[0], step):
        block = values[start : start + step]
        finite = np.isfinite(block).all(axis=1)
        if not finite.all():
            where = (np.flatnonzero(~finite) + start)[:20].tolist()
            raise DataError(f"got NaN or infinity in rows at positions {where}, expected finite numbers")
        out[start : start + step] = _clipped(block, bound, bits)
    return out


def _clipped(block: npt.NDArray[np.float64], bound: int, bits: int) -> npt.NDArray[np.int64]:
    # Floating point may do what it likes up to the check: only `within` decides what passes.
    largest = np.abs(block).max(axis=1, initial=0.0)
    # Dividing by the largest entry first keeps squares from overflowing or vanishing.
    unit = np.divide(block, largest[:, None], out=np.zeros_like(block), where=largest[:, None] > 0)
    # Pairwise along each row. `einsum` would cut rows of more than 8,192 columns where its buffer ends, which depends
    # on the rows before: a user's last bits would be other users' doing.
    length = np.sqrt(np.square(unit).sum(axis=1))
    with np.errstate(over="ignore"):  # an overflow means "far above the bound", and the minimum drops it
        wanted = np.minimum(length * largest * 2.0**bits, float(bound))
    scale = np.divide(wanted, length, out=np.zeros_like(length), where=length > 0)
    # Rows that need no clipping keep their own scale, so that k * 2^-bits maps to k.
    untouched = wanted < float(bound)
    scaled = np.where(untouched[:, None], block, unit) * np.where(untouched, 2.0**bits, scale)[:, None]
    grid: npt.NDArray[np.int64] = np.trunc(scaled).astype(np.int64)
    for correction in range(-50, 0):
        outside = np.flatnonzero(~within(grid, bound))
        if not outside.size:
            break
        # Last-place errors made a row a hair too long: shrink it, at first by a hair, and look again.
        scaled[outside] *= 1 - 2.0**correction
        grid[outside] = np.trunc(scaled[outside]).astype(np.int64)
    else:
        raise StateError("got a row above its clipping norm after 50 corrections, expected none")
    return grid


def within(grid: npt.NDArray[np.int64], bound: int) -> npt.NDArray[np.bool_]:
    """Whether each row's integer L2 norm is at most `bound` (below 2^52), exactly; bool[n] for int64[n, d]."""
    if grid.ndim != 2:
        raise InputError(f"got an array of shape {grid.shape}, expected two extents (users, columns)")
    if not 0 <= bound < GRID_LIMIT:
        raise InputError(f"got a bound of {bound} grid steps, expected 0 to 2^52 - 1")
    # Compared from both sides, as the magnitude of the least int64 is no int64.
    small: npt.NDArray[np.bool_] = np.all((grid >= -bound) & (grid <= bound), axis=1)
    magnitude = np.where(small[:, None], np.abs(grid), 0)
    columns = grid.shape[1]
    if columns * bound * bound < _SIGNED_END:
        short: npt.NDArray[np.bool_] = np.einsum("ij,ij->i", magnitude, magnitude) <= bound * bound
        return small & short
    # Halves of 26 bits: a product is below 2^52, so 1024 columns of them stay below 2^62 in int64.
    total = np.zeros(grid.shape[0], dtype=object)
    for start in range(0, columns, 1024):
        part = magnitude[:, start : start + 1024]
        high, low = part >> 26, part & (2**26 - 1)
        for shift, left, right in ((52, high, high), (27, high, low), (0, low, low)):
            total += np.einsum("ij,ij->i", left, right).astype(object) * (1 << shift)
    return small & (total <= bound * bound).astype(np.bool_)


def vector_sum(grid: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Exact sum over users of int64[n, d]; int64[d]. Raises `StateError` when it might leave int64."""
    if grid.ndim != 2:
        raise InputError(f"got an array of shape {grid.shape}, expected two extents (users, columns)")
    if grid.shape[0] * _magnitude(grid) >= _SIGNED_END:
        raise StateError("got a sum over users that may leave 64 bits", hint="choose fewer bits")
    return np.asarray(grid.sum(axis=0, dtype=np.int64))


def outer_sum(left: npt.NDArray[np.int64], right: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Exact sum over users u of left_u right_u^T; int64[a, b] for int64[n, a] and int64[n, b].

    Raises `StateError` when the result might leave int64, `InputError` when the shapes do not fit.
    """
    if left.ndim != 2 or right.ndim != 2 or left.shape[0] != right.shape[0]:
        raise InputError(f"got shapes {left.shape} and {right.shape}, expected (n, a) and (n, b)")
    users = left.shape[0]
    total = np.zeros((left.shape[1], right.shape[1]), dtype=np.int64)
    product = _magnitude(left) * _magnitude(right)
    if users == 0 or product == 0:
        return total
    if users * product >= _SIGNED_END:
        raise StateError("got a sum of outer products that may leave 64 bits", hint="choose fewer bits")
    if product > _EXACT_FLOAT:
        # Too large for float64 even for one user. Integer products, all below 2^63 by the check above; slow and rare.
        for user in range(users):
            total += np.multiply.outer(left[user], right[user])
        return total
    # float64 products of integers are exact up to 2^53. Over `step` users every partial sum, in whatever order and
    # with or without fused multiply-add, is an integer of magnitude at most step * product <= 2^53: exact again.
    step = _EXACT_FLOAT // product
    for start in range(0, users, step):
        part = slice(start, start + step)
        total += (left[part].T.astype(np.float64) @ right[part].astype(np.float64)).astype(np.int64)
    return total


def _magnitude(grid: npt.NDArray[np.int64]) -> int:
    if grid.dtype != np.int64:
        raise InputError(f"got an array of {grid.dtype}, expected int64 grid steps")
    return max(int(grid.max(initial=0)), -int(grid.min(initial=0)))


def variance_factor(noise_source: str, parties: int) -> int:
    """How many full draws of noise lie on a released sum: 1 for `dealer`, `parties` for `parties`.

    With `parties`, every party adds a draw that suffices alone. Whoever knows the draws of n-1 parties subtracts them
    and still faces the last one; to everybody else those draws are independent of the data, so adding them is
    post-processing. Epsilon is that of one draw in both cases; only the utility pays the factor (variance, not sigma).
    """
    if parties < 1:
        raise ConfigError(f"got {parties} parties, expected at least 1")
    if noise_source == "dealer":
        return 1
    if noise_source == "parties":
        return parties
    raise ConfigError(f"got noise source {noise_source!r}, expected dealer or parties")


def check_headroom(*, sensitivity: int, sigma: int, users: int, noise_source: str, parties: int) -> int:
    """Largest magnitude that an entry of sum plus noise can have, with room for 40 sigma of noise; in grid steps.

    `users` is the declared maximum over all parties. A normal deviate exceeds 40 with probability below 10^-349, so
    that the sum, opened modulo 2^64, decodes as a signed integer. Raises `ConfigError` unless it is below 2^63.
    """
    if users < 1 or sensitivity < 1 or sigma < 1:
        raise ConfigError(
            f"got {users} users, sensitivity {sensitivity}, sigma {sigma}, expected positive integers",
        )
    draws = variance_factor(noise_source, parties)
    # An entry of one user's array is at most its L2 norm. A sum of m draws is normal with sigma sqrt(m), and each
    # draw's rounding moves it by at most 1/2.
    peak = users * sensitivity + _TAIL_SIGMAS * sigma * (math.isqrt(draws - 1) + 1) + draws
    if peak >= _SIGNED_END:
        raise ConfigError(
            f"got sums of up to {peak} grid steps for {users} users, expected below 2^63", hint="choose fewer bits"
        )
    return peak
