"""Post-processing: what each estimator promises."""

from __future__ import annotations

import numpy as np
import pytest

from veil.errors import ConfigError
from veil.recsys import postprocess as post


@pytest.fixture(scope="module")
def world() -> dict[str, np.ndarray]:
    """Counts that follow features, and a low-rank matrix within them plus a rest of its own."""
    generator = np.random.default_rng(4)
    features = generator.standard_normal((400, 12)).astype(np.float32)
    counts = np.exp(1.5 + features[:, 0] + 0.5 * features[:, 1] + 0.3 * generator.standard_normal(400))
    design = post.feature_design(features)
    return {"features": features, "counts": counts, "design": design}


def directions_of(world: dict[str, np.ndarray]) -> post.Directions:
    weight, direction = post.item_weights(world["counts"], 0.15)
    return post.public_directions(world["design"], world["counts"], weight, direction)


def test_design_is_centred_and_scaled(world: dict[str, np.ndarray]) -> None:
    design = world["design"]
    assert design.shape == (400, 13)
    np.testing.assert_allclose(design[:, :-1].mean(axis=0), 0.0, atol=1e-6)
    assert np.square(design[:, :-1]).sum(axis=1).mean() == pytest.approx(2.25)
    np.testing.assert_array_equal(design[:, -1], 1.0)


def test_design_drops_constant_columns() -> None:
    features = np.ones((5, 3), np.float32)
    features[:, 1] = range(5)
    assert post.feature_design(features).shape == (5, 2)
    assert post.feature_design(np.zeros((5, 0), np.float32)).shape == (5, 1)


def test_posterior_is_nearer_than_the_noisy_counts(world: dict[str, np.ndarray]) -> None:
    noisy = world["counts"] + np.random.default_rng(1).normal(0, 4.0, 400)
    posterior = post.posterior_counts(noisy, 4.0, world["design"])
    floored = np.maximum(noisy, 0.05)
    assert np.square(posterior - world["counts"]).mean() < 0.5 * np.square(floored - world["counts"]).mean()
    truth = np.log(world["counts"])
    assert np.square(np.log(posterior) - truth).mean() < 0.2 * np.square(np.log(floored) - truth).mean()
    assert (posterior > 0).all()


def test_posterior_without_noise_is_the_count(world: dict[str, np.ndarray]) -> None:
    np.testing.assert_array_equal(post.posterior_counts(world["counts"], 0.0, world["design"]), world["counts"])
    assert post.posterior_counts(np.array([-3.0, 2.0]), 0.0, np.ones((2, 1))).tolist() == [0.05, 2.0]


@pytest.mark.parametrize("noise_sd", [1e-6, 0.01, 1.0, 1e6])
@pytest.mark.parametrize("counts", [np.full(50, -5.0), np.zeros(50), np.linspace(-1e6, 1e6, 50)])
def test_posterior_is_sound_on_any_opening(counts: np.ndarray, noise_sd: float) -> None:
    posterior = post.posterior_counts(counts, noise_sd, np.ones((50, 1)))
    assert np.isfinite(posterior).all()
    assert (posterior >= 0.05).all()


def test_directions_are_orthonormal_and_free_of_popularity(world: dict[str, np.ndarray]) -> None:
    found = directions_of(world)
    _, direction = post.item_weights(world["counts"], 0.15)
    np.testing.assert_allclose(found.vectors.T @ found.vectors, np.eye(12), atol=1e-8)
    np.testing.assert_allclose(direction @ found.vectors, 0.0, atol=1e-8)
    assert (np.diff(found.values) <= 0).all()


def test_dependent_features_do_not_count_twice(world: dict[str, np.ndarray]) -> None:
    doubled = np.concatenate([world["features"], world["features"] @ np.ones((12, 3), np.float32)], axis=1)
    weight, direction = post.item_weights(world["counts"], 0.15)
    found = post.public_directions(post.feature_design(doubled), world["counts"], weight, direction)
    assert len(found.values) == 12


def test_start_fills_up_with_fixed_directions(world: dict[str, np.ndarray]) -> None:
    found = directions_of(world)
    np.testing.assert_array_equal(found.start(5), found.vectors[:, :5])
    filled = found.start(20)
    np.testing.assert_allclose(filled.T @ filled, np.eye(20), atol=1e-8)
    np.testing.assert_array_equal(filled, found.start(20))
    nothing = post.Directions(np.zeros((400, 0)), np.zeros(0)).start(4)
    np.testing.assert_allclose(nothing.T @ nothing, np.eye(4), atol=1e-8)


def test_shrinking_brings_a_noisy_sum_nearer(world: dict[str, np.ndarray]) -> None:
    found = directions_of(world)
    generator = np.random.default_rng(6)
    inside = found.vectors @ (found.values[:, None] * generator.standard_normal((12, 8)))
    truth = inside + 0.1 * generator.standard_normal((400, 8))
    sd = float(np.sqrt(np.square(truth).mean()))
    noisy = truth + generator.normal(0, sd, truth.shape)
    left, values = post.shrink_sum(noisy, sd, world["counts"], found)
    np.testing.assert_allclose(left.T @ left, np.eye(8), atol=1e-8)
    assert (np.diff(values) <= 0).all()
    wanted = np.linalg.svd(truth, full_matrices=False)[0][:, :3]
    plain = np.linalg.svd(noisy, full_matrices=False)[0][:, :3]
    assert np.linalg.norm(wanted.T @ left[:, :3]) > np.linalg.norm(wanted.T @ plain) + 0.1
    assert values.sum() < np.linalg.svd(noisy, compute_uv=False).sum()


def test_shrinking_without_noise_or_features(world: dict[str, np.ndarray]) -> None:
    matrix = np.random.default_rng(7).standard_normal((400, 5))
    nothing = post.Directions(np.zeros((400, 0)), np.zeros(0))
    _, values = post.shrink_sum(matrix, 0.0, world["counts"], nothing)
    np.testing.assert_allclose(values, np.linalg.svd(matrix, compute_uv=False))
    _, shrunk = post.shrink_sum(matrix, 1.0, world["counts"], nothing)
    assert shrunk.sum() < 0.5 * values.sum()


def test_terms_cover_the_columns(world: dict[str, np.ndarray]) -> None:
    found = directions_of(world)
    basis = found.start(5)
    terms = post.factor_terms(world["counts"], found, 7, basis, np.arange(5.0, 0.0, -1.0))
    assert set(terms) == set(post.TERMS)
    assert [terms[name].first for name in post.TERMS] == [0, 5, 12, 12, 13, 14]
    whole = post.combine(terms, dict.fromkeys(terms, 1.0), 15)
    parts = [post.combine(terms, {name: float(name == one) for name in terms}, 15) for one in terms]
    np.testing.assert_allclose(np.sum(parts, axis=0), whole)
    bare = post.factor_terms(world["counts"], post.Directions(np.zeros((400, 0)), np.zeros(0)), 7, None, None)
    assert set(bare) == set(post.TERMS) - {"collaborative", "content"}


def test_a_missing_weight_is_named(world: dict[str, np.ndarray]) -> None:
    terms = post.factor_terms(world["counts"], directions_of(world), 7, None, None)
    with pytest.raises(ConfigError, match="taste-log"):
        post.combine(terms, dict.fromkeys(set(terms) - {"taste-log"}, 1.0), 10)


def test_equal_counts_do_not_divide_by_zero() -> None:
    terms = post.factor_terms(np.full(6, 2.0), post.Directions(np.zeros((6, 0)), np.zeros(0)), 3, None, None)
    for term in terms.values():
        assert not term.factors.any()
