"""Other private ways to a linear model, measured beside noised descent: what the joint trainer does not use.

Guarantee: each function's docstring states its sensitivity for rows of norm at most 1 and its cost in mu = 1/sigma.
Noise is drawn by `veil.privacy.noise`; the arithmetic here is floating point, so these are estimates of utility and no
mechanisms to deploy.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

from veil.errors import ConfigError
from veil.privacy.accountant import noise_multiplier
from veil.privacy.noise import ByteSource, rounded_gaussian

_UNIT_BITS: Final = 40
_ITERATIONS: Final = 500
_CURVATURE: Final = 0.25

Float64 = npt.NDArray[np.float64]


def gaussian(size: int, deviation: float, source: ByteSource) -> Float64:
    """Normal numbers of standard deviation `deviation` on a grid of 2^-40 of it, float64[size]."""
    steps = rounded_gaussian(size, 1 << _UNIT_BITS, source)
    return np.asarray(steps * (deviation / (1 << _UNIT_BITS)), dtype=np.float64)


def ridge_logistic(
    rows: Float64, labels: Float64, *, bias: float, ridge: float, tilt: Float64 | None = None
) -> Float64:
    """argmin_w of sum_i log(1 + e^u_i) - y_i u_i + ridge/2 ||w||^2 + tilt.w, u = X w + bias; L-BFGS, float64[width]."""
    if ridge <= 0:
        raise ConfigError(f"got ridge {ridge}, expected a positive number")
    linear = np.zeros(rows.shape[1]) if tilt is None else tilt

    def loss(weights: Float64) -> tuple[float, Float64]:
        logits = rows @ weights + bias
        value = np.logaddexp(0.0, logits).sum() - labels @ logits + 0.5 * ridge * weights @ weights + linear @ weights
        return float(value), rows.T @ (special.expit(logits) - labels) + ridge * weights + linear

    found = optimize.minimize(
        loss, np.zeros(rows.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": _ITERATIONS}
    )
    return np.asarray(found.x)


def objective_perturbation(
    rows: Float64, labels: Float64, *, bias: float, ridge: float, epsilon: float, delta: float, source: ByteSource
) -> Float64:
    """The exact minimiser of the ridge objective plus b.w, b ~ N(0, sigma^2 I): one draw of noise in all.

    Chaudhuri, Monteleoni and Sarwate 2011; Kifer, Smith and Thakurta 2012. Cost: at most that of one Gaussian mechanism
    with mu = 1/sigma, plus log(1 + 1/(4 ridge)), for add or remove one row x of norm <= 1:
    w <-> b is a bijection with b = -(gradient of the rest), so the density ratio at w is a ratio of determinants times
    a ratio of normal densities. (1) One row more multiplies det(H) by 1 + l'' x^T H^-1 x, in [1, 1 + 1/(4 ridge)].
    (2) The means differ by l'(w) x. The sign of l' is that of the label, its size a in [0, 1] depends on w, and the
    log ratio (+-2 a b.x + a^2 ||x||^2) / 2 sigma^2 is convex in a, so it is at most max(0, G), G its value at a = 1,
    which is the Gaussian mechanism's privacy loss. Above 0 both have one hockey stick; hence the claim.

    It needs the minimiser itself: a run that stops early, or a sigmoid with error, is another mechanism. That, and not
    its scores, is why the joint trainer does not use it.
    """
    extra = math.log1p(_CURVATURE / ridge)
    if extra >= epsilon:
        raise ConfigError(f"got ridge {ridge} for epsilon {epsilon}, expected a larger one")
    sigma = noise_multiplier(epsilon - extra, delta)
    tilt = gaussian(rows.shape[1], sigma, source)
    return ridge_logistic(rows, labels, bias=bias, ridge=ridge, tilt=tilt)


def sufficient_statistics(
    rows: Float64, labels: Float64, *, ridge: float, epsilon: float, delta: float, share: float, source: ByteSource
) -> Float64:
    """Ridge regression on a noised X^T X and X^T (2 y - 1), opened once (AdaSSP without its adaptive ridge: Wang 2018).

    Sensitivity 1 each: ||x x^T||_F = ||x||^2 and ||x (2y - 1)|| = ||x||. The Gram matrix gets `share` of mu^2. Noise on
    a symmetric matrix: sd s on the diagonal and s/sqrt(2) beside it is iid noise of sd s on an orthonormal basis.
    """
    width = rows.shape[1]
    multiplier = noise_multiplier(epsilon, delta)
    square = gaussian(width * width, multiplier / math.sqrt(share), source).reshape(width, width)
    noise = (square + square.T) / 2.0  # off the diagonal sd s / sqrt(2)
    np.fill_diagonal(noise, np.diag(square))
    moments = rows.T @ (2.0 * labels - 1.0) + gaussian(width, multiplier / math.sqrt(1.0 - share), source)
    values, vectors = np.linalg.eigh(rows.T @ rows + noise)
    solved: Float64 = vectors @ ((vectors.T @ moments) / (np.maximum(values, 0.0) + ridge))
    return solved


def naive_bayes(
    one_hot: Float64, labels: Float64, *, columns: int, pseudo: float, epsilon: float, delta: float, source: ByteSource
) -> Float64:
    """Log ratios of noised counts of every category among positives and negatives; float64[width].

    A row adds 1 to at most `columns` counts of one outcome: sensitivity sqrt(columns). pseudo: added to either count in
    the proportion of the outcomes.
    """
    sigma = noise_multiplier(epsilon, delta) * math.sqrt(columns)
    width = one_hot.shape[1]
    noise = gaussian(2 * width, sigma, source)
    positive = np.maximum(one_hot.T @ labels + noise[:width], 0.0)
    negative = np.maximum(one_hot.T @ (1.0 - labels) + noise[width:], 0.0)
    rate = positive.sum() / max(positive.sum() + negative.sum(), 1.0)
    ratio: Float64 = np.log((positive + pseudo * rate) / (negative + pseudo * (1.0 - rate)))
    return ratio
