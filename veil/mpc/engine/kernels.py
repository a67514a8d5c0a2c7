"""Loops over ring elements: products of matrices modulo 2^64, and sums of waves.

Guarantee: exact arithmetic modulo 2^64, so every party gets the same numbers for the same input on any machine: no
floating point touches what two parties must agree on. torch multiplies int64 matrices element by element (13 times
slower at 1024 x 64 by 64 x 1), hence loops compiled by numba.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from veil.errors import InputError
from veil.jit import compiler
from veil.mpc.engine.outline import outline

Int64 = NDArray[np.int64]
_compiled = compiler(Path(__file__).resolve().parent, "engine-kernels", [Path(__file__)]).kernel


def matmul(left: Tensor, right: Tensor) -> Tensor:
    """left @ right modulo 2^64 of int64[m, k] and int64[k, c], either of them possibly transposed in memory."""
    if left.dim() != 2 or right.dim() != 2 or left.shape[1] != right.shape[0]:
        raise InputError(f"got factors of shape {tuple(left.shape)} and {tuple(right.shape)}, expected [m, k], [k, c]")
    if left.is_meta or right.is_meta:
        return outline((left.shape[0], right.shape[1]))
    out = np.zeros((left.shape[0], right.shape[1]), np.int64)
    rows, columns = left.numpy(), np.ascontiguousarray(right.numpy())
    if columns.shape[1] == 1:
        if rows.flags.c_contiguous:
            _rows_by_vector(rows, columns[:, 0], out[:, 0])
        else:
            _columns_by_vector(np.ascontiguousarray(rows.T), columns[:, 0], out[:, 0])
    elif rows.flags.c_contiguous:
        _rows_by_matrix(rows, columns, out)
    else:
        _columns_by_matrix(np.ascontiguousarray(rows.T), columns, out)
    return torch.from_numpy(out)


@_compiled
def _rows_by_vector(rows: Int64, vector: Int64, out: Int64) -> None:
    for i in range(rows.shape[0]):
        total = np.int64(0)
        for j in range(rows.shape[1]):
            total += rows[i, j] * vector[j]
        out[i] = total


@_compiled
def _columns_by_vector(columns: Int64, vector: Int64, out: Int64) -> None:
    """`columns` is the transposed left factor."""
    for i in range(columns.shape[0]):
        factor = vector[i]
        for j in range(columns.shape[1]):
            out[j] += columns[i, j] * factor


@_compiled
def _rows_by_matrix(rows: Int64, right: Int64, out: Int64) -> None:
    for i in range(rows.shape[0]):
        for j in range(rows.shape[1]):
            factor = rows[i, j]
            for c in range(right.shape[1]):
                out[i, c] += factor * right[j, c]


@_compiled
def _columns_by_matrix(columns: Int64, right: Int64, out: Int64) -> None:
    for i in range(columns.shape[0]):
        for j in range(columns.shape[1]):
            factor = columns[i, j]
            for c in range(right.shape[1]):
                out[j, c] += factor * right[i, c]


@_compiled
def wave_sums(
    phases: Int64, waves: Int64, sines: Int64, cosines: Int64, table: NDArray[np.int32], shift: int, out: Int64
) -> None:
    """Adds sum over k of P_k cos_k + Q_k sin_k to each element of `out`; see `veil.mpc.engine.waves`.

    phases: int64[n], public, each an index into `table`, the sine of one period. waves: int64[2 K, n], shares of the
    cosines, then of the sines. sines, cosines: int64[outputs, K], the coefficients of each function. out:
    int64[outputs, n]. Products of coefficient and table are cut by `shift` bits.
    """
    harmonics, size = sines.shape[1], table.shape[0]
    quarter, last = size // 4, size - 1
    for i in range(phases.shape[0]):
        phase = phases[i]
        place = np.int64(0)
        for k in range(harmonics):
            place = (place + phase) & last
            sine, cosine = np.int64(table[place]), np.int64(table[(place + quarter) & last])
            for f in range(sines.shape[0]):
                # a sin(x + y) + b cos(x + y) with x public, y shared
                by_cosine = (sines[f, k] * sine + cosines[f, k] * cosine) >> shift
                by_sine = (sines[f, k] * cosine - cosines[f, k] * sine) >> shift
                out[f, i] += by_cosine * waves[k, i] + by_sine * waves[harmonics + k, i]


@_compiled
def waves(masks: Int64, period_bits: int, scale: float, out: Int64) -> None:
    """out[k - 1] = round(scale cos(k w r)), out[K + k - 1] the sines, w = 2 pi / 2^period_bits, for each r of `masks`.

    masks: int64[n]; out: int64[2 K, n]. Each harmonic is a turn more, a product in place of a sine and a cosine: errors
    stay near 1e-15.
    """
    harmonics = out.shape[0] // 2
    turn = 2 * np.pi / np.float64(np.int64(1) << period_bits)
    for i in range(masks.shape[0]):
        angle = np.float64(masks[i] & ((np.int64(1) << period_bits) - 1)) * turn
        cosine, sine = np.cos(angle), np.sin(angle)
        real, imaginary = cosine, sine
        for k in range(harmonics):
            out[k, i] = np.int64(np.rint(real * scale))
            out[harmonics + k, i] = np.int64(np.rint(imaginary * scale))
            real, imaginary = real * cosine - imaginary * sine, real * sine + imaginary * cosine


def warm_up() -> None:
    """Loads or compiles the loops of products and waves, so that no job waits for that: a second, once in a process."""
    square = torch.ones((2, 2), dtype=torch.int64)
    for left in (square, square.t()):
        for right in (square, square[:, :1]):
            matmul(left, right)
    waves(np.zeros(1, np.int64), 20, 1.0, np.empty((2, 1), np.int64))
