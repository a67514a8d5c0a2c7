"""The plaintext twin: it finds what a dense eigendecomposition finds, and ranks well."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from baseline.evaluate import model_metrics
from baseline.train import choose_device, plaintext_model, save_plaintext, train
from veil.errors import ConfigError, InputError, StateError
from veil.recsys import postprocess
from veil.recsys.catalogue import Catalogue
from veil.recsys.dataset import Dataset
from veil.recsys.datasets import load_dataset
from veil.recsys.features import build_catalogue
from veil.recsys.interactions import Interactions
from veil.recsys.synthetic import generate
from veil.trainers.subspace.algorithm import unit_rows


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return generate(users=700, items=260, seed=5, negatives=50)


@pytest.fixture(scope="module")
def catalogue(dataset: Dataset) -> Catalogue:
    return build_catalogue(dataset.table)


@pytest.mark.parametrize("leave_one_out", [True, False])
def test_finds_the_leading_eigenvectors(dataset: Dataset, catalogue: Catalogue, leave_one_out: bool) -> None:
    trained = train(dataset.train, catalogue, dimensions=4, rounds=60, leave_one_out_objective=leave_one_out)
    weight, direction = postprocess.item_weights(trained.counts, trained.power)
    rows = unit_rows(dataset.train, weight, direction)
    moment = rows.T @ rows
    if leave_one_out:
        np.fill_diagonal(moment, 0.0)
    values, vectors = np.linalg.eigh(moment)
    assert trained.basis is not None
    assert trained.strength is not None
    np.testing.assert_allclose(trained.strength, values[::-1][:4], rtol=1e-3)
    np.testing.assert_allclose(np.abs(np.sum(trained.basis * vectors[:, ::-1][:, :4], axis=0)), 1.0, atol=1e-2)


def test_counts_are_exact(dataset: Dataset, catalogue: Catalogue) -> None:
    trained = train(dataset.train, catalogue, dimensions=4, rounds=1)
    rows = dataset.train.dense(slice(None)).astype(np.float64)
    expected = (rows / np.sqrt(rows.sum(axis=1, keepdims=True))).sum(axis=0)
    np.testing.assert_allclose(trained.counts, np.maximum(expected, 0.05))


def test_ranks_better_than_popularity(dataset: Dataset, catalogue: Catalogue) -> None:
    model = plaintext_model(dataset.train, catalogue, "cpu", dimensions=12)
    counts = dataset.train.counts().astype(np.float32)
    from veil.recsys.metrics import evaluate

    popularity = evaluate(lambda users: np.broadcast_to(counts, (len(users), len(counts))), dataset)
    assert model_metrics(model, dataset).ndcg_at_10 > popularity.ndcg_at_10 + 0.03


def test_is_deterministic(dataset: Dataset, catalogue: Catalogue) -> None:
    first, second = (train(dataset.train, catalogue, dimensions=5, rounds=3) for _ in range(2))
    np.testing.assert_array_equal(first.basis, second.basis)


def test_users_without_items_change_nothing(dataset: Dataset, catalogue: Catalogue) -> None:
    empty = Interactions(2, dataset.train.items, np.zeros(3, np.int64), np.zeros(0, np.int32))
    plain = Interactions.concatenate(
        [Interactions(dataset.train.users, dataset.train.items, dataset.train.indptr, dataset.train.indices), empty]
    )
    first = train(dataset.train, catalogue, dimensions=5, rounds=3)
    second = train(plain, catalogue, dimensions=5, rounds=3)
    np.testing.assert_allclose(first.strength, second.strength, rtol=1e-4)


def test_what_cannot_be_trained_is_refused(dataset: Dataset, catalogue: Catalogue) -> None:
    with pytest.raises(InputError, match="items"):
        train(Interactions(0, 3, np.zeros(1, np.int64), np.zeros(0, np.int32)), catalogue)
    lonely = Interactions(1, catalogue.items, np.array([0, 1], np.int64), np.array([4], np.int32))
    with pytest.raises(InputError, match="two items"):
        plaintext_model(lonely, catalogue)
    everything = np.arange(catalogue.items, dtype=np.int32)
    glutton = Interactions(1, catalogue.items, np.array([0, len(everything)], np.int64), everything)
    with pytest.raises(InputError, match="all items"):
        plaintext_model(glutton, catalogue)


@pytest.mark.parametrize("name", ["tpu", "", "meta", "cuda:99"])
def test_devices_that_are_not_there(name: str) -> None:
    with pytest.raises(ConfigError, match="device"):
        choose_device(name)
    assert choose_device("cpu").type == "cpu"


def test_saves_arrays_once(dataset: Dataset, catalogue: Catalogue, tmp_path: Path) -> None:
    model = train(dataset.train, catalogue, dimensions=4, rounds=1).model(dict.fromkeys(postprocess.TERMS, 1.0))
    save_plaintext(tmp_path / "model", model)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["model.json", "model.safetensors"]
    with pytest.raises(StateError, match="exists"):
        save_plaintext(tmp_path / "model", model)


@pytest.mark.data
def test_movielens(shared_data: Callable[[str], Path]) -> None:
    """The target for the plaintext model, from genres and years alone (measured: .717)."""
    dataset = load_dataset("ml-1m", shared_data("ml-1m"))
    model = plaintext_model(dataset.train, build_catalogue(dataset.table))
    assert model_metrics(model, dataset).hr_at_10 > 0.70
