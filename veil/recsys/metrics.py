"""How well a recommender ranks what a user did next: two protocols, defined exactly.

**Sampled (NCF)**: the held-out item is ranked among itself and 99 given items that the user never met (He et al.,
Neural Collaborative Filtering, WWW 2017, section 4.1). A listed negative that is the held-out item itself is ignored.
**Full**: the held-out item is ranked among all items less those in the user's training history (Krichene and Rendle,
On Sampled Metrics for Item Recommendation, KDD 2020, argue for it).

Ranks count from 0 and ties count half: rank = (number scored higher) + (number of others scored equal) / 2, the
expected rank under random tie breaking, so that a constant score gets no luck. With one held-out item per user:

    HR@k = Recall@k = mean of [rank < k - 1/2]        NDCG@k = mean of [rank < k - 1/2] / log2(rank + 2)

Users without a held-out item (test item -1) are left out of every mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from veil.errors import DataError
from veil.recsys.interactions import Interactions

Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

# Scores of a block of users: int64[block] user numbers in, float[block, items] out.
ScoreBlock = Callable[[Int64], npt.ArrayLike]


class HeldOut(Protocol):
    """What `evaluate` needs of a data set (`veil.recsys.dataset.Dataset` has it)."""

    @property
    def train(self) -> Interactions:
        """Training interactions."""

    @property
    def test_items(self) -> Int64:
        """int64[users]: the held-out item of each user, -1 for none."""

    @property
    def negatives(self) -> Int64 | None:
        """int64[users, n]: items that the user never met."""


@dataclass(frozen=True)
class Metrics:
    """Means over `users` users; the three names without `full_` are the ones that reports print.

    hr_at_10 and ndcg_at_10 are of the sampled protocol; recall_at_20 and everything `full_` of the full ranking.
    """

    users: int
    hr_at_10: float
    ndcg_at_10: float
    recall_at_20: float
    full_hr_at_10: float
    full_ndcg_at_10: float
    full_hr_at_50: float

    def as_dict(self) -> dict[str, float]:
        """Plain numbers, for JSON."""
        return asdict(self)


def sampled_ranks(scores: Float32, test_items: Int64, negatives: Int64) -> Float64:
    """Rank of the test item among itself and the negatives.

    scores: float32[users, items]; test_items: int64[users]; negatives: int64[users, n]. Returns float64[users] >= 0.
    """
    own = np.take_along_axis(scores, test_items[:, None], axis=1)  # (users, 1)
    others = np.take_along_axis(scores, negatives, axis=1)  # (users, n)
    counted = negatives != test_items[:, None]
    higher = ((others > own) & counted).sum(axis=1)
    equal = ((others == own) & counted).sum(axis=1)
    return np.asarray(higher + 0.5 * equal, dtype=np.float64)


def full_ranks(scores: Float32, test_items: Int64, train: Interactions) -> Float64:
    """Rank of the test item among all items less the user's training items.

    scores: float32[users, items]; test_items: int64[users], none of them in `train`; train: the same users in the same
    order. Returns float64[users] >= 0.
    """
    own = np.take_along_axis(scores, test_items[:, None], axis=1)
    higher = (scores > own).sum(axis=1)
    equal = (scores == own).sum(axis=1) - 1  # less itself
    # Take the training items' share back out, instead of writing -inf into a copy of the whole block.
    row = train.row_of()
    met = scores[row, train.indices]
    higher = higher - np.bincount(row, weights=met > own[row, 0], minlength=train.users)
    equal = equal - np.bincount(row, weights=met == own[row, 0], minlength=train.users)
    return np.asarray(higher + 0.5 * equal, dtype=np.float64)


def hr_at_k(ranks: Float64, k: int) -> float:
    """Hit rate: share of users whose test item has rank < k - 1/2. ranks: float64[users] from 0; nan when empty."""
    return float(np.mean(ranks < k - 0.5)) if len(ranks) else float("nan")


def recall_at_k(ranks: Float64, k: int) -> float:
    """Recall with one held-out item per user, which is the hit rate."""
    return hr_at_k(ranks, k)


def ndcg_at_k(ranks: Float64, k: int) -> float:
    """Normalised discounted cumulative gain with one relevant item: 1 / log2(rank + 2) within the first k, else 0."""
    gains = np.where(ranks < k - 0.5, 1.0 / np.log2(ranks + 2.0), 0.0)
    return float(np.mean(gains)) if len(ranks) else float("nan")


def evaluate(
    score_block: ScoreBlock,
    dataset: HeldOut,
    *,
    users: npt.ArrayLike | None = None,
    block_users: int = 1024,
) -> Metrics:
    """Evaluates a recommender in blocks of users.

    score_block: takes int64[block] user numbers of `dataset`, returns real[block, items], finite, higher is better.
    users: the users to evaluate, by number; all when None. Raises `DataError` on scores of a wrong shape or not finite,
    and on a data set without negatives.
    """
    if dataset.negatives is None:
        raise DataError("got a data set without sampled negatives, expected them", hint="see splits.sample_negatives")
    chosen = np.arange(dataset.train.users) if users is None else np.asarray(users, dtype=np.int64).reshape(-1)
    chosen = chosen[dataset.test_items[chosen] >= 0]
    sampled, full = [np.zeros(0)], [np.zeros(0)]
    for start in range(0, len(chosen), block_users):
        block = chosen[start : start + block_users]
        scores = np.asarray(score_block(block), dtype=np.float32)
        if scores.shape != (len(block), dataset.train.items):
            raise DataError(f"got scores of shape {scores.shape}, expected {(len(block), dataset.train.items)}")
        if not bool(np.isfinite(scores).all()):
            raise DataError("got scores that are not finite, expected finite numbers")
        test = dataset.test_items[block]
        sampled.append(sampled_ranks(scores, test, dataset.negatives[block]))
        full.append(full_ranks(scores, test, dataset.train.rows(block)))
    sampled_rank, full_rank = np.concatenate(sampled), np.concatenate(full)
    return Metrics(
        users=len(chosen),
        hr_at_10=hr_at_k(sampled_rank, 10),
        ndcg_at_10=ndcg_at_k(sampled_rank, 10),
        recall_at_20=recall_at_k(full_rank, 20),
        full_hr_at_10=hr_at_k(full_rank, 10),
        full_ndcg_at_10=ndcg_at_k(full_rank, 10),
        full_hr_at_50=hr_at_k(full_rank, 50),
    )
