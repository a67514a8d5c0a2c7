from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veil.errors import DataError
from veil.recsys.dataset import Dataset
from veil.recsys.datasets import load_ml1m
from veil.recsys.interactions import Interactions
from veil.recsys.items import ItemTable
from veil.recsys.metrics import evaluate, full_ranks, hr_at_k, ndcg_at_k, recall_at_k, sampled_ranks


def dataset(train: Interactions, test: list[int], negatives: list[list[int]] | None) -> Dataset:
    names = tuple(f"i{number}" for number in range(train.items))
    table = ItemTable(names, names, ((),) * train.items)
    drawn = None if negatives is None else np.array(negatives, np.int64)
    return Dataset("toy", train, np.array(test, np.int64), drawn, table)


def test_by_hand() -> None:
    scores = np.array([[9, 8, 7, 6, 5, 4], [1, 1, 1, 1, 1, 1]], np.float32)
    test = np.array([2, 0])
    negatives = np.array([[0, 4, 2], [3, 4, 0]])  # each row holds its own test item, which is ignored
    assert sampled_ranks(scores, test, negatives).tolist() == [1.0, 1.0]  # one higher; two ties count a half each
    train = Interactions.from_pairs([0, 1], [0, 1], users=2, items=6)
    assert full_ranks(scores, test, train).tolist() == [1.0, 2.0]  # item 1; four ties of the untrained


def test_definitions() -> None:
    ranks = np.array([0.0, 9.0, 9.5, 10.0])
    assert hr_at_k(ranks, 10) == recall_at_k(ranks, 10) == 0.5
    assert ndcg_at_k(ranks, 10) == pytest.approx((1 + 1 / math.log2(11)) / 4)
    assert math.isnan(hr_at_k(np.zeros(0), 10))


@given(st.integers(0, 10_000))
def test_full_ranks_agree_with_a_plain_loop(seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 5, (6, 12)).astype(np.float32)
    test = generator.integers(0, 12, 6)
    met = generator.random((6, 12)) < 0.4
    met[np.arange(6), test] = False
    train = Interactions.from_pairs(*np.nonzero(met), users=6, items=12)
    for user, rank in enumerate(full_ranks(scores, test, train)):
        own = scores[user, test[user]]
        others = [scores[user, item] for item in range(12) if item != test[user] and not met[user, item]]
        assert rank == sum(other > own for other in others) + sum(other == own for other in others) / 2


def test_evaluate_goes_by_blocks_and_leaves_out_users_without_a_test_item() -> None:
    generator = np.random.default_rng(0)
    scores = generator.standard_normal((9, 30))
    data = dataset(
        Interactions.from_pairs([0, 1, 2], [3, 4, 5], users=9, items=30),
        [0, 1, -1, 2, 6, 7, 8, 9, -1],
        [[10, 11, 12]] * 9,
    )
    whole = evaluate(lambda users: scores[users], data)
    assert whole.users == 7
    assert evaluate(lambda users: scores[users], data, block_users=2) == whole
    some = evaluate(lambda users: scores[users], data, users=[2, 4])
    assert some.users == 1
    assert whole.as_dict()["recall_at_20"] == whole.recall_at_20


def test_unfit_scores_are_refused() -> None:
    data = dataset(Interactions.from_pairs([0], [0], users=2, items=3), [1, 2], [[0], [0]])
    for scores in (np.zeros((2, 2)), np.full((2, 3), np.nan), np.zeros(3)):
        with pytest.raises(DataError):
            evaluate(lambda users, scores=scores: scores, data)  # type: ignore[misc]
    with pytest.raises(DataError, match="negatives"):
        evaluate(lambda users: np.zeros((len(users), 3)), dataset(data.train, [1, 2], None))


@pytest.mark.data
def test_popularity_on_movielens_1m_gives_the_published_numbers(shared_data: Callable[[str], Path]) -> None:
    # Rendle et al., Neural Collaborative Filtering vs. Matrix Factorization Revisited (RecSys 2020): 0.4535 / 0.2543 on
    # the original files; 0.4531 / 0.2542 on these (97 rare items are known only up to a swap).
    data = load_ml1m(shared_data("ml-1m"))
    counts = data.train.counts().astype(np.float32)
    metrics = evaluate(lambda users: np.broadcast_to(counts, (len(users), len(counts))), data)
    assert metrics.users == 6040
    assert (round(metrics.hr_at_10, 4), round(metrics.ndcg_at_10, 4)) == (0.4531, 0.2542)
    assert (round(metrics.full_hr_at_10, 4), round(metrics.full_ndcg_at_10, 4)) == (0.0414, 0.0204)
    assert round(metrics.full_hr_at_50, 4) == 0.1447
