"""The split of the user tower, against the model's own formulas in the clear."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from he_inference.layouts import tower
from he_inference.layouts.history_parts import READOUTS
from he_inference.parameters import HISTORY
from veil.errors import CiphertextError, ConfigError, InputError
from veil.recsys.model import Model, score_bound


def model_of(items: int, linear: int, seed: int = 0, rank: int = 2) -> Model:
    """A model of the published form, with invented numbers; its user terms have that rank."""
    rng = np.random.default_rng(seed)
    counts = np.exp(rng.normal(3.0, 1.6, items))
    weight = counts**-0.25
    direction = counts * weight / np.linalg.norm(counts * weight)
    used = np.linalg.qr(rng.normal(size=(items, linear)))[0]
    fold_in = np.zeros((items, linear + 3))
    fold_in[:, :linear] = weight[:, None] * (used - np.outer(direction, direction @ used))
    fold_in[:, -1] = np.log(counts)
    basis = rng.normal(size=(items, rank))
    factors = np.concatenate([rng.normal(size=(items, linear)) * 3.0, basis @ rng.normal(size=(rank, 3))], axis=1)
    factors = factors.astype(np.float32)
    return Model(
        item_factors=factors,
        fold_in=fold_in.astype(np.float32),
        norm_terms=np.stack([weight**2, weight * direction], axis=1).astype(np.float32),
        collaborative=linear,
        taste_centre=float(np.log(counts).mean()),
        score_scale=score_bound(factors, linear),
    )


def split(model: Model) -> tower.Tower:
    return tower.split(model.fold_in, model.norm_terms, model.item_factors, model.taste_centre)


def outputs_of(made: tower.Tower, history: NDArray[np.integer]) -> tuple[NDArray[np.float64], int]:
    """(outputs, n) of a history, computed in the clear as the server does."""
    x, met = tower.weights(history, made.layout.items)
    user = made.fold_in.T @ x
    if made.layout.packing > 1:
        user[-3] += 1.0
    return made.rows @ user, met


def expected(model: Model, history: NDArray[np.integer]) -> NDArray[np.float64]:
    return model.item_factors.astype(np.float64) @ model.user_vector(history).astype(np.float64)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_scores_are_the_models(rank: int) -> None:
    model = model_of(300, 9, rank=rank)
    made = split(model)
    assert made.layout.packing == 1 + rank and made.rows.shape == (made.layout.outputs, 12)
    order = np.argsort(model.fold_in[:, -1])
    rng = np.random.default_rng(1)
    histories = [rng.choice(300, size, replace=False) for size in (1, 2, 20, 299)]
    # The rarest and the most popular items: both ends of the taste term's clip.
    histories += [np.arange(0), order[:9], order[-9:], np.arange(300)]
    clipped = 0
    for history in histories:
        outputs, met = outputs_of(made, history)
        got = tower.combined(made.layout, outputs, met, made.item_norm)
        want = expected(model, history)
        np.testing.assert_allclose(got.scores, want, atol=1e-5 * np.abs(want).max() + 1e-5)
        assert 0 < got.error < 2.0 * made.item_norm
        clipped += abs(float(model.user_vector(history)[-1])) == 1.0
    assert clipped >= 2


def test_bounds_hold_for_any_history() -> None:
    made = split(model_of(500, 20))
    linear = 20
    readouts = made.layout.readout_place
    items = np.delete(made.rows, np.s_[readouts : readouts + made.layout.readouts], axis=0)
    assert np.linalg.norm(items, axis=1).max() <= 1.0
    rng = np.random.default_rng(2)
    for size in (1, 5, 50, 500):
        for _ in range(20):
            history = rng.choice(500, size, replace=False)
            x, _met = tower.weights(history, 500)
            user = made.fold_in.T @ x
            assert np.linalg.norm(user[:linear]) <= 1.0 and abs(user[linear]) <= 0.5


def test_error_bound_covers_noise() -> None:
    model = model_of(400, 12, seed=3)
    made = split(model)
    rng = np.random.default_rng(4)
    for size in (1, 3, 30, 400):
        history = rng.choice(400, size, replace=False)
        outputs, met = outputs_of(made, history)
        for _ in range(10):
            # Readouts multiply the error of their own column.
            gain = np.maximum(1.0, np.linalg.norm(made.rows, axis=1))
            noisy = outputs + rng.normal(0.0, HISTORY.score_error / 8.0, outputs.shape) * gain
            got = tower.combined(made.layout, noisy, met, made.item_norm)
            assert np.abs(got.scores - expected(model, history)).max() <= got.error


def test_a_history_without_direction_has_user_terms_alone() -> None:
    """Half of the catalogue has no weight at all: r is 0 and the model's directions are 0."""
    model = model_of(60, 4)
    fold_in, norm_terms = model.fold_in.copy(), model.norm_terms.copy()
    fold_in[30:, :4], norm_terms[30:] = 0.0, 0.0
    plain = Model(fold_in, norm_terms, 4, model.taste_centre, model.item_factors, model.score_scale)
    made = split(plain)
    outputs, met = outputs_of(made, np.arange(30, 60))
    got = tower.combined(made.layout, outputs, met, made.item_norm)
    np.testing.assert_allclose(got.scores, expected(plain, np.arange(30, 60)), atol=1e-4)
    assert got.error >= made.item_norm


def test_linear_towers_are_exact_up_to_a_factor() -> None:
    rng = np.random.default_rng(5)
    fold_in, factors = rng.normal(size=(80, 7)), rng.normal(size=(80, 7))
    made = tower.linear_tower(fold_in, factors)
    history = np.array([3, 70, 9])
    outputs, met = outputs_of(made, history)
    got = tower.combined(made.layout, outputs, met, made.item_norm)
    np.testing.assert_allclose(got.scores, factors @ fold_in[history].sum(axis=0), rtol=1e-9, atol=1e-9)


def test_degenerate_models() -> None:
    """No directions at all, and all numbers zero: nothing divides by zero."""
    nothing = np.zeros((5, 3), np.float32)
    made = tower.split(nothing, np.zeros((5, 2), np.float32), nothing, 0.0)
    outputs, met = outputs_of(made, np.array([1, 2]))
    np.testing.assert_array_equal(tower.combined(made.layout, outputs, met, made.item_norm).scores, np.zeros(5))


def test_what_does_not_fit_is_refused() -> None:
    model = model_of(30, 4)
    made = split(model)
    with pytest.raises(ConfigError):
        tower.split(model.fold_in, model.norm_terms[:9], model.item_factors, 0.0)
    with pytest.raises(ConfigError):
        tower.linear_tower(model.fold_in, model.item_factors[:9])
    for history in (np.array([30]), np.array([-1])):
        with pytest.raises(InputError):
            tower.weights(history, 30)
    outputs, met = outputs_of(made, np.array([1]))
    for bad in (outputs[:-1], np.full_like(outputs, np.nan), np.zeros_like(outputs), outputs * 7.0):
        with pytest.raises(CiphertextError):
            tower.combined(made.layout, bad, met, made.item_norm)


def test_weights_count_each_item_once() -> None:
    x, met = tower.weights([4, 2, 4], 6)
    assert met == 2
    np.testing.assert_allclose(x, np.array([0, 0, 1, 0, 1, 0]) / np.sqrt(2.0))


@pytest.mark.data
def test_published_model_of_movielens(shared_data: Callable[[str], Path]) -> None:
    """A real model, all of its users: the split loses nothing but float32 (measured: 5e-7)."""
    from baseline.train import plaintext_model
    from veil.recsys.datasets import load_dataset
    from veil.recsys.features import build_catalogue

    dataset = load_dataset("ml-100k", shared_data("ml-100k"))
    model = plaintext_model(dataset.train, build_catalogue(dataset.table))
    made = split(model)
    assert made.layout.packing == 3 and len(made.rows[made.layout.readout_place :]) >= READOUTS
    for user in range(0, dataset.train.users, 10):
        history = dataset.train.rows(slice(user, user + 1)).indices
        outputs, met = outputs_of(made, history)
        got = tower.combined(made.layout, outputs, met, made.item_norm)
        np.testing.assert_allclose(got.scores, expected(model, history), rtol=0, atol=2e-6 * model.score_scale)
