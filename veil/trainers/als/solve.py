"""Item factors from noised sufficient statistics, and how users are folded in: the free half of private ALS.

Guarantee: every function is deterministic and reads openings, their noise level and public data only, so all of it is
post-processing (Dwork and Roth, "The Algorithmic Foundations of Differential Privacy", proposition 2.1).

The model is y_u = V h_u + error, V (items x d) the item factors. Alternating least squares fixes one side and solves
for the other:

    users   h_u = (V^T V + ridge)^-1 V^T y_u                              inside the party, by the public map `fold_map`
    items   v_i = A^-1 b_i        b_i = sum_u y_ui h_u, A = sum_u h_u h_u^T           from what opened (`solve_items`)
            v_i = (A_i + w A)^-1 b_i        A_i = sum_u x~_ui h_u h_u^T               with Gram matrices for each item

(Hu, Koren and Volinsky 2008, "Collaborative Filtering for Implicit Feedback Datasets"; on noised statistics Chien et
al. 2021, "Private Alternating Least Squares", ICML.) The items' side is a regression with noise of two known kinds, of
the data and of privacy, so it gets a prior: v_i normal about a regression on the public features of item i (Curmei et
al. 2023, "Private Matrix Factorization with Public Item Features", RecSys), whose strengths are found by marginal
likelihood.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from veil.recsys.postprocess import Directions

Float64 = npt.NDArray[np.float64]

# The ridge of the users' side, relative to the mean eigenvalue of V^T V: a floor, and how it grows with noise.
_LEAST_RIDGE: Final = 0.05
_RIDGE_PER_NOISE: Final = 0.1
_GRID_POINTS: Final = 40
_BINS: Final = 8
_LEAST_SIGNAL_SHARE: Final = 0.02
_LEAST_EIGENVALUE: Final = 1e-3
# Weight of the users who did not meet an item, beside those who did (Hu, Koren and Volinsky's alpha, inverted).
_UNMET_WEIGHT: Final = 0.03


def start_factors(directions: Directions, dimensions: int) -> Float64:
    """V before any round, float64[items, dimensions]: the public directions, each as long as its singular value.

    Where features span fewer, the rest are `Directions.start`'s fixed ones, as long as the last.
    """
    basis, values = directions.start(dimensions), directions.values[:dimensions]
    last = float(values[-1]) if len(values) else 1.0
    return np.asarray(basis * np.concatenate([values, np.full(dimensions - len(values), last)]))


def noise_ratio(noise_sd: float, items: int, users: float) -> float:
    """Norm of the noise in one opened column of sum_u y_u h_u^T, for each user; no unit, as |y_u| = |h_u| = 1."""
    return noise_sd * math.sqrt(items) / max(users, 1.0)


def fold_map(factors: Float64, ratio: float) -> Float64:
    """P = V (V^T V + ridge)^-1, float64[items, d], scaled to a largest entry of 1.

    Users take h_u = P^T y_u / |P^T y_u|, where the scale cancels. A small ridge gives every direction an equal part of
    |h_u|^2; a large one favours the strong. With d equal parts the noise-to-signal ratio of a column is sqrt(d) times
    `ratio` over that column's correlation, of order 1 / sqrt(d), hence the ridge's growth with (d ratio)^2.
    """
    gram = factors.T @ factors
    dimensions = len(gram)
    ridge = _LEAST_RIDGE + _RIDGE_PER_NOISE * (dimensions * ratio) ** 2
    mean = max(float(np.trace(gram)) / dimensions, 1e-300)
    found = np.linalg.solve(gram + ridge * mean * np.eye(dimensions), factors.T).T
    # Row-major: a state travels as raw bytes.
    return np.ascontiguousarray(found / max(float(np.abs(found).max()), 1e-300))


def solve_items(
    cross: Float64,
    gram: Float64,
    *,
    cross_sd: float,
    gram_sd: float,
    counts: Float64,
    directions: Directions,
) -> tuple[Float64, Float64]:
    """V with one Gram matrix for all items, and the square root of that matrix; float64[items, d], float64[d, d].

    cross: float64[items, d], sum_u y_u h_u^T with noise of standard deviation cross_sd on each entry. gram: float64[d,
    d] symmetric, sum_u h_u h_u^T with noise of gram_sd on the diagonal and gram_sd / sqrt 2 beside it. Its eigenvalues
    are floored at the edge of that noise's own spectrum, gram_sd sqrt(2 d) (Wigner's semicircle). In its eigenvectors'
    coordinates b_ij = lambda_j v_ij + N(0, cross_sd^2 + lambda_j / items), where 1 / items is what |y_u| = 1 leaves for
    an entry.
    """
    values, vectors = np.linalg.eigh(gram)
    floor = max(gram_sd * math.sqrt(2.0 * len(values)), _LEAST_EIGENVALUE * float(values[-1]), 1e-300)
    values = np.maximum(values, floor)
    denoised = shrink_columns(cross @ vectors, cross_sd**2 + values / len(cross), counts, directions)
    return (denoised / values) @ vectors.T, (vectors * np.sqrt(values)) @ vectors.T


def solve_each_item(
    cross: Float64,
    gram_root: Float64,
    item_grams: Float64,
    *,
    users: float,
    item_gram_sd: tuple[float, float],
    counts: Float64,
) -> Float64:
    """V with a Gram matrix for each item, float64[items, d].

    cross: denoised, float64[items, d]. item_grams: float64[items, d, d] symmetric, sum_u x~_ui h_u h_u^T with noise of
    standard deviations item_gram_sd on the diagonal and beside it. counts: sum_u x~_ui, so that A_i is the count times
    the mean matrix plus a deviation of its own; deviations are shrunk by a Wiener step in 8 bins of popularity, as most
    items' drown in noise.
    """
    dimensions = len(gram_root)
    gram = gram_root @ gram_root
    expected = counts[:, None, None] * (gram / max(users, 1.0))
    deviation = item_grams - expected
    diagonal, beside = (sd**2 for sd in item_gram_sd)
    noise = (diagonal + (dimensions - 1) * beside) / dimensions
    out = np.empty_like(cross)
    for members in np.array_split(np.argsort(-counts, kind="stable"), _BINS):
        if not len(members):
            continue
        power = max(float(np.square(deviation[members]).mean()), 1e-300)
        matrices = expected[members] + max(0.0, 1.0 - noise / power) * deviation[members] + _UNMET_WEIGHT * gram
        values, vectors = np.linalg.eigh(matrices)
        values = np.maximum(values, _UNMET_WEIGHT * np.linalg.eigvalsh(gram)[0])
        rotated = np.einsum("nij,ni->nj", vectors, cross[members]) / values
        out[members] = np.einsum("nij,nj->ni", vectors, rotated)
    return out


def shrink_columns(noisy: Float64, variance: Float64, counts: Float64, directions: Directions) -> Float64:
    """Posterior mean of a matrix under the public-feature prior, column by column; float64[items, d].

    noisy: float64[items, d] with independent noise of variance[j] in column j. Prior of a column: N(0, alpha U S^2 U^T)
    within the public directions, alpha by marginal likelihood, and a residual whose variance is estimated in 8 bins of
    popularity.
    """
    mean = np.zeros_like(noisy)
    if len(directions.values):
        inside = directions.vectors.T @ noisy  # (K, d)
        shape = (np.square(directions.values) / np.square(directions.values).mean())[:, None]
        alphas = np.exp(np.linspace(math.log(1e-3), math.log(1e3), _GRID_POINTS))[:, None] * variance  # (grid, d)
        marginal = alphas[:, None, :] * shape + variance  # (grid, K, d)
        likelihood = -0.5 * (np.log(marginal) + np.square(inside) / marginal).sum(axis=1)
        prior = np.take_along_axis(alphas, likelihood.argmax(axis=0)[None], axis=0) * shape  # (K, d)
        mean = directions.vectors @ (inside * prior / (prior + variance))
    out = np.empty_like(noisy)
    for members in np.array_split(np.argsort(-counts, kind="stable"), _BINS):
        if not len(members):
            continue
        residual = noisy[members] - mean[members]
        power = np.square(residual).mean(axis=0)
        signal = np.maximum(power - variance, _LEAST_SIGNAL_SHARE * power)
        out[members] = mean[members] + signal / (signal + variance) * residual
    return out


def predictor(factors: Float64, gram_root: Float64) -> tuple[Float64, Float64]:
    """(basis, strength) of `veil.recsys.trained.Trained`: float64[items, d] orthonormal, float64[d] falling.

    Left singular vectors and squared singular values of V A^(1/2). A new user's least-squares prediction
    V (V^T V + ridge)^-1 V^T y is linear in y, so that the solve moves into the item factors, and the client only sums
    rows: with V A^(1/2) = U s W^T it is U diag(s^2 / (s^2 + ridge)) U^T y, for users' vectors scaled to covariance 1.
    """
    left, values, _ = np.linalg.svd(factors @ gram_root, full_matrices=False)
    return left, np.square(values)
