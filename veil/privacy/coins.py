"""Exact random decisions from a cryptographic generator: uniform integers below a bound, coins of probability e^-x.

Guarantee: given uniform and independent bytes, `below` is exactly uniform and `exp_coins` is true with exactly the
stated probability, for every rational x >= 0. Only integers are drawn and compared.

`exp_coins` is algorithm 1 of Canonne, Kamath and Steinke 2020 ("The Discrete Gaussian for Differential Privacy", arXiv
2004.00010), which goes back to von Neumann. For 0 <= x <= 1, coins of probability x/1, x/2, x/3, ... are thrown until
one fails, at number K. K > j has probability x^j / j!, so K is odd with probability sum_j (-x)^j / j! = e^-x. A coin of
probability x/j is here a coin of probability x and one of 1/j, so that no product can overflow. For larger x, e^-x is
the product of floor(x) times e^-1 and of e^-(x - floor(x)).

The one deviation: a coin that would take more than 400 throws stops with an error instead (probability 1/400!, below
2^-2800); a generator that gets there is broken.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from veil.errors import InputError, StateError
from veil.privacy.noise import ByteSource

LARGEST: Final = 2**62
"""Bounds, numerators and denominators end here, so that every one of them and twice it is a signed 64-bit integer."""

_MOST_THROWS: Final = 400
# Bytes for a bound below: a draw is refused with probability at most 2^-4 (2^-2 for the widest bounds).
_WIDTHS: Final = ((2**4, 1), (2**12, 2), (2**28, 4), (LARGEST, 8))


def below(bound: int, count: int, source: ByteSource) -> npt.NDArray[np.int64]:
    """`count` independent integers, each exactly uniform in [0, bound); int64[count]. 1 <= bound <= 2^62.

    A draw of w bits below the largest multiple of `bound` is taken modulo `bound`; others are drawn again.
    """
    if not 1 <= bound <= LARGEST:
        raise InputError(f"got bound {bound}, expected 1 to 2^62")
    if count < 0:
        raise InputError(f"got {count} draws, expected at least 0")
    if bound == 1:
        return np.zeros(count, np.int64)
    width = next(width for limit, width in _WIDTHS if bound <= limit)
    last = (1 << 8 * width) - 1 - (1 << 8 * width) % bound
    out = np.empty(count, np.int64)
    filled = 0
    while filled < count:
        draws = np.frombuffer(source(width * (count - filled)), dtype=f"<u{width}")
        if bound & (bound - 1) == 0:
            fresh = draws & draws.dtype.type(bound - 1)
        else:
            fresh = draws[draws <= draws.dtype.type(last)] % draws.dtype.type(bound)
        out[filled : filled + fresh.size] = fresh
        filled += fresh.size
    return out


def exp_coins(numerator: npt.NDArray[np.int64], denominator: int, source: ByteSource) -> npt.NDArray[np.bool_]:
    """Independent coins, each true with probability exactly e^-(numerator / denominator); bool of the same shape.

    numerator: int64[n], not negative; 1 <= denominator <= 2^62. Takes about max(1, x) draws for each coin, fewer as
    most coins of a large x fail early. Raises `InputError` for arguments out of range.
    """
    if numerator.dtype != np.int64 or numerator.ndim != 1:
        raise InputError(f"got {numerator.dtype}{numerator.shape}, expected int64[n]")
    if not 1 <= denominator <= LARGEST:
        raise InputError(f"got denominator {denominator}, expected 1 to 2^62")
    if numerator.size and int(numerator.min()) < 0:
        raise InputError("got a negative numerator, expected at least 0")
    whole, rest = np.divmod(numerator, denominator)
    alive = np.arange(numerator.size)
    done = 0
    while True:
        wanting = whole[alive] > done
        asked = alive[wanting]
        if not asked.size:
            break
        alive = np.concatenate([alive[~wanting], asked[unit_coins(asked.size, source)]])
        done += 1
    out = np.zeros(numerator.size, np.bool_)
    alive.sort()
    out[alive] = _small(rest[alive], denominator, source)
    return out


def unit_coins(count: int, source: ByteSource) -> npt.NDArray[np.bool_]:
    """`count` independent coins, each true with probability exactly 1/e."""
    return _small(np.ones(count, np.int64), 1, source)


def _small(numerator: npt.NDArray[np.int64], denominator: int, source: ByteSource) -> npt.NDArray[np.bool_]:
    """As `exp_coins` for x of at most 1: the first failing throw has an odd number."""
    out = np.empty(numerator.size, np.bool_)
    going = np.arange(numerator.size)
    throw = 1
    while going.size:
        if throw > _MOST_THROWS:
            raise StateError(f"got {throw - 1} successes in a row, expected fewer: the generator is broken")
        passed = np.ones(going.size, np.bool_)
        if throw > 1:
            passed = below(throw, going.size, source) == 0
        # Only for those that still need it; x = 1 needs no draw.
        if denominator > 1:
            at = np.flatnonzero(passed)
            passed[at] = below(denominator, at.size, source) < numerator[going[at]]
        elif not numerator.all():
            passed &= numerator[going] > 0
        out[going[~passed]] = throw % 2 == 1
        going = going[passed]
        throw += 1
    return out
