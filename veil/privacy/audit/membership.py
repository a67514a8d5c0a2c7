"""Membership inference by likelihood ratio, and how well it may do against a private mechanism.

The attacker trains shadow models with and without each target, learns how what is published looks in either case, and
scores an audited model by the ratio of the two likelihoods (Carlini et al. 2022, "Membership Inference Attacks From
First Principles", section V: LiRA, with several features and one covariance).

What bounds it: an (epsilon, delta)-private mechanism allows TPR <= e^epsilon FPR + delta at every threshold (Wasserman
and Zhou 2010, "A statistical framework for differential privacy", theorem 2.4; Kairouz, Oh and Viswanath 2015, "The
composition theorem for differential privacy"); one that is mu-GDP, TPR <= Phi(Phi^-1(FPR) + mu).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from veil.errors import InputError

Float64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

_RIDGE = 1e-3


def likelihood_ratios(shadows: Float64, shadow_in: Bool, audited: Float64) -> Float64:
    """log p(features | in) - log p(features | out) for each audited model and target; float64[A, T].

    shadows: float64[S, T, F], what shadow model s shows of target t. shadow_in: bool[S, T], whether t was in it.
    audited: float64[A, T, F]. Normal likelihoods: means for each target, in and out; one covariance over all targets of
    the features in units of their own spread at each target. A target that is always in, or always out, scores 0.
    """
    count, targets, features = shadows.shape
    if shadow_in.shape != (count, targets) or audited.shape[1:] != (targets, features):
        raise InputError(
            f"got {shadows.shape}, {shadow_in.shape}, {audited.shape}, expected (S, T, F), (S, T), (A, T, F)"
        )
    weight = shadow_in.astype(np.float64)[:, :, None]
    n_in, n_out = weight.sum(axis=0), (1 - weight).sum(axis=0)
    mean_in = (weight * shadows).sum(axis=0) / np.maximum(n_in, 1)
    mean_out = ((1 - weight) * shadows).sum(axis=0) / np.maximum(n_out, 1)
    residual = shadows - np.where(weight > 0, mean_in, mean_out)
    spread = np.sqrt(np.square(residual).sum(axis=0) / max(count - 2, 1))
    spread = np.maximum(spread, 1e-9 * np.maximum(np.abs(mean_in), 1e-12))  # without noise there may be none
    unit = (residual / spread).reshape(-1, features)
    covariance = unit.T @ unit / max(len(unit), 1)
    covariance += _RIDGE * np.eye(features) * max(float(np.trace(covariance)) / features, 1e-12)
    precision = np.linalg.inv(covariance)
    from_out, from_in = (audited - mean_out) / spread, (audited - mean_in) / spread
    ratio = 0.5 * (_quadratic(from_out, precision) - _quadratic(from_in, precision))
    known = ((n_in > 0) & (n_out > 0))[:, 0]
    return np.where(known[None, :], np.nan_to_num(ratio, posinf=1e300, neginf=-1e300), 0.0)


def _quadratic(values: Float64, precision: Float64) -> Float64:
    result: Float64 = np.einsum("atf,fg,atg->at", values, precision, values)
    return result


@dataclass(frozen=True, eq=False)
class Roc:
    """Rates at every threshold, from (0, 0) to (1, 1); float64[k] each, not falling."""

    false_positive: Float64
    true_positive: Float64

    def tpr_at(self, fpr: float) -> float:
        """The true positive rate of the lowest threshold whose false positive rate is at most `fpr`."""
        return float(self.true_positive[np.searchsorted(self.false_positive, fpr, side="right") - 1])


def roc(scores: Float64, included: Bool) -> Roc:
    """The receiver operating characteristic of scores, ties kept together. Raises `InputError` without both classes."""
    value, truth = scores.reshape(-1), included.reshape(-1)
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        raise InputError(f"got {positives} members and {negatives} others, expected some of both")
    order = np.argsort(-value, kind="stable")
    last = np.flatnonzero(np.append(np.diff(value[order]) != 0, True))
    hits = np.cumsum(truth[order])[last]
    return Roc(np.concatenate([[0.0], (last + 1 - hits) / negatives]), np.concatenate([[0.0], hits / positives]))


def auc(scores: Float64, included: Bool) -> float:
    """Probability that a member scores above another, ties counted half (Mann and Whitney)."""
    value, truth = scores.reshape(-1), included.reshape(-1)
    rank = stats.rankdata(value)
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        raise InputError(f"got {positives} members and {negatives} others, expected some of both")
    return (float(rank[truth].sum()) - positives * (positives + 1) / 2) / (positives * negatives)


def auc_interval(
    scores: Float64, included: Bool, significance: float, *, seed: int = 0, draws: int = 400
) -> tuple[float, float]:
    """Bootstrap limits of the AUC: float64[A, T] scores, resampled by model, whose targets are not independent.

    Percentile limits at significance / 2 a side (Efron and Tibshirani 1993, "An Introduction to the Bootstrap",
    chapter 13).
    """
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        chosen = generator.integers(len(scores), size=len(scores))
        if included[chosen].any() and not included[chosen].all():
            found.append(auc(scores[chosen], included[chosen]))
    low, high = np.quantile(found, [significance / 2, 1 - significance / 2])
    return float(low), float(high)


def largest_tpr(fpr: npt.ArrayLike, epsilon: float, delta: float) -> Float64:
    """What (epsilon, delta) allows at each false positive rate: least of e^epsilon FPR + delta,
    1 - e^-epsilon (1 - delta - FPR) and 1."""
    rate = np.asarray(fpr, dtype=np.float64)
    growth = math.exp(min(epsilon, 700.0))
    return np.clip(np.minimum(growth * rate + delta, 1 - (1 - delta - rate) / growth), 0.0, 1.0)


def largest_gaussian_tpr(fpr: npt.ArrayLike, mu: float) -> Float64:
    """What mu-GDP allows at each false positive rate."""
    rate: Float64 = special.ndtr(special.ndtri(np.asarray(fpr, dtype=np.float64)) + mu)
    return rate


def largest_gaussian_auc(mu: float) -> float:
    """The area under that curve: Phi(mu / sqrt 2)."""
    return float(special.ndtr(mu / math.sqrt(2)))
