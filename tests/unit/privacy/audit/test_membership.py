"""Membership inference on features whose law is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special

from veil.errors import InputError
from veil.privacy.audit import membership


def features(count: int, targets: int, mu: float, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two features: one that moves by mu for members, at a place and scale of each target's own; one of noise."""
    included = generator.random((count, targets)) < 0.5
    place = np.linspace(-5, 5, targets)
    scale = np.exp(np.linspace(-2, 2, targets))
    signal = place + scale * (generator.normal(size=(count, targets)) + mu * included)
    return np.stack([signal, generator.normal(size=(count, targets))], axis=2), included


def test_the_attack_reaches_the_best_possible_area() -> None:
    generator, mu = np.random.default_rng(1), 1.5
    shadows, shadow_in = features(300, 60, mu, generator)
    audited, included = features(150, 60, mu, generator)
    scores = membership.likelihood_ratios(shadows, shadow_in, audited)
    area = membership.auc(scores, included)
    best = membership.largest_gaussian_auc(mu)
    assert best == pytest.approx(float(special.ndtr(mu / math.sqrt(2))))
    assert best - 0.02 < area < best + 0.01
    low, high = membership.auc_interval(scores, included, 0.01)
    assert low < area < high and high - low < 0.05
    curve = membership.roc(scores, included)
    assert abs(curve.tpr_at(0.1) - float(membership.largest_gaussian_tpr(0.1, mu))) < 0.04


def test_without_signal_it_guesses() -> None:
    generator = np.random.default_rng(2)
    shadows, shadow_in = features(30, 80, 0.0, generator)
    audited, included = features(60, 80, 0.0, generator)
    scores = membership.likelihood_ratios(shadows, shadow_in, audited)
    low, high = membership.auc_interval(scores, included, 1e-3)
    assert low < 0.5 < high


def test_a_target_of_one_kind_scores_nothing() -> None:
    generator = np.random.default_rng(3)
    shadows, shadow_in = features(10, 4, 1.0, generator)
    shadow_in[:, 0], shadow_in[:, 1] = True, False
    scores = membership.likelihood_ratios(shadows, shadow_in, shadows)
    assert not scores[:, :2].any() and scores[:, 2:].all() and np.isfinite(scores).all()
    with pytest.raises(InputError):
        membership.likelihood_ratios(shadows, shadow_in[:5], shadows)


def test_curve_and_area_by_hand() -> None:
    scores = np.array([3.0, 2.0, 2.0, 1.0])
    included = np.array([True, True, False, False])
    curve = membership.roc(scores, included)
    assert curve.false_positive.tolist() == [0.0, 0.0, 0.5, 1.0]
    assert curve.true_positive.tolist() == [0.0, 0.5, 1.0, 1.0]
    assert curve.tpr_at(0.0) == 0.5 and curve.tpr_at(0.49) == 0.5 and curve.tpr_at(1.0) == 1.0
    assert membership.auc(scores, included) == pytest.approx(0.875)
    for call in (membership.roc, membership.auc):
        with pytest.raises(InputError):
            call(scores, np.ones(4, bool))


def test_what_differential_privacy_allows() -> None:
    rate = np.linspace(0, 1, 101)
    allowed = membership.largest_tpr(rate, 1.0, 1e-5)
    assert allowed[0] == pytest.approx(1e-5) and allowed[-1] == 1.0
    assert allowed[1] == pytest.approx(math.e * 0.01 + 1e-5)
    # Mirrored at the other end: 1 - TPR >= e^-eps (1 - delta - FPR).
    assert allowed[99] == pytest.approx(1 - (0.01 - 1e-5) / math.e)
    assert np.all(membership.largest_tpr(rate, 800.0, 0.0) <= 1)
    # One mu is (epsilon, delta) for its own curve of pairs, so the Gaussian region lies inside.
    from veil.privacy.gaussian import gaussian_epsilon

    mu = 0.8
    inside = membership.largest_gaussian_tpr(rate, mu)
    assert np.all(inside <= membership.largest_tpr(rate, gaussian_epsilon(1 / mu, 1e-3), 1e-3) + 1e-12)
