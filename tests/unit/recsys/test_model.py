"""User vectors and scores: the documented steps, and bounds whatever the history."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veil.errors import ArtifactError, InputError
from veil.recsys import postprocess
from veil.recsys.interactions import Interactions
from veil.recsys.model import FoldIn, Model, score_bound
from veil.recsys.trained import Trained

ITEMS = 60


def make_model(seed: int = 0, power: float = 0.15) -> Model:
    generator = np.random.default_rng(seed)
    counts = np.exp(generator.normal(2.0, 1.0, ITEMS))
    weight, direction = postprocess.item_weights(counts, power)
    design = postprocess.feature_design(generator.standard_normal((ITEMS, 9)).astype(np.float32))
    directions = postprocess.public_directions(design, counts, weight, direction)
    basis = np.linalg.qr(generator.standard_normal((ITEMS, 5)))[0]
    trained = Trained(counts, power, directions, 7, basis, np.array([5.0, 4.0, 3.0, 2.0, 1.0]))
    return trained.model({name: generator.normal() for name in postprocess.TERMS})


MODEL = make_model()


def test_the_documented_steps() -> None:
    history = np.array([3, 11, 40])
    sums = MODEL.fold_in[history].astype(np.float64).sum(axis=0)
    norms = MODEL.norm_terms[history].astype(np.float64).sum(axis=0)
    length = math.sqrt(norms[0] - norms[1] ** 2)
    expected = np.zeros(15)
    expected[:12] = sums[:12] / length
    expected[12] = 1.0
    expected[13] = max((math.log(3) - 4.6) / 0.95, -2.0) / 2
    expected[14] = np.clip((sums[14] / 3 - MODEL.taste_centre) / 0.5, -2, 2) / 2
    np.testing.assert_allclose(MODEL.user_vector(history), expected, atol=1e-6)


@given(history=st.lists(st.integers(0, ITEMS - 1), max_size=80), seed=st.integers(0, 3), power=st.floats(0, 1))
@settings(max_examples=150, deadline=None)
def test_vectors_and_scores_stay_within_bounds(history: list[int], seed: int, power: float) -> None:
    model = make_model(seed, power)
    vector = model.user_vector(history)
    assert vector.dtype == np.float32
    assert np.abs(vector).max() <= 1.0
    assert np.linalg.norm(vector[:5]) <= 1.0 + 1e-5
    assert np.linalg.norm(vector[5:12]) <= 1.0 + 1e-5
    assert np.abs(model.scores(vector[None])).max() <= model.score_scale


@given(histories=st.lists(st.sets(st.integers(0, ITEMS - 1)), max_size=6))
@settings(max_examples=50, deadline=None)
def test_a_batch_equals_its_users(histories: list[set[int]]) -> None:
    users = [user for user, history in enumerate(histories) for _ in history]
    met = [item for history in histories for item in history]
    batch = MODEL.user_vectors(Interactions.from_pairs(users, met, users=len(histories), items=ITEMS))
    assert batch.shape == (len(histories), 15)
    for row, history in zip(batch, histories, strict=True):
        np.testing.assert_allclose(row, MODEL.user_vector(sorted(history)), atol=1e-6)


def test_order_and_repeats_do_not_matter() -> None:
    np.testing.assert_array_equal(MODEL.user_vector([5, 9, 5]), MODEL.user_vector([9, 5]))


def test_nobody_in_particular_is_scored_by_popularity() -> None:
    vector = MODEL.user_vector([])
    assert not vector[:12].any()
    assert vector[12] == 1.0
    assert vector[14] == 0.0
    assert np.isfinite(MODEL.scores(vector[None])).all()


@pytest.mark.parametrize("history", [[-1], [ITEMS], [0, 10**12]])
def test_unknown_items_are_refused(history: list[int]) -> None:
    with pytest.raises(InputError, match="item number"):
        MODEL.user_vector(history)


def test_other_catalogues_are_refused() -> None:
    with pytest.raises(InputError, match="61 items"):
        MODEL.user_vectors(Interactions(0, 61, np.zeros(1, np.int64), np.zeros(0, np.int32)))


@pytest.mark.parametrize(
    "damage",
    [
        {"item_factors": MODEL.item_factors.astype(np.float64)},
        {"item_factors": MODEL.item_factors[:, :-1]},
        {"item_factors": np.full_like(MODEL.item_factors, np.nan)},
        {"fold_in": MODEL.fold_in[:-1]},
        {"fold_in": np.full_like(MODEL.fold_in, np.inf)},
        {"fold_in": MODEL.fold_in[:, 0]},
        {"norm_terms": MODEL.norm_terms[:, :1]},
        {"collaborative": 13},
        {"collaborative": -1},
        {"taste_centre": float("nan")},
        {"score_scale": MODEL.score_scale * 0.99},
        {"score_scale": float("inf")},
        {"score_scale": float("nan")},
    ],
)
def test_malformed_models_are_refused(damage: dict[str, object]) -> None:
    with pytest.raises(ArtifactError):
        replace(MODEL, **damage)  # type: ignore[arg-type]


def test_at_most_128_dimensions() -> None:
    wide = np.zeros((4, 129), np.float32)
    with pytest.raises(ArtifactError, match="128"):
        FoldIn(wide, np.zeros((4, 2), np.float32), 0, 0.0)


def test_the_score_bound_is_met_by_someone() -> None:
    factors = np.zeros((2, 8), np.float32)
    factors[0, :4] = [3, 4, 6, 8]
    factors[1, 5:] = [1, -2, 3]
    assert score_bound(factors, 2) == pytest.approx(5 + 10, rel=1e-4)


def test_repr_shows_kind_and_shape_only() -> None:
    assert repr(MODEL) == "Model(items=60, dimensions=15)"
