"""The accountant against closed forms in many digits, against composed distributions, and against other accountants."""

from __future__ import annotations

import math
import warnings
from fractions import Fraction
from itertools import pairwise

import mpmath
import numpy as np
import pytest
from dp_accounting import ComposedDpEvent, GaussianDpEvent, NeighboringRelation
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from veil.errors import ConfigError
from veil.jobs.spec import Release
from veil.privacy import accountant
from veil.privacy.accountant import (
    epsilon,
    epsilon_of_squared_mu,
    gaussian_delta,
    gaussian_epsilon,
    laplace_scale,
    multipliers,
    noise_multiplier,
    sampled_multiplier,
    sigma_steps,
    squared_mu,
    to_micro,
)

DELTAS = (1e-5, 1e-8, 1e-3)


def release(multiplier: float, sensitivity: int = 2**30, name: str = "counts") -> Release:
    return Release(name=name, shape=(8,), sensitivity=sensitivity, sigma=sigma_steps(multiplier, sensitivity))


def sampled(multiplier: float, sampling: float, name: str = "round", sensitivity: int = 2**30) -> Release:
    sigma = sigma_steps(multiplier, sensitivity)
    return Release(name=name, shape=(8,), sensitivity=sensitivity, sigma=sigma, sampling=sampling)


def laplace(cost: Fraction, name: str = "counts") -> Release:
    return Release(
        name=name, shape=(8,), sensitivity=cost.numerator, sigma=cost.denominator, mechanism="discrete-laplace"
    )


def exact_epsilon(mu: mpmath.mpf, delta: float) -> mpmath.mpf:
    """Balle and Wang's theorem 8 with 60 digits: not the code under test."""

    def excess(e: mpmath.mpf) -> mpmath.mpf:
        first = mpmath.ncdf(mu / 2 - e / mu)
        return first - mpmath.exp(e) * mpmath.ncdf(-mu / 2 - e / mu) - mpmath.mpf(delta)

    if excess(mpmath.mpf(0)) <= 0:
        return mpmath.mpf(0)
    low, high = mpmath.mpf(0), mu**2 / 2 + 40 * mu
    for _ in range(150):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return high


@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("multiplier", [0.08, 0.3, 0.5, 0.89, 1.7, 3.73, 12.0, 80.0, 4000.0])
def test_never_below_the_exact_value_and_close_to_it(multiplier: float, delta: float) -> None:
    one = release(multiplier)
    with mpmath.workdps(60):
        exact = exact_epsilon(mpmath.mpf(one.sensitivity) / one.sigma, delta)
        got = epsilon([one], delta)
        assert got >= exact
        assert got <= exact * mpmath.mpf("1.001")


@pytest.mark.parametrize("delta", DELTAS)
def test_composition_equals_the_composed_distributions(delta: float) -> None:
    """mu^2 adds: one Gaussian in place of many, against dp-accounting's own convolution, and never below exact."""
    releases = [
        release(m, s, f"r-{i}") for i, (m, s) in enumerate(((2.3, 2**20), (4.0, 12345), (1.9, 2**45), (7.0, 3)))
    ]
    pld = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=1e-4)
    pld.compose(ComposedDpEvent([GaussianDpEvent(r.sigma / r.sensitivity) for r in releases]))
    assert epsilon(releases, delta) == pytest.approx(pld.get_epsilon(delta), rel=1e-3)
    with mpmath.workdps(60):
        mu = mpmath.sqrt(sum(mpmath.mpf(r.sensitivity) ** 2 / mpmath.mpf(r.sigma) ** 2 for r in releases))
        exact = exact_epsilon(mu, delta)
        assert exact <= epsilon(releases, delta) <= exact * mpmath.mpf("1.001")


def test_many_releases_compose_quickly_and_exactly() -> None:
    one = release(50.0)
    many = epsilon([one] * 2500, 1e-5)
    assert many == pytest.approx(epsilon([release(1.0)], 1e-5), rel=1e-6)
    # The integer sum rounds every term up: never below the exact sum.
    assert squared_mu(one) >= Fraction(one.sensitivity, one.sigma) ** 2 * 2**128 > squared_mu(one) - 1


@pytest.mark.parametrize("target", [1.0, 3.0, 10.0])
def test_renyi_accounting_is_never_tighter(target: float) -> None:
    releases = [release(m, name=f"r-{i}") for i, m in enumerate(multipliers(target, 1e-5, [0.35, 0.2, 0.45]))]
    rdp = RdpAccountant(neighboring_relation=NeighboringRelation.ADD_OR_REMOVE_ONE)
    rdp.compose(ComposedDpEvent([GaussianDpEvent(r.sigma / r.sensitivity) for r in releases]))
    ours = epsilon(releases, 1e-5)
    assert ours <= rdp.get_epsilon(1e-5) <= 1.2 * ours


def test_agrees_with_opacus() -> None:
    """Opacus' own code for full-batch Gaussians: its Renyi bound is above, its numerical interval contains ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus.accountants import PRVAccountant
        from opacus.accountants.analysis import rdp as opacus_rdp

    delta, multiplier, steps = 1e-5, 3.0, 4
    ours = epsilon([release(multiplier, name=f"r-{i}") for i in range(steps)], delta)
    orders = [1 + x / 10 for x in range(1, 400)]
    renyi = opacus_rdp.compute_rdp(q=1.0, noise_multiplier=multiplier, steps=steps, orders=orders)
    bound, _ = opacus_rdp.get_privacy_spent(orders=orders, rdp=renyi, delta=delta)
    assert ours <= bound <= 1.2 * ours
    prv = PRVAccountant()
    for _ in range(steps):
        prv.step(noise_multiplier=multiplier, sample_rate=1 - 1e-12)  # its formulas divide by 1 - rate
    distribution = prv._get_dprv(eps_error=0.01, delta_error=delta / 1000)
    low, _, high = distribution.compute_epsilon(delta, delta / 1000, 0.01)
    assert low <= ours <= high


@pytest.mark.parametrize("delta", DELTAS)
@pytest.mark.parametrize("target", [0.1, 1.0, 3.0, 5.0, 10.0, 60.0, 1000.0])
def test_calibrated_noise_stays_within_its_budget_and_uses_it(target: float, delta: float) -> None:
    for fractions in ([1.0], [0.35, 0.65], [0.12, 0.44, 0.44], [1 / 3] * 3, [0.1] * 10):
        got = multipliers(target, delta, fractions)
        spent = epsilon([release(m, name=f"r-{i}") for i, m in enumerate(got)], delta)
        assert spent <= target
        assert spent >= 0.995 * target
        # Release i takes its fraction of mu^2.
        mu = [1 / m**2 for m in got]
        assert np.allclose(np.array(mu) / sum(mu), np.array(fractions) / sum(fractions))


def test_one_gaussian_is_calibrated_tightly() -> None:
    for target, known in ((1.0, 3.730), (5.0, 0.8919), (10.0, 0.4999)):
        got = noise_multiplier(target, 1e-5)
        assert got == pytest.approx(known, rel=2e-3)
        assert epsilon([release(got)], 1e-5) <= target < epsilon([release(got * 0.998)], 1e-5)


def test_more_noise_never_costs_more() -> None:
    costs = [epsilon([release(m)], 1e-5) for m in np.geomspace(0.01, 1e4, 20)]
    assert all(a >= b for a, b in pairwise(costs))
    assert costs[0] > 5000


def test_extremes_are_finite_and_upper_bounds() -> None:
    largest = Release(name="x", shape=(1,), sensitivity=2**52 - 1, sigma=1)
    least = Release(name="x", shape=(1,), sensitivity=1, sigma=2**52 - 1)
    assert 2.0**102 < epsilon([largest], 1e-5) < 2.0**104
    assert epsilon([least], 1e-5) == 0.0  # the total variation distance is below delta already
    assert epsilon([], 1e-5) == 0.0
    assert epsilon_of_squared_mu(0, 1e-5) == 0.0


def test_closed_form_is_its_own_inverse() -> None:
    for multiplier in (0.1, 0.5, 3.73, 50.0):
        for delta in DELTAS:
            cost = gaussian_epsilon(multiplier, delta)
            assert gaussian_delta(multiplier, cost) <= delta
            if cost > 0:
                assert gaussian_delta(multiplier, cost * (1 - 1e-4)) > delta


def test_integers_round_toward_safety() -> None:
    assert sigma_steps(1.5, 3) == 5
    assert sigma_steps(0.1, 10) == 2  # the float 0.1 is above 1/10
    assert to_micro(3.0) == 3_000_000
    assert to_micro(math.nextafter(3.0, 4.0)) == 3_000_001
    assert to_micro(0.0) == 0


def test_arguments_out_of_range_are_refused() -> None:
    for call in (
        lambda: epsilon([release(1.0)], 0.0),
        lambda: epsilon([release(1.0)], 1.0),
        lambda: epsilon([], math.nan),
        lambda: epsilon_of_squared_mu(-1, 1e-5),
        lambda: noise_multiplier(0.0, 1e-5),
        lambda: noise_multiplier(1001.0, 1e-5),
        lambda: noise_multiplier(math.nan, 1e-5),
        lambda: multipliers(1.0, 1e-5, []),
        lambda: multipliers(1.0, 1e-5, [0.5, 0.0]),
        lambda: multipliers(1.0, 1e-5, [0.5, math.nan]),
        lambda: multipliers(1.0, 1e-5, [0.6, 0.6]),
        lambda: gaussian_epsilon(0.0, 1e-5),
        lambda: sigma_steps(math.inf, 1),
        lambda: sigma_steps(1.0, 2**52),
        lambda: to_micro(-1.0),
        lambda: to_micro(math.inf),
        lambda: squared_mu(sampled(1.0, 0.5)),
        lambda: sampled_multiplier(0.0, 1e-5, 0.5, 10),
        lambda: sampled_multiplier(1.0, 1e-5, 0.0, 10),
        lambda: sampled_multiplier(1.0, 1e-5, 1.5, 10),
        lambda: sampled_multiplier(1.0, 1e-5, math.nan, 10),
        lambda: sampled_multiplier(1.0, 1e-5, 0.5, 0),
        lambda: sampled_multiplier(1.0, 2.0, 0.5, 10),
        lambda: sampled_multiplier(1.0, 1e-5, 0.5, 10, beside=[release(3.0)]),
        lambda: laplace_scale(0.0, 5),
        lambda: laplace_scale(1.0, 0),
        lambda: laplace_scale(1e-3, 2**45),
    ):
        with pytest.raises(ConfigError):
            call()


def test_the_unit_of_the_ledger_is_pinned() -> None:
    """Ledgers keep releases, not sums; but both ends of a job compare these numbers."""
    assert accountant.squared_mu(Release(name="x", shape=(1,), sensitivity=1, sigma=2)) == 2**126


@pytest.mark.parametrize("share", [1e-2, 1e-4, 1e-9])
def test_an_epsilon_next_to_nothing_is_counted_in_bounded_memory(share: float) -> None:
    """At the noise where delta alone just about suffices, a grid in proportion to epsilon had billions of points."""
    delta, low, high = 0.009, 1.0, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if gaussian_delta(middle, 0.0) > delta else (low, middle)
    one = release(low * (1 - share))
    exact = gaussian_epsilon(one.sigma / one.sensitivity, delta)
    assert 0 < exact < 1e-3
    assert exact <= epsilon([one], delta) <= 1.001 * exact + 1e-11
