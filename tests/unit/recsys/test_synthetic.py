from __future__ import annotations

import hashlib

import numpy as np
import pytest
from scipy import sparse
from scipy.sparse.linalg import svds

from veil.errors import ConfigError
from veil.recsys.dataset import Dataset
from veil.recsys.features import build_catalogue
from veil.recsys.metrics import evaluate
from veil.recsys.synthetic import PARTY_FRACTIONS, generate


@pytest.fixture(scope="module")
def data() -> Dataset:
    return generate(6_000, 600, seed=3)


def fingerprint(dataset: Dataset) -> str:
    train = dataset.train
    assert train.time is not None and dataset.negatives is not None
    state = hashlib.sha256(repr(dataset.table.titles + dataset.table.categories).encode())
    for array in (
        train.indptr,
        train.indices,
        train.time,
        dataset.test_items,
        dataset.negatives,
        *dataset.extra.values(),
    ):
        state.update(np.ascontiguousarray(array).tobytes())
    return state.hexdigest()


def test_the_same_seed_gives_the_same_bytes() -> None:
    assert fingerprint(generate(300, 300, seed=5)) == fingerprint(generate(300, 300, seed=5))
    assert fingerprint(generate(300, 300, seed=5)) != fingerprint(generate(300, 300, seed=6))


def test_everyone_has_a_history_a_test_item_and_negatives(data: Dataset) -> None:
    assert data.train.lengths().min() >= 4 and data.train.lengths().max() <= 199
    assert bool((data.test_items >= 0).all())
    assert data.negatives is not None and data.negatives.shape == (6_000, 99)
    assert not data.train.contains(np.arange(6_000)[:, None], data.negatives).any()
    share = np.bincount(data.extra["party_of"]) / 6_000
    assert np.allclose(share, PARTY_FRACTIONS, atol=0.03)


def test_popularity_is_zipf_like(data: Dataset) -> None:
    counts = np.sort(data.train.counts())[::-1].astype(float)
    middle = slice(10, 400)
    slope, _ = np.polyfit(np.log(np.arange(1, 601)[middle] + 8.0), np.log(counts[middle]), 1)
    assert -1.4 < slope < -0.7
    assert counts[:60].sum() > 0.3 * counts.sum()  # a tenth of the items has a good part of the interactions
    assert counts.min() > 0


def test_low_rank_structure_is_recoverable_and_public_features_carry_signal(data: Dataset) -> None:
    matrix = data.train.to_sparse()
    counts = data.train.counts().astype(np.float32)
    popularity = evaluate(lambda users: np.broadcast_to(counts, (len(users), 600)), data)
    scale = 1 / np.sqrt(data.train.lengths())
    weighted = (sparse.diags_array(scale) @ matrix @ sparse.diags_array(counts**-0.25)).tocsr().astype(np.float32)
    _, _, right = svds(weighted, k=12, rng=np.random.default_rng(0))
    low_rank = evaluate(lambda users: (weighted[users] @ right.T) @ right * counts**0.25, data)
    assert low_rank.hr_at_10 > popularity.hr_at_10 + 0.12
    assert low_rank.full_ndcg_at_10 > 1.6 * popularity.full_ndcg_at_10
    features = build_catalogue(data.table).features
    centred = features - features.mean(axis=0)

    def content(users: np.ndarray) -> np.ndarray:
        return (matrix[users] @ centred) * scale[users, None] ** 2 @ centred.T + 0.3 * np.log(counts)

    assert evaluate(content, data).hr_at_10 > popularity.hr_at_10 + 0.05


def test_titles_are_of_their_genre(data: Dataset) -> None:
    # Words of the title predict the genre: the same word hardly ever stands for two main genres.
    owner: dict[str, dict[str, int]] = {}
    for title, names in zip(data.table.titles, data.table.categories, strict=True):
        if len(names) == 1:
            for word in title.split(" (")[0].split():
                owner.setdefault(word, {}).setdefault(names[0], 0)
                owner[word][names[0]] += 1
    telling = [
        max(seen.values()) / sum(seen.values()) for word, seen in owner.items() if word not in ("The", "and", "of")
    ]
    assert np.mean(telling) > 0.9
    assert len(set(data.table.titles)) > 0.85 * len(data.table)


@pytest.mark.parametrize("arguments", [{"users": 0}, {"items": 100}, {"items": 300, "negatives": 200}])
def test_sizes_that_cannot_be(arguments: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        generate(**arguments)
