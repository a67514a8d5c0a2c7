"""The items' side: least squares recovered, noise floored and shrunk, the public prior where it helps."""

from __future__ import annotations

import numpy as np
import pytest

from veil.recsys.postprocess import Directions
from veil.trainers.als import solve

NOBODY = Directions(vectors=np.zeros((400, 0)), values=np.zeros(0))


def statistics(users: int = 5000, items: int = 400, dimensions: int = 5, seed: int = 1):  # type: ignore[no-untyped-def]
    generator = np.random.default_rng(seed)
    factors = generator.standard_normal((items, dimensions)) / np.sqrt(items)
    folded = generator.standard_normal((users, dimensions))
    folded /= np.linalg.norm(folded, axis=1, keepdims=True)
    return factors, folded, generator


def test_exact_statistics_give_the_factors_back() -> None:
    factors, folded, _ = statistics()
    gram = folded.T @ folded
    found, root = solve.solve_items(
        factors @ gram, gram, cross_sd=1e-9, gram_sd=1e-9, counts=np.ones(400), directions=NOBODY
    )
    np.testing.assert_allclose(root @ root, gram, rtol=1e-9)
    # what little is shrunk away is the noise that |y_u| = 1 leaves
    np.testing.assert_allclose(found, factors, atol=0.03 * np.abs(factors).max())


def test_directions_below_the_noise_do_not_blow_up() -> None:
    factors, folded, generator = statistics()
    folded[:, 4] *= 1e-3
    gram_sd = 50.0
    noise = np.triu(generator.standard_normal((5, 5)), 1)
    gram = folded.T @ folded + gram_sd * ((noise + noise.T) / 2**0.5 + np.diag(generator.standard_normal(5)))
    found, root = solve.solve_items(
        factors @ folded.T @ folded, gram, cross_sd=1.0, gram_sd=gram_sd, counts=np.ones(400), directions=NOBODY
    )
    assert np.linalg.eigvalsh(root @ root)[0] >= 0.999 * gram_sd * 10**0.5
    assert np.linalg.norm(found) < 2 * np.linalg.norm(factors)


def test_the_public_prior_brings_factors_closer() -> None:
    """Factors within the public directions, noise as large as they are: the prior more than halves the error."""
    generator = np.random.default_rng(5)
    vectors = np.linalg.qr(generator.standard_normal((400, 20)))[0]
    values = np.linspace(2.0, 0.2, 20)
    truth = vectors @ (values[:, None] * generator.standard_normal((20, 6)))
    noisy = truth + 0.3 * generator.standard_normal((400, 6))
    known = Directions(vectors=vectors, values=values)
    variance, counts = np.full(6, 0.09), np.arange(400.0) + 1.0
    with_prior = solve.shrink_columns(noisy, variance, counts, known)
    without = solve.shrink_columns(noisy, variance, counts, NOBODY)
    assert np.linalg.norm(without - truth) < np.linalg.norm(noisy - truth)
    assert np.linalg.norm(with_prior - truth) < 0.5 * np.linalg.norm(without - truth)


def test_each_item_s_own_matrix_counts_where_it_shows() -> None:
    """Items whose users differ: with exact matrices the weighted normal equations are solved, item by item."""
    factors, folded, generator = statistics(items=40)
    folded[: len(folded) // 2, 0] *= 4.0
    folded /= np.linalg.norm(folded, axis=1, keepdims=True)
    weights = generator.random((len(folded), 40)) * (generator.random((len(folded), 40)) < 0.2)
    weights[: len(folded) // 2, :20] *= 5.0
    grams = np.einsum("ui,uj,uk->ijk", weights, folded, folded)
    gram = folded.T @ folded
    values, vectors = np.linalg.eigh(gram)
    root = (vectors * np.sqrt(values)) @ vectors.T
    matrices = grams + 0.03 * gram
    cross = np.einsum("ijk,ik->ij", matrices, factors)
    counts = weights.sum(axis=0)
    exact = solve.solve_each_item(cross, root, grams, users=len(folded), item_gram_sd=(1e-9, 1e-9), counts=counts)
    np.testing.assert_allclose(exact, factors, rtol=1e-6, atol=1e-9)
    # All noise: every item falls back to its count times the common matrix.
    noisy = solve.solve_each_item(cross, root, grams, users=len(folded), item_gram_sd=(1e9, 1e9), counts=counts)
    common = np.linalg.solve(gram, cross.T).T / (counts / len(folded) + 0.03)[:, None]
    np.testing.assert_allclose(noisy, common, rtol=1e-6)


def test_the_fold_map_is_least_squares_without_noise_and_cautious_with_it() -> None:
    factors = np.linalg.qr(np.random.default_rng(2).standard_normal((50, 3)))[0] * [3.0, 1.0, 0.6]
    exact, cautious = (np.linalg.norm(solve.fold_map(factors, ratio), axis=0) for ratio in (0.0, 10.0))
    # least squares divides by a direction's strength, a large ridge multiplies with it
    assert exact[0] < exact[1] < exact[2]
    assert cautious[0] > cautious[1] > cautious[2]
    assert np.abs(solve.fold_map(factors * 1e6, 0.0)).max() == pytest.approx(1.0)


def test_start_has_the_strength_of_the_public_directions() -> None:
    vectors = np.linalg.qr(np.random.default_rng(3).standard_normal((30, 2)))[0]
    start = solve.start_factors(Directions(vectors=vectors, values=np.array([2.0, 0.5])), 4)
    np.testing.assert_allclose(np.linalg.norm(start, axis=0), [2.0, 0.5, 0.5, 0.5])
    nothing = Directions(vectors=np.zeros((30, 0)), values=np.zeros(0))
    np.testing.assert_allclose(np.linalg.norm(solve.start_factors(nothing, 3), axis=0), 1.0)


def test_the_predictor_is_ridge_regression() -> None:
    """U diag(s^2 / (s^2 + r)) U^T y equals V (V^T V + r)^-1 V^T y when users' vectors have covariance 1."""
    factors, _, generator = statistics(items=60)
    basis, strength = solve.predictor(factors, np.eye(5))
    row = generator.standard_normal(60)
    ridge = factors @ np.linalg.solve(factors.T @ factors + 0.3 * np.eye(5), factors.T @ row)
    np.testing.assert_allclose(basis @ (strength / (strength + 0.3) * (basis.T @ row)), ridge, rtol=1e-9)
