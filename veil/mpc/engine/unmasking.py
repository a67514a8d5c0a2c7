"""What a party computes alone once a masked number has opened: shares of the quotient, shares of functions.

Guarantee: only public numbers, the opened difference and the own part of the correlation enter; nothing is sent. The
results are exact as `veil.mpc.engine.engine` states them, and bounds are computed in integers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from veil.mpc.engine.expand import logical_shift
from veil.mpc.engine.kernels import wave_sums
from veil.mpc.engine.outline import outline
from veil.mpc.engine.requests import Truncated, Waved, period_bits_of
from veil.mpc.engine.values import Value, sum_of_bits
from veil.mpc.engine.waves import COEFFICIENT_BITS, TABLE_BITS, coefficients, cut_bits, sine_table

TOP = 1 << 62
"""Added before a truncation, so that what is cut is not negative."""


def cut(request: Truncated, dependent: Tensor, opened: Tensor, *, first: bool) -> Value:
    """The own share of x / 2^shift from c = x + 2^62 + r; dependent: r >> shift and the top bit of r, int64[2, ...].

    first: whether this is the party of rank 0, which adds what is public.
    """
    shift, value = request.shift, request.value
    unwrapped = 1 - logical_shift(opened, 63)
    share = unwrapped * dependent[1] * (1 << (64 - shift)) - dependent[0]
    if first:
        share = share + logical_shift(opened, shift) - (TOP >> shift)
    return Value(share, value.bits - shift, sum_of_bits(value.limit_bits - shift, 0.0))


def waved(request: Waved, dependent: Tensor, opened: Tensor, *, first: bool) -> list[Value]:
    """The own shares of each function from u - r modulo the period; dependent: waves of r, int64[2 harmonics, ...].

    first: whether this is the party of rank 0, which adds what is public.
    """
    series, value = request.series, request.value
    bits = 2 * request.precision_bits
    if opened.is_meta:
        shares = outline((len(series), *value.shape))
    else:
        shares = torch.zeros((len(series), value.share.numel()), dtype=torch.int64)
        if first:
            for row, one in zip(shares, series, strict=True):
                row += one.constant * 2**bits >> COEFFICIENT_BITS
        phases = logical_shift(opened << (64 - period_bits_of(request)), 64 - TABLE_BITS)
        sines, cosines = coefficients(series)
        wave_sums(
            phases.reshape(-1).numpy(),
            dependent.reshape(dependent.shape[0], -1).contiguous().numpy(),
            sines,
            cosines,
            sine_table(),
            cut_bits(request.precision_bits),
            shares.numpy(),
        )
    limits = [math.log2(one.limit(request.precision_bits)) for one in series]
    return [Value(row.reshape(value.shape), bits, limit) for row, limit in zip(shares, limits, strict=True)]
