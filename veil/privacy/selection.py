"""Which items to log, or to show to others, with differential privacy: the best of a vector of scores, with noise.

For an application that must let recommendations leave the place where the user's history is: a server log, an analytics
stream, an e-mail. Unit: one user's own score vector, hence one user's history. Both functions are (epsilon, 0)-
differentially private: no set of outcomes is more than e^epsilon times as probable under one vector as under a
neighbour.

`release_from_best`: neighbours are ANY two histories, so that what is released hides the history itself (local
differential privacy). An item is drawn with weight e^epsilon if it is among the user's best m, else 1. The weights of
all items sum to m e^epsilon + n - m whatever the history is, so a probability changes by e^epsilon at most: the
exponential mechanism without its usual factor of 2, known as subset selection and optimal for that relation up to
constants (Ye and Barg 2018, "Optimal schemes for discrete distribution estimation under locally differential privacy",
IEEE Trans. Inf. Theory 64:8). It needs no bound on scores. This is the one to take unless something below fits.

`release_top_k`: neighbours are score vectors that differ by at most `sensitivity` in every entry; 2 score_bound if not
stated, which is any two histories again. It pays where scores have a tight public bound or where a weaker relation is
meant (one item of the history more or less, say). A model's own `score_scale` is a worst case, mostly far too wide.

k items are chosen one after the other, each without those before it, at epsilon / k each; by composition all k, with
their order, cost epsilon. Every call costs again: the caller adds up what it releases about one user, for instance with
`SelectionBudget`.

What is exact: scores are compared, or put on a grid of a power of two, exactly; which item wins is decided by exact
coins (`veil.privacy.coins`) and integer comparisons. Floating point takes no part after the scores themselves, so there
is no hole in the tails and no tie that leaks (compare Ilvento 2020, "Implementing the exponential mechanism with base-2
differential privacy", CCS). Timing is not hidden: the number of coins thrown depends on the scores.

Mechanisms of `release_top_k`, for one item, with weights w_i = e^(-epsilon (q_max - q_i) / (2 sensitivity)), at most 1:

    permute-and-flip   go through the items in random order, throw a coin of probability w_i for each, take the first
                       success (McKenna and Sheldon 2020, NeurIPS, algorithm 1). Its law is that of report-noisy-max
                       with exponential noise (Ding et al. 2021, arXiv 2105.07260), and it is never worse in expectation
                       than the exponential mechanism (McKenna and Sheldon, theorem 2).
    exponential        draw an item uniformly, take it with probability w_i, else draw again: P(i) proportional to w_i
                       (McSherry and Talwar 2007, FOCS).

The coins of permute-and-flip are independent of the order, so all are thrown first; the first success in a random order
is then a uniformly random one among the successes.
"""

from __future__ import annotations

import fcntl
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from veil.errors import BudgetError, InputError, StateError
from veil.files import read_bounded, write_atomic
from veil.privacy.coins import below, exp_coins
from veil.privacy.noise import ByteSource, system_source

Selection = Literal["permute-and-flip", "exponential"]

_GRID_BITS: Final = 30
_EPSILON_BITS: Final = 20
_MOST_SCORES: Final = 10_000_000
_DRAWS: Final = 1 << 12


def release_top_k(
    scores: npt.NDArray[np.floating[Any]],
    k: int,
    epsilon: float,
    score_bound: float,
    *,
    sensitivity: float | None = None,
    mechanism: Selection = "permute-and-flip",
    source: ByteSource | None = None,
) -> npt.NDArray[np.int64]:
    """Positions of k different items, best first, chosen with epsilon-differential privacy; int64[k].

    scores: float[n], finite; score_bound: public bound on their magnitude, which must not come from these scores;
    scores outside of it are clipped. epsilon: cost of the whole list, at most 1,000. sensitivity: largest change of one
    score between neighbours, 2 score_bound if None. source: a cryptographic generator, the system's if None. To keep
    items out, leave them out of `scores`; since that is seen, it may not depend on the history. Raises `InputError`.
    """
    each = _checked(scores, k, epsilon)
    grid, steps = _on_grid(scores, score_bound, sensitivity)
    # w_i = e^-(each (q_max - q_i) / (2^21 steps)), with each below 2^30 and q_max - q_i and steps at most 2^31, so that
    # numerators stay below 2^62 and denominators below 2^53.
    denominator = 2 ** (_EPSILON_BITS + 1) * steps
    generator = source or system_source()
    choose = _permute_and_flip if mechanism == "permute-and-flip" else _exponential
    left = np.arange(grid.size)
    chosen = np.empty(k, np.int64)
    for place in range(k):
        behind = (grid[left].max() - grid[left]) * np.int64(each)
        at = choose(behind, denominator, generator)
        chosen[place] = left[at]
        left = np.delete(left, at)
    return chosen


def release_from_best(
    scores: npt.NDArray[np.floating[Any]],
    k: int,
    epsilon: float,
    *,
    best: int = 10,
    source: ByteSource | None = None,
) -> npt.NDArray[np.int64]:
    """Positions of k different items, mostly from the `best` ones, whatever two histories are neighbours; int64[k].

    scores: float[n], finite, of which the order alone counts (ties in the order of positions). epsilon: cost of all k,
    at most 1,000. With one item, it is among the best m of n with probability m e^epsilon / (m e^epsilon + n - m), and
    each of these is as likely as the others. As for items that are left out, see `release_top_k`. Raises `InputError`.
    """
    each = _checked(scores, k, epsilon)
    if not 1 <= best <= scores.size:
        raise InputError(f"got best {best}, expected 1 to {scores.size}, the number of scores")
    generator = source or system_source()
    left = np.argsort(-scores.astype(np.float64), kind="stable")
    chosen = np.empty(k, np.int64)
    for place in range(k):
        # In the order of scores: the first `best` of what is left have weight 1, the others e^-(epsilon / k).
        behind = np.where(np.arange(left.size) < best, np.int64(0), np.int64(each))
        at = _exponential(behind, 2**_EPSILON_BITS, generator)
        chosen[place] = left[at]
        left = np.delete(left, at)
    return chosen


def _checked(scores: npt.NDArray[np.floating[Any]], k: int, epsilon: float) -> int:
    """Epsilon for one item, in units of 2^-20, rounded down: a little less than what was asked for is spent."""
    if scores.ndim != 1 or not 1 <= scores.size <= _MOST_SCORES:
        raise InputError(f"got scores of shape {scores.shape}, expected one extent of 1 to {_MOST_SCORES}")
    if not np.isfinite(scores).all():
        raise InputError("got scores that are not finite, expected numbers")
    if not 1 <= k <= scores.size:
        raise InputError(f"got k {k}, expected 1 to {scores.size}, the number of scores")
    if not (math.isfinite(epsilon) and 0 < epsilon <= 1000):
        raise InputError(f"got epsilon {epsilon}, expected above 0 and at most 1000")
    each = math.floor(Fraction(epsilon) / k * 2**_EPSILON_BITS)
    if each < 1:
        raise InputError(f"got epsilon {epsilon} for {k} items, expected at least 2^-{_EPSILON_BITS} for each")
    return each


def _on_grid(
    scores: npt.NDArray[np.floating[Any]], score_bound: float, sensitivity: float | None
) -> tuple[npt.NDArray[np.int64], int]:
    """Scores in integer steps, and the integer by which a step count may differ between neighbours."""
    if not (math.isfinite(score_bound) and 0 < score_bound < 2.0**100):
        raise InputError(f"got score bound {score_bound}, expected a positive number")
    if sensitivity is not None and not (math.isfinite(sensitivity) and sensitivity > 0):
        raise InputError(f"got sensitivity {sensitivity}, expected a positive number")
    # score_bound < 2^exponent, so that steps of 2^(exponent - 30) give magnitudes of at most 2^30. A product with a
    # power of two is exact, and so is the floor: nothing here rounds.
    exponent = math.frexp(score_bound)[1]
    clipped = np.clip(scores.astype(np.float64), -score_bound, score_bound)
    grid = np.floor(np.ldexp(clipped, _GRID_BITS - exponent)).astype(np.int64)
    top = math.floor(math.ldexp(score_bound, _GRID_BITS - exponent))
    bottom = math.floor(math.ldexp(-score_bound, _GRID_BITS - exponent))
    whole = top - bottom
    if sensitivity is None:
        return grid, whole
    # |floor(a) - floor(b)| <= ceil(|a - b|); and never more than the whole range.
    return grid, min(whole, math.ceil(Fraction(sensitivity) * Fraction(2) ** (_GRID_BITS - exponent)))


def _permute_and_flip(behind: npt.NDArray[np.int64], denominator: int, source: ByteSource) -> int:
    heads = np.flatnonzero(exp_coins(behind, denominator, source))
    if not heads.size:
        raise StateError("got no success, expected one at least: the best item's coin always succeeds")
    return int(heads[below(heads.size, 1, source)[0]])


def _exponential(behind: npt.NDArray[np.int64], denominator: int, source: ByteSource) -> int:
    # Ends with probability 1; a turn succeeds with probability at least 1 - (1 - 1/n)^draws, as the best item's coin
    # always succeeds.
    draws = min(_DRAWS, 4 * behind.size)
    while True:
        candidates = below(behind.size, draws, source)
        taken = np.flatnonzero(exp_coins(behind[candidates], denominator, source))
        if taken.size:
            return int(candidates[taken[0]])


class SelectionBudget:
    """What has been released about one user, in one file: `pay` before a release, and it refuses what is too much.

    Guarantee: when `pay` returns, the cost is on disk; the sum of all costs is at most `limit`. By composition the
    user's releases are together `spent`-differentially private, whatever threads and processes pay at once: the folder
    is locked meanwhile. The file holds one number. A file that is gone counts as nothing spent.
    """

    def __init__(self, path: Path, *, limit: float) -> None:
        """`limit`: epsilon over all releases. Raises `InputError` unless it is finite and positive."""
        if not (math.isfinite(limit) and limit > 0):
            raise InputError(f"got a limit of {limit}, expected a positive number")
        self._path = Path(path)
        self._limit_micro = math.floor(Fraction(repr(float(limit))) * 1_000_000)

    @property
    def spent(self) -> float:
        """Epsilon so far. Raises `StateError` when the file is damaged."""
        return self._spent_micro() / 1e6

    def pay(self, epsilon: float) -> None:
        """Puts a cost on record, in millionths, rounded up. Raises `BudgetError` when it is not covered."""
        if not (math.isfinite(epsilon) and epsilon > 0):
            raise InputError(f"got epsilon {epsilon}, expected a positive number")
        # As written: 0.4 costs 400,000 millionths, although the double nearest to it is larger by 2e-17. A release
        # spends no more than that, since it rounds down to a multiple of 2^-20 of what it is given.
        cost = math.ceil(Fraction(repr(float(epsilon))) * 1_000_000)
        with self._alone():
            before = self._spent_micro()
            if before + cost > self._limit_micro:
                raise BudgetError(
                    f"got epsilon {epsilon:g} on top of {before / 1e6:g},"
                    f" expected at most {self._limit_micro / 1e6:g} in all"
                )
            write_atomic(self._path, b"%d\n" % (before + cost), mode=0o600)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        # The file itself is replaced at each payment, so it is no place for a lock. Each opening of the folder is a
        # lock of its own: threads exclude each other as processes do.
        self._path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _spent_micro(self) -> int:
        if not self._path.exists():
            return 0
        text = read_bounded(self._path, 64).strip()
        if not text.isdigit():
            raise StateError(f"got {self._path.name} damaged, expected one number", hint="restore it, or count as full")
        return int(text)
