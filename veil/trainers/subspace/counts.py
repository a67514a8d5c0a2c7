"""The subspace trainer's counts: the release "counts", and the same counts once more in the place of a round.

Guarantee: a user's summand has an L2 norm of at most the release's sensitivity, in integers, whatever the state says.

    counts      (trunc(2^20 x_u / sqrt|x_u|), 2^17)          norm^2 at most 2^40 + 2^34; opens items + 1 numbers
    repeated    isqrt(S^2 / |x_u|) x_u in column 0, else 0   norm at most S, the round's sensitivity, in its shape

The entry after the items counts users, an eighth of a user's norm: it costs 0.8% more noise on the counts and has a
standard deviation of 8 times theirs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from veil.errors import StateError
from veil.recsys.interactions import Interactions
from veil.trainers.linear import COUNT_BITS, count_sensitivity, count_sum

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

USER_STEPS: Final = 1 << (COUNT_BITS - 3)
_AGAINST_SD: Final = 2.0
_SIGNED_END: Final = 2**63


def counts_sensitivity() -> int:
    """Bound on the L2 norm of one user's summand of the release "counts", users' entry included, in grid steps."""
    # Sensitivity: the items' entries have norm at most `count_sensitivity()`, one more entry is USER_STEPS.
    return math.isqrt(count_sensitivity() ** 2 + USER_STEPS**2 - 1) + 1


def counts_and_users(interactions: Interactions) -> Int64:
    """int64[items + 1]: the counts, and `USER_STEPS` for every user who met an item."""
    present = int((interactions.lengths() > 0).sum())
    if present * USER_STEPS >= _SIGNED_END:
        raise StateError("got a sum over users that may leave 64 bits")
    return np.append(count_sum(interactions), np.int64(present * USER_STEPS))


def repeated_counts(interactions: Interactions, shape: tuple[int, ...], sensitivity: int) -> Int64:
    """int64 of a round's shape (items, d): sum_u isqrt(S^2 / |x_u|) x_u in column 0, S the round's sensitivity."""
    lengths = interactions.lengths()
    distinct, which = np.unique(np.maximum(lengths, 1), return_inverse=True)
    # Sensitivity: n entries of one integer v with n v^2 <= S^2, by Python's integers.
    value = np.array([math.isqrt(sensitivity**2 // int(length)) for length in distinct], np.int64)
    if interactions.users * sensitivity >= _SIGNED_END:
        raise StateError("got a sum over users that may leave 64 bits")
    column = np.zeros(interactions.items, np.int64)
    np.add.at(column, interactions.indices, np.repeat(value[which], lengths))
    total = np.zeros(shape, np.int64)
    total[:, 0] = column
    return total


@dataclass(frozen=True, eq=False)
class Estimate:
    """Noised counts before the posterior: `values` float64[items], each with noise of standard deviation `sd`."""

    values: Float64
    sd: float

    def pooled(self, other: Estimate) -> Estimate:
        """Both by inverse variance; as good as one release with the sum of their budgets."""
        if self.sd <= 0 or other.sd <= 0:
            return self if self.sd <= other.sd else other
        own, its = self.sd**-2, other.sd**-2
        return Estimate((own * self.values + its * other.values) / (own + its), (own + its) ** -0.5)


def interactions_per_item(counts: Float64, counts_sd: float, users: float, users_sd: float) -> float:
    """(sum_u sqrt|x_u|)^2 / (users items), two standard deviations on the low side; 0 where that leaves nothing.

    The sum of the counts is sum_u sqrt|x_u|. Where all histories are equally long this is their number of interactions
    divided by items; where not, it is less.
    """
    items = len(counts)
    mass = float(counts.sum()) - _AGAINST_SD * counts_sd * math.sqrt(items)
    if mass <= 0:
        return 0.0
    return mass**2 / (max(users + _AGAINST_SD * users_sd, 1.0) * items)
