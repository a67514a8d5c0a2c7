"""What is made of noised sums: planted tastes come back, and noise alone counts for little."""

from __future__ import annotations

import numpy as np
import pytest

from veil.jobs.side import MixingTerms
from veil.recsys.postprocess import Directions, denoised_sum, shrink_sum
from veil.trainers.side.estimate import side_factors

ITEMS, WIDTH, USERS = 400, 6, 3000
MIXING = MixingTerms(weak=0.2, strong=0.2, ratio_weak=1.0, ratio_strong=0.5, half_length=50.0)
NOWHERE = Directions(np.zeros((ITEMS, 0)), np.zeros(0))


def planted(sd: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Tastes float64[ITEMS, WIDTH], counts, and the sums over users that these make, with noise."""
    generator = np.random.default_rng(3)
    counts = np.exp(generator.normal(4.0, 1.0, ITEMS))
    tastes = generator.normal(size=(ITEMS, 2)) @ generator.normal(size=(2, WIDTH)) * np.sqrt(counts)[:, None]
    rows = generator.normal(size=(USERS, WIDTH))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    outer = (rows @ tastes.T).T @ rows * 1e-3
    return tastes, counts, outer + generator.normal(0, sd, outer.shape), rows.T @ rows


def found(outer: np.ndarray, sd: float, moment: np.ndarray, counts: np.ndarray, moment_sd: float = 0.0) -> np.ndarray:
    return side_factors(
        outer,
        sd,
        moment,
        moment_sd,
        users=USERS,
        norm=1.0,
        counts=counts,
        power=0.0,
        directions=NOWHERE,
        ridge=20.0,
        mixing=MIXING,
    )


@pytest.mark.parametrize(("sd", "least"), [(0.0, 0.999), (2.0, 0.95), (10.0, 0.6)])
def test_planted_tastes_come_back(sd: float, least: float) -> None:
    tastes, counts, outer, moment = planted(sd)
    wanted = tastes / np.sqrt(counts)[:, None]
    factors = found(outer, sd, moment, counts)
    assert np.corrcoef(factors.ravel(), wanted.ravel())[0, 1] > least
    # scores over users lie as far apart as the weight says
    assert np.sqrt(np.einsum("ij,jk,ik->i", factors, moment / USERS, factors).mean()) == pytest.approx(0.2)


def test_noise_in_the_moment_does_not_blow_factors_up() -> None:
    tastes, counts, outer, moment = planted(1.0)
    sd = 2000.0  # larger than every eigenvalue: directions of noise alone
    noisy = moment + np.random.default_rng(5).normal(0, sd, moment.shape)
    factors = found(outer, 1.0, noisy, counts, sd)
    assert np.isfinite(factors).all()
    assert np.corrcoef(factors.ravel(), (tastes / np.sqrt(counts)[:, None]).ravel())[0, 1] > 0.5


def test_nothing_opened_is_nothing_known() -> None:
    counts = np.full(ITEMS, 9.0)
    assert not found(np.zeros((ITEMS, WIDTH)), 1.0, np.zeros((WIDTH, WIDTH)), counts, 1.0).any()


def test_a_sum_loses_most_of_its_noise() -> None:
    _, counts, clean, _ = planted(0.0)
    _, _, noisy, _ = planted(10.0)
    less = denoised_sum(noisy, 10.0, counts, NOWHERE)
    assert np.square(less - clean).sum() < 0.5 * np.square(noisy - clean).sum()
    assert denoised_sum(noisy, 0.0, counts, NOWHERE) is noisy
    left, values = shrink_sum(noisy, 10.0, counts, NOWHERE)
    np.testing.assert_allclose(values, np.linalg.svd(less, compute_uv=False))
    assert left.shape == (ITEMS, WIDTH)
