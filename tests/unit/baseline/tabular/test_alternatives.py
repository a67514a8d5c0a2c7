from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, stats

from baseline.tabular import alternatives
from baseline.tabular.descent import sigmoid
from veil.errors import ConfigError
from veil.privacy.accountant import gaussian_delta
from veil.privacy.noise import ByteSource, keyed_source


@pytest.fixture
def source() -> ByteSource:
    return keyed_source(bytes(16), b"tests/alternatives")


def _rows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(6)
    rows = rng.normal(size=(800, 6)) / 4
    labels = (rng.random(800) < sigmoid(rows @ np.array([3.0, -2, 0, 1, 0, 0]))).astype(float)
    return rows, labels


@pytest.mark.parametrize("ridge", [0.5, 10.0])
def test_ridge_logistic_is_that_of_scikit_learn(ridge: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    rows, labels = _rows()
    ours = alternatives.ridge_logistic(rows, labels, bias=0.0, ridge=ridge)
    theirs = linear_model.LogisticRegression(C=1 / ridge, fit_intercept=False, tol=1e-8).fit(rows, labels)
    assert np.abs(ours - theirs.coef_[0]).max() < 1e-3


@pytest.mark.parametrize(("label", "ridge", "sigma"), [(0, 1.0, 1.0), (1, 1.0, 1.0), (1, 0.3, 0.6), (0, 5.0, 2.0)])
def test_objective_perturbation_costs_what_its_docstring_says(label: int, ridge: float, sigma: float) -> None:
    """One dimension, by quadrature: the densities of the minimiser with and without one row x = 1, beside three."""
    others = [(0.7, 1), (-0.9, 0), (0.4, 0)]

    def density(w: np.ndarray, rows: list[tuple[float, int]]) -> np.ndarray:
        slope = ridge * w
        curvature = np.full_like(w, ridge)
        for x, y in rows:
            p = sigmoid(w * x)
            slope = slope + (p - y) * x
            curvature = curvature + p * (1 - p) * x * x
        return stats.norm.pdf(slope, scale=sigma) * curvature

    grid = np.linspace(-40, 40, 400_001)
    without, with_row = density(grid, others), density(grid, [*others, (1.0, label)])
    assert integrate.trapezoid(with_row, grid) == pytest.approx(1.0, abs=1e-6)
    for epsilon in (0.5, 1.0, 2.0):
        if epsilon < math.log1p(0.25 / ridge):
            continue
        bound = gaussian_delta(sigma, epsilon - math.log1p(0.25 / ridge))
        for one, other in ((without, with_row), (with_row, without)):
            delta = integrate.trapezoid(np.maximum(one - math.exp(epsilon) * other, 0.0), grid)
            assert delta <= bound + 1e-9


def test_the_quadrature_sees_too_little_noise() -> None:
    """The same integral catches a claim of twice the noise: it is a test that can fail."""
    grid = np.linspace(-40, 40, 400_001)
    # Without rows the minimiser is normal; one row that is all but certain to be wrong moves it by a full step.
    without = stats.norm.pdf(grid, scale=1.0)
    p = sigmoid(grid - 6.0)
    with_row = stats.norm.pdf(grid + p - 1.0, scale=1.0) * (1.0 + p * (1.0 - p))
    delta = integrate.trapezoid(np.maximum(with_row - math.e * without, 0.0), grid)
    assert gaussian_delta(2.0, 1.0 - math.log1p(0.25)) < delta <= gaussian_delta(1.0, 1.0 - math.log1p(0.25))


def test_objective_perturbation_needs_room_for_its_ridge(source: ByteSource) -> None:
    rows, labels = _rows()
    with pytest.raises(ConfigError, match="expected a larger one"):
        alternatives.objective_perturbation(rows, labels, bias=0.0, ridge=0.1, epsilon=1.0, delta=1e-5, source=source)
    with pytest.raises(ConfigError, match="positive"):
        alternatives.ridge_logistic(rows, labels, bias=0.0, ridge=0.0)


def test_with_a_large_budget_all_come_near_their_limits(source: ByteSource) -> None:
    rows, labels = _rows()
    near = alternatives.objective_perturbation(
        rows, labels, bias=0.0, ridge=5.0, epsilon=900.0, delta=1e-5, source=source
    )
    assert np.abs(near - alternatives.ridge_logistic(rows, labels, bias=0.0, ridge=5.0)).max() < 0.02
    solved = alternatives.sufficient_statistics(
        rows, labels, ridge=2.0, epsilon=900.0, delta=1e-5, share=0.5, source=source
    )
    exact = np.linalg.solve(rows.T @ rows + 2.0 * np.eye(6), rows.T @ (2 * labels - 1))
    assert np.abs(solved - exact).max() < 0.02
    one_hot = (np.arange(800)[:, None] % 4 == np.arange(4)).astype(float)
    ratio = alternatives.naive_bayes(one_hot, labels, columns=1, pseudo=1e-9, epsilon=900.0, delta=1e-5, source=source)
    odds = (one_hot.T @ labels) / (one_hot.T @ (1 - labels))
    assert ratio == pytest.approx(np.log(odds), abs=0.02)


def test_noise_has_its_deviation(source: ByteSource) -> None:
    drawn = alternatives.gaussian(20_000, 2.5, source)
    assert stats.kstest(drawn / 2.5, "norm").pvalue > 1e-3
