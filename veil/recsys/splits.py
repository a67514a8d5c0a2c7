"""Holding out what a model is judged on: by user's last item, by time, by user.

Guarantee: training and held-out parts never share an interaction, and the same input with the same seed gives the same
split. The seeds here make splits repeatable; nothing secret hangs on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from veil.errors import DataError
from veil.recsys.interactions import Interactions

Int64 = npt.NDArray[np.int64]

# Random keys that one block of users may take: 32 MiB of float32.
_BLOCK_KEYS = 8 * 1024 * 1024


@dataclass(frozen=True)
class LeaveOneOut:
    """`train` lacks, for each user, `test_items` (int64[users], -1 where the user had too few items to spare one)."""

    train: Interactions
    test_items: Int64


def leave_one_out(
    interactions: Interactions,
    *,
    order: Literal["latest", "last", "random"] = "latest",
    seed: int = 0,
    at_least: int = 2,
) -> LeaveOneOut:
    """Holds out one item of every user that has `at_least` items or more.

    order: "latest" by time, ties broken at random by `seed`; "last" by item index; "random" by `seed`.
    Raises `DataError` for "latest" without times.
    """
    if order == "latest" and interactions.time is None:
        raise DataError("got interactions without times, expected times", hint="use order='last' or 'random'")
    row = interactions.row_of()
    luck = np.random.default_rng(seed).random(interactions.nnz)
    keys = {
        "latest": (luck, interactions.time, row),
        "last": (interactions.indices, row),
        "random": (luck, row),
    }[order]
    # lexsort's last key is the most significant, so that the last place of each user's run is the one held out.
    order_of = np.lexsort(tuple(key for key in keys if key is not None))
    held = interactions.lengths() >= max(at_least, 1)
    place = order_of[interactions.indptr[1:][held] - 1]
    test_items = np.full(interactions.users, -1, np.int64)
    test_items[held] = interactions.indices[place]
    mask = np.ones(interactions.nnz, dtype=bool)
    mask[place] = False
    return LeaveOneOut(train=interactions.keep(mask), test_items=test_items)


def by_time(interactions: Interactions, cut: int) -> tuple[Interactions, Interactions]:
    """Interactions before `cut` (same clock as `time`), and those at or after it; all users stay in both.

    Raises `DataError` without times.
    """
    if interactions.time is None:
        raise DataError("got interactions without times, expected times", hint="use leave_one_out or by_user")
    before = interactions.time < cut
    return interactions.keep(before), interactions.keep(~before)


def by_user(users: int, fractions: Sequence[float], *, seed: int = 0) -> list[Int64]:
    """Splits user numbers 0..users-1 at random into parts of the given shares.

    fractions: positive, adding up to 1 within 1e-6. Returns one increasing int64 array for each; together they hold
    every user once, and each part's size differs from its share by less than one user.
    """
    shares = np.asarray(fractions, dtype=np.float64)
    if shares.ndim != 1 or not len(shares) or not bool((shares > 0).all()) or abs(float(shares.sum()) - 1.0) > 1e-6:
        raise DataError(
            "got fractions that are not positive numbers adding up to 1", hint="for example 0.55, 0.3, 0.15"
        )
    order = np.random.default_rng(seed).permutation(users).astype(np.int64)
    cuts = np.rint(np.cumsum(shares)[:-1] * users).astype(np.int64)
    return [np.sort(part) for part in np.split(order, cuts)]


def sample_negatives(train: Interactions, test_items: Int64, *, count: int = 99, seed: int = 0) -> Int64:
    """int64[users, count]: for each user, distinct items that are neither in `train` nor the test item, uniformly.

    Raises `DataError` when a user has fewer than `count` such items.
    """
    taken = train.lengths() + (test_items >= 0)
    if train.users and int(taken.max()) + count > train.items:
        raise DataError(f"got a user with fewer than {count} items left to sample among {train.items}")
    generator = np.random.default_rng(seed)
    negatives = np.empty((train.users, count), np.int64)
    block = max(1, _BLOCK_KEYS // max(train.items, 1))
    for start in range(0, train.users, block):
        chosen = train.rows(slice(start, start + block))
        test = test_items[start : start + block]
        keys = generator.random((chosen.users, train.items), dtype=np.float32)
        keys[chosen.row_of(), chosen.indices] = 2.0  # above every key, so never among the smallest
        held = np.flatnonzero(test >= 0)
        keys[held, test[held]] = 2.0
        if count:
            negatives[start : start + block] = np.argpartition(keys, count - 1, axis=1)[:, :count]
    return negatives
