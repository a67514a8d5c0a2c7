"""Discrete Laplace noise, sampled exactly from a cryptographic generator.

Guarantee: `discrete_laplace` returns independent integers k with probability exactly proportional to e^(-|k| / scale),
given that the source's bytes are uniform and independent. No floating-point number takes part.

Why this law: for an integer sum that one user changes by at most `sensitivity` in L1 norm, the sum plus one draw an
entry is (sensitivity / scale)-differentially private, delta 0: the probabilities of any outcome under two neighbouring
sums s and t differ by at most the factor e^(|s - t|_1 / scale). It is the geometric mechanism of Ghosh, Roughgarden and
Sundararajan 2009 ("Universally utility-maximizing privacy mechanisms", STOC), as a vector.

Algorithm (2 of Canonne, Kamath and Steinke 2020, "The Discrete Gaussian for Differential Privacy", arXiv 2004.00010,
with denominator 1):

(1) draw u uniform in [0, scale), keep it with probability e^(-u / scale), otherwise start again;
(2) draw v, the number of coins of probability 1/e that succeed in a row: P(v) = (1 - 1/e) e^-v;
(3) the magnitude is u + scale v: P(m) is proportional to e^(-m / scale) for all m >= 0, as m = u + scale v is unique;
(4) draw a sign; start again when it is negative and the magnitude is 0, so that 0 is not counted twice.

The one deviation: v above 2,047 stops with an error instead (probability e^-2048, below 2^-2900); a generator that gets
there is broken. It keeps the magnitude below 2^63.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from veil.errors import InputError, StateError
from veil.privacy.coins import below, exp_coins, unit_coins
from veil.privacy.noise import ByteSource

SCALE_LIMIT: Final = 2**52
_BLOCK: Final = 1 << 15  # candidates at once: their arrays stay in the processor's second-level cache
_MOST_WHOLE: Final = (1 << 11) - 1


def discrete_laplace(size: int, scale: int, source: ByteSource) -> npt.NDArray[np.int64]:
    """`size` independent integers k, P(k) = (1 - q) / (1 + q) q^|k| with q = e^(-1 / scale); int64[size].

    `scale` in grid steps, 1 <= scale < 2^52; the standard deviation is about sqrt(2) scale. The result under a keyed
    source depends on `size` and `scale` alone. How long a call takes depends slightly on the values (docs/privacy.md).
    Raises `InputError` for arguments out of range.
    """
    if size < 0:
        raise InputError(f"got size {size}, expected at least 0")
    if not 1 <= scale < SCALE_LIMIT:
        raise InputError(f"got scale {scale} grid steps, expected 1 to 2^52 - 1")
    out = np.empty(size, dtype=np.int64)
    filled = 0
    while filled < size:
        # Step (1) keeps 63% and (4) nearly all: a little more than needed, so that most calls end in one turn.
        wanted = size - filled
        values = _candidates(min(_BLOCK, wanted + 3 * wanted // 5 + 8), int(scale), source)[:wanted]
        out[filled : filled + values.size] = values
        filled += values.size
    return out


def _candidates(count: int, scale: int, source: ByteSource) -> npt.NDArray[np.int64]:
    """Runs steps (1) to (4) on `count` candidates; returns those that are kept, in order."""
    position = below(scale, count, source)
    position = position[exp_coins(position, scale, source)]  # (1)
    magnitude = position + scale * _streaks(position.size, source)  # (2), (3)
    negative = below(2, magnitude.size, source).astype(np.bool_)
    values = np.where(negative, -magnitude, magnitude)
    kept: npt.NDArray[np.int64] = values[~(negative & (magnitude == 0))]  # (4)
    return kept


def _streaks(count: int, source: ByteSource) -> npt.NDArray[np.int64]:
    """Step (2)."""
    streak = np.zeros(count, np.int64)
    alive = np.arange(count)
    for length in range(_MOST_WHOLE + 1):
        alive = alive[unit_coins(alive.size, source)]
        if not alive.size:
            return streak
        streak[alive] = length + 1
    raise StateError(f"got {_MOST_WHOLE + 1} coins in a row, expected fewer: the generator is broken")
