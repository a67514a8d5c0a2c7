from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veil.errors import DataError
from veil.recsys.interactions import Interactions
from veil.recsys.splits import by_time, by_user, leave_one_out, sample_negatives


def some(seed: int, users: int = 20, items: int = 15) -> Interactions:
    generator = np.random.default_rng(seed)
    row, column = np.nonzero(generator.random((users, items)) < 0.3)
    return Interactions.from_pairs(row, column, users=users, items=items, time=generator.integers(0, 9, len(row)))


@given(st.integers(0, 1000), st.sampled_from(["latest", "last", "random"]))
def test_leave_one_out_takes_one_item_of_each_user_that_can_spare_one(
    seed: int, order: Literal["latest", "last", "random"]
) -> None:
    whole = some(seed)
    held = leave_one_out(whole, order=order, seed=seed)
    assert whole.time is not None and held.train.time is not None
    for user in range(whole.users):
        items, left = whole.history(user).tolist(), held.train.history(user).tolist()
        test = int(held.test_items[user])
        if len(items) < 2:
            assert test == -1 and left == items
            continue
        assert sorted([*left, test]) == items
        if order == "latest":
            times = dict(zip(items, whole.time[whole.indptr[user] : whole.indptr[user + 1]].tolist(), strict=True))
            assert times[test] == max(times.values())
        if order == "last":
            assert test == items[-1]
    again = leave_one_out(whole, order=order, seed=seed)
    assert np.array_equal(again.test_items, held.test_items)


def test_ties_in_time_do_not_favour_an_item() -> None:
    row, column = np.nonzero(np.ones((300, 3)))
    whole = Interactions.from_pairs(row, column, users=300, items=3, time=np.zeros(900))
    assert np.bincount(leave_one_out(whole, seed=1).test_items).min() > 60


def test_without_times() -> None:
    timeless = Interactions.from_pairs([0, 0], [1, 2], users=1, items=3)
    with pytest.raises(DataError, match="times"):
        leave_one_out(timeless)
    with pytest.raises(DataError, match="times"):
        by_time(timeless, 0)


@given(st.integers(0, 1000), st.integers(-1, 10))
def test_by_time_cuts_and_loses_nothing(seed: int, cut: int) -> None:
    whole = some(seed)
    before, after = by_time(whole, cut)
    assert before.time is not None and after.time is not None
    assert bool((before.time < cut).all()) and bool((after.time >= cut).all())
    assert np.array_equal(before.dense(slice(None)) + after.dense(slice(None)), whole.dense(slice(None)))


@given(st.integers(0, 200), st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(0, 99))
def test_by_user_shares_everyone_out_once(users: int, weights: list[int], seed: int) -> None:
    fractions = [weight / sum(weights) for weight in weights]
    parts = by_user(users, fractions, seed=seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(users))
    for part, fraction in zip(parts, fractions, strict=True):
        assert abs(len(part) - fraction * users) <= 1
        assert bool((np.diff(part) > 0).all())


@pytest.mark.parametrize("fractions", [[], [0.5, 0.4], [1.5, -0.5], [float("nan"), 1.0]])
def test_fractions_that_are_none(fractions: list[float]) -> None:
    with pytest.raises(DataError, match="fractions"):
        by_user(10, fractions)


@given(st.integers(0, 500))
def test_negatives_are_distinct_and_unmet(seed: int) -> None:
    whole = some(seed, items=40)
    held = leave_one_out(whole, seed=seed)
    negatives = sample_negatives(held.train, held.test_items, count=9, seed=seed)
    assert negatives.shape == (20, 9) and negatives.min() >= 0 and negatives.max() < 40
    assert all(len(set(row)) == 9 for row in negatives.tolist())
    assert not whole.contains(np.arange(20)[:, None], negatives).any()


def test_negatives_are_uniform_over_what_is_unmet() -> None:
    train = Interactions.from_pairs(np.arange(4000), np.zeros(4000), users=4000, items=11)
    counts = np.bincount(sample_negatives(train, np.full(4000, 1), count=3, seed=3).ravel(), minlength=11)
    assert counts[:2].tolist() == [0, 0]
    expected = 4000 * 3 / 9
    assert (
        (counts[2:] - expected) ** 2 / expected
    ).sum() < 30  # chi-squared of 8 degrees: false alarm 2e-4, fixed seed


def test_too_few_items_to_sample() -> None:
    with pytest.raises(DataError, match="fewer than 3"):
        sample_negatives(Interactions.from_pairs([0, 0], [0, 1], users=1, items=5), np.array([2]), count=3)
