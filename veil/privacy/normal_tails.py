"""Tail probabilities of the discrete half-normal law, as integers that bound them to any number of digits.

Guarantee: the bounds are rigorous; fixed-point interval arithmetic in Python integers, no floating point. For
`veil.privacy.noise`, step (1), whose letters these are.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from typing import Final

UNIT_BITS: Final = 7
"""The unit of the law is 1/s standard deviations, s = 2^7."""


@lru_cache(maxsize=8)
def tail_bounds(bits: int) -> tuple[list[int], list[int]]:
    """Integers lower <= 2^bits t_j <= upper for t_j = sum_{k>=j} g_k / sum_{k>=0} g_k, g_k = exp(-k^2 / 2 s^2).

    Ascending, that is, for j = J down to 1; J is the last with upper > 1. Fixed-point interval arithmetic: every
    product is rounded down for the lower bound and up for the upper one.
    """
    precision = bits + 64
    one = 1 << precision
    ratio_low, ratio_high = _exp_bounds(precision)  # exp(-1 / 2 s^2)
    square_low, square_high = (
        _product(ratio_low, ratio_low, precision)[0],
        _product(ratio_high, ratio_high, precision)[1],
    )
    low, high = [one], [one]  # g_0
    step_low, step_high = ratio_low, ratio_high  # g_{k+1} / g_k = exp(-(2k + 1) / 2 s^2)
    while high[-1] > 2:
        low.append(_product(low[-1], step_low, precision)[0])
        high.append(_product(high[-1], step_high, precision)[1])
        step_low = _product(step_low, square_low, precision)[0]
        step_high = _product(step_high, square_high, precision)[1]
    # The rest of the series: ratios fall, so it is below the geometric series of the last step.
    rest = -(-high[-1] * step_high // (one - step_high))
    for k in range(len(low) - 2, -1, -1):
        low[k] += low[k + 1]
        high[k] += high[k + 1]
    lower = [(value << bits) // (high[0] + rest) for value in low[:0:-1]]
    upper = [-(-((value + rest) << bits) // low[0]) for value in high[:0:-1]]
    kept = bisect_right(upper, 1)
    return lower[kept:], upper[kept:]


def _exp_bounds(precision: int) -> tuple[int, int]:
    """Integers around 2^precision exp(-1 / 2 s^2): partial sums of the alternating series 1 - a + a^2/2 - ..."""
    term_low = term_high = total_low = total_high = 1 << precision
    order = 0
    while term_high > 1:
        order += 1
        divisor = order << (2 * UNIT_BITS + 1)
        term_low, term_high = term_low // divisor, -(-term_high // divisor)
        if order % 2:
            total_low, total_high = total_low - term_high, total_high - term_low
        else:
            total_low, total_high = total_low + term_low, total_high + term_high
    # What follows an alternating, falling series is at most its next term, which is below the last one.
    return total_low - term_high, total_high + term_high


def _product(a: int, b: int, precision: int) -> tuple[int, int]:
    """Floor and ceiling of a b / 2^precision."""
    return (a * b) >> precision, -((-a * b) >> precision)
