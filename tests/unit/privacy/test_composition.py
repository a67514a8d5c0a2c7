"""Sampled Gaussians and pure mechanisms: against exact formulas in many digits, and against other accountants."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

import mpmath
import pytest
from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant

from tests.unit.privacy.test_accountant import laplace, release, sampled
from veil.jobs.spec import Release
from veil.privacy.accountant import (
    Composition,
    epsilon,
    laplace_scale,
    noise_multiplier,
    sampled_multiplier,
    sigma_steps,
)

DELTA = 1e-5


def least(delta_at: Callable[[mpmath.mpf], mpmath.mpf], delta: float, most: float = 400.0) -> mpmath.mpf:
    """The epsilon at which a falling function of it reaches delta."""
    low, high = mpmath.mpf(0), mpmath.mpf(most)
    if delta_at(low) <= delta:
        return low
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if delta_at(middle) > delta else (low, middle)
    return high


def gaussian_excess(mu: mpmath.mpf, e: mpmath.mpf) -> mpmath.mpf:
    """Hockey-stick divergence of N(mu, 1) from N(0, 1) at any e, also negative."""
    return mpmath.ncdf(mu / 2 - e / mu) - mpmath.exp(e) * mpmath.ncdf(-mu / 2 - e / mu)


def one_sampled(mu: mpmath.mpf, q: mpmath.mpf, e: mpmath.mpf) -> mpmath.mpf:
    """Both directions of one sampled Gaussian; the larger. By hand from the densities."""
    # A user goes: (1-q) N(0) + q N(mu) against N(0): H_e = q H_e'(Gaussian), e^e' = 1 + (e^e - 1) / q.
    goes = q * gaussian_excess(mu, mpmath.log(1 + (mpmath.exp(e) - 1) / q))
    # A user comes: N(0) - e^e ((1-q) N(0) + q N(mu)), positive below a threshold t.
    level = (mpmath.exp(-e) - (1 - q)) / q
    comes = mpmath.mpf(0)
    if level > 0:
        t = (mpmath.log(level) + mu**2 / 2) / mu
        comes = (1 - mpmath.exp(e) * (1 - q)) * mpmath.ncdf(t) - mpmath.exp(e) * q * mpmath.ncdf(t - mu)
    return max(goes, comes)


@pytest.mark.parametrize("delta", [1e-5, 1e-8])
@pytest.mark.parametrize("q", [1e-3, 0.05, 0.5, 0.99])
@pytest.mark.parametrize("multiplier", [0.2, 0.7, 2.0, 20.0])
def test_one_sampled_gaussian_is_never_below_the_exact_value_and_close(
    multiplier: float, q: float, delta: float
) -> None:
    one = sampled(multiplier, q)
    with mpmath.workdps(40):
        mu = mpmath.mpf(one.sensitivity) / one.sigma
        exact = least(lambda e: one_sampled(mu, mpmath.mpf(q), e), delta)
        got = epsilon([one], delta)
        assert got >= exact
        assert got <= exact * mpmath.mpf("1.002") + mpmath.mpf("1e-5")


@pytest.mark.parametrize(("q", "multiplier", "rounds"), [(0.25, 1.5, 50), (0.01, 1.0, 1000), (0.5, 20.0, 1000)])
def test_sampled_rounds_agree_with_other_accountants(q: float, multiplier: float, rounds: int) -> None:
    """Opacus' Renyi bound is above, its numerical interval is around; dp-accounting at a finer grid is the same."""
    one = sampled(multiplier, q)
    ours = epsilon([one] * rounds, DELTA)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus.accountants import PRVAccountant
        from opacus.accountants.analysis import rdp as opacus_rdp

        orders = [1 + x / 10 for x in range(1, 400)]
        renyi = opacus_rdp.compute_rdp(q=q, noise_multiplier=multiplier, steps=rounds, orders=orders)
        bound, _ = opacus_rdp.get_privacy_spent(orders=orders, rdp=renyi, delta=DELTA)
        prv = PRVAccountant()
        prv.history = [(multiplier, q, rounds)]
        low, _, high = prv._get_dprv(eps_error=0.01, delta_error=DELTA / 1000).compute_epsilon(
            DELTA, DELTA / 1000, 0.01
        )
    assert ours <= bound <= 1.3 * ours
    assert low <= ours <= high
    event = SelfComposedDpEvent(PoissonSampledDpEvent(q, GaussianDpEvent(multiplier)), rounds)
    pld = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=5e-5).compose(event)
    assert ours == pytest.approx(pld.get_epsilon(DELTA), rel=5e-4)


def test_sampled_beside_full_batch_agrees_with_dp_accounting() -> None:
    rounds = [sampled(1.5, 0.1)] * 40 + [sampled(0.9, 0.02)] * 100
    pld = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=1e-4)
    pld.compose(SelfComposedDpEvent(PoissonSampledDpEvent(0.1, GaussianDpEvent(1.5)), 40))
    pld.compose(SelfComposedDpEvent(PoissonSampledDpEvent(0.02, GaussianDpEvent(0.9)), 100))
    pld.compose(GaussianDpEvent(2.0))
    assert epsilon([release(2.0), *rounds], DELTA) == pytest.approx(pld.get_epsilon(DELTA), rel=5e-4)


def test_sampling_helps_and_never_hurts() -> None:
    full = epsilon([release(4.0)] * 20, DELTA)
    costs = [epsilon([sampled(4.0, q)] * 20, DELTA) for q in (0.001, 0.01, 0.1, 0.5, 0.9, 1 - 1e-12)]
    assert all(a <= b for a, b in pairwise(costs))
    assert costs[3] < 0.6 * full and costs[-1] <= full * (1 + 1e-5)  # multipliers of sampled ones are rounded down
    assert costs[-1] == pytest.approx(full, rel=1e-3)
    assert epsilon([sampled(4.0, 1.0)] * 20, DELTA) == full
    # Where one round may reveal whom it takes, sampling is not credited, and that is still the bound without it.
    assert epsilon([sampled(0.01, 0.5)], DELTA) == pytest.approx(epsilon([release(0.01)], DELTA), rel=1e-5)
    assert epsilon([sampled(0.3, 0.5)] * 40, DELTA) <= epsilon([release(0.3)] * 40, DELTA) * (1 + 1e-5)


def test_more_releases_and_less_noise_cost_more() -> None:
    by_count = [epsilon([sampled(1.2, 0.05)] * count, DELTA) for count in (1, 3, 10, 40, 160)]
    by_noise = [epsilon([sampled(m, 0.05)] * 30, DELTA) for m in (8.0, 4.0, 2.0, 1.0, 0.5, 0.2, 0.08, 0.04)]
    beside = [epsilon([*[sampled(1.2, 0.05)] * n, release(2.0), laplace(Fraction(1, 10))], DELTA) for n in (0, 1, 9)]
    for costs in (by_count, by_noise, beside):
        assert all(a < b for a, b in pairwise(costs))


@pytest.mark.parametrize("delta", [1e-5, 1e-9])
@pytest.mark.parametrize(("cost", "count"), [(Fraction(1, 2), 1), (Fraction(1, 10), 30), (Fraction(1), 12)])
def test_pure_mechanisms_compose_as_theory_says(cost: Fraction, count: int, delta: float) -> None:
    """The optimal composition of e-DP mechanisms, summed exactly (Kairouz, Oh and Viswanath 2015)."""
    got = epsilon([laplace(cost, f"q-{i}") for i in range(count)], delta)
    with mpmath.workdps(40):
        e0 = mpmath.mpf(cost.numerator) / cost.denominator
        p = mpmath.exp(e0) / (1 + mpmath.exp(e0))

        def delta_at(e: mpmath.mpf) -> mpmath.mpf:
            terms = (
                mpmath.binomial(count, j) * p**j * (1 - p) ** (count - j) * (1 - mpmath.exp(e - (2 * j - count) * e0))
                for j in range(count + 1)
                if (2 * j - count) * e0 > e
            )
            return mpmath.fsum(terms)

        exact = least(delta_at, delta)
        assert exact <= got <= exact * mpmath.mpf("1.001") + mpmath.mpf("1e-6")
    assert got <= cost * count


def test_a_pure_mechanism_alone_costs_its_epsilon_as_delta_falls() -> None:
    cost = Fraction(1, 3)
    costs = [epsilon([laplace(cost)], delta) for delta in (1e-3, 1e-5, 1e-8, 1e-14, 1e-300)]
    assert all(a <= b for a, b in pairwise(costs))
    assert costs[0] == pytest.approx(1 / 3, rel=1e-2) and costs[0] < costs[-1]
    # From above, and exact up to the last digit.
    assert cost <= Fraction(costs[-1]) <= cost * (1 + Fraction(1, 2**50))
    assert Fraction(epsilon([laplace(Fraction(1, 7), f"q-{i}") for i in range(5)], 1e-14)) >= Fraction(5, 7)


@pytest.mark.parametrize("cost", [Fraction(1, 20), Fraction(1), Fraction(4)])
def test_a_gaussian_and_a_pure_mechanism_are_never_below_the_exact_value(cost: Fraction) -> None:
    one = release(1.7)
    got = epsilon([one, laplace(cost)], DELTA)
    with mpmath.workdps(40):
        mu, e0 = mpmath.mpf(one.sensitivity) / one.sigma, mpmath.mpf(cost.numerator) / cost.denominator
        p = 1 / (1 + mpmath.exp(-e0))
        exact = least(lambda e: p * gaussian_excess(mu, e - e0) + (1 - p) * gaussian_excess(mu, e + e0), DELTA)
        assert exact <= got <= exact * mpmath.mpf("1.001")
    assert epsilon([one], DELTA) < got < epsilon([one], DELTA) + float(cost)


def test_many_different_kinds_are_counted_coarsely_and_from_above() -> None:
    """More kinds than distributions are composed: each is counted as one that costs a little more."""
    kinds = [sampled(1.5 + i / 100, 0.02 + i / 1000, f"s-{i}") for i in range(30)]
    kinds += [laplace(Fraction(10 + i, 1000), f"l-{i}") for i in range(30)]
    got = epsilon([release(3.0), *kinds], DELTA)
    best = [release(3.0), *[sampled(1.79, 0.02)] * 30, *[laplace(Fraction(10, 1000))] * 30]
    worst = [release(3.0), *[sampled(1.5, 0.049)] * 30, *[laplace(Fraction(39, 1000))] * 30]
    assert epsilon(best, DELTA) < got
    assert got < 1.2 * epsilon(worst, DELTA)
    # And when nothing helps, the plain sum is left.
    wild = [laplace(Fraction(1, 3**i), f"l-{i}") for i in range(30)]
    assert float(sum(Fraction(1, 3**i) for i in range(30))) <= epsilon(wild, DELTA) * (1 + 1e-12)


def test_a_delta_below_what_floating_point_resolves_falls_back_to_basic_composition() -> None:
    for delta in (1e-12, 1e-100):
        got = epsilon([sampled(2.0, 0.1), sampled(2.0, 0.1), laplace(Fraction(1, 4))], delta)
        assert got == pytest.approx(epsilon([release(2.0)] * 2, delta) + 0.25, rel=1e-6)


def test_extremes_are_finite() -> None:
    least_noise = Release(name="x", shape=(1,), sensitivity=2**52 - 1, sigma=1, sampling=0.5)
    most_noise = Release(name="x", shape=(1,), sensitivity=1, sigma=2**52 - 1, sampling=0.5)
    wide = Release(name="x", shape=(1,), sensitivity=2**52 - 1, sigma=1, mechanism="discrete-laplace")
    narrow = Release(name="x", shape=(1,), sensitivity=1, sigma=2**52 - 1, mechanism="discrete-laplace")
    assert 2.0**102 < epsilon([least_noise], DELTA) < 2.0**104
    assert epsilon([most_noise] * 1000, DELTA) == 0.0
    assert 2.0**52 - 1 <= epsilon([wide], DELTA) <= 2.0**52 + 1
    assert epsilon([narrow] * 1000, DELTA) <= 1e-12
    assert math.isfinite(epsilon([least_noise, most_noise, wide, narrow, release(1.0)], DELTA))
    assert epsilon([sampled(1e-6, 1e-9)], DELTA) > 200  # not credited


def test_equal_multipliers_on_different_grids_are_one_group() -> None:
    releases = [sampled(2.0, 0.1, f"r-{s}", sensitivity=2**s) for s in (12, 16, 20, 24)]
    assert Composition().plus(releases).sampled == {(2.0 - 2.0**-19, 0.1): 4}


def test_a_part_is_covered_by_its_whole() -> None:
    part = Composition().plus([release(2.0), sampled(2.0, 0.1), laplace(Fraction(1, 3))])
    whole = part.plus([sampled(2.0, 0.1)], times=3)
    assert whole.covers(part) and whole.covers(whole) and not part.covers(whole)
    assert not whole.covers(part.plus([laplace(Fraction(1, 3))]))
    assert not whole.covers(part.plus([sampled(2.0, 0.2)]))
    assert not whole.covers(part.plus([release(9.0)]))
    assert part.epsilon(DELTA) < whole.epsilon(DELTA)
    # The order in which releases came does not matter, not even in the last digit.
    again = Composition().plus([laplace(Fraction(1, 3)), *[sampled(2.0, 0.1)] * 4, release(2.0)])
    assert again == whole and again.epsilon(DELTA) == whole.epsilon(DELTA)


@pytest.mark.parametrize(
    ("target", "q", "rounds"), [(1.0, 0.01, 1000), (8.0, 0.25, 50), (0.1, 0.002, 200), (60.0, 0.9, 3), (3.0, 1.0, 20)]
)
def test_calibrated_sampled_noise_stays_within_its_budget_and_uses_it(target: float, q: float, rounds: int) -> None:
    multiplier = sampled_multiplier(target, DELTA, q, rounds)
    for sensitivity in (3, 1000, 2**22 + 1):
        steps = sigma_steps(multiplier, sensitivity)
        one = Release(name="x", shape=(1,), sensitivity=sensitivity, sigma=steps, sampling=q)
        spent = epsilon([one] * rounds, DELTA)
        assert spent <= target
    assert spent >= 0.999 * target
    assert epsilon([sampled(multiplier * 0.998, q)] * rounds, DELTA) > target


def test_calibration_leaves_room_for_what_stands_beside() -> None:
    beside = [release(2.5), laplace(Fraction(1, 5))]
    multiplier = sampled_multiplier(3.0, DELTA, 0.1, 60, beside=beside)
    assert 2.995 <= epsilon([*beside, *[sampled(multiplier, 0.1)] * 60], DELTA) <= 3.0
    assert multiplier > sampled_multiplier(3.0, DELTA, 0.1, 60)


def test_calibration_without_sampling_is_that_of_one_gaussian() -> None:
    assert sampled_multiplier(3.0, DELTA, 1.0, 16) == pytest.approx(4 * noise_multiplier(3.0, DELTA), rel=2e-4)


def test_laplace_scale_is_the_exact_quotient_rounded_up() -> None:
    assert laplace_scale(0.5, 7) == 14
    assert laplace_scale(3.0, 7) == 3
    scale = laplace_scale(0.1, 10**9)
    assert Fraction(10**9, scale) <= Fraction(0.1) < Fraction(10**9, scale - 1)


def test_no_list_of_releases_breaks_the_count() -> None:
    """A job text may hold any of these; whoever reviews it needs a number, not an overflow."""
    for sampling in (5e-324, 1e-16, 2.0**-40):
        assert epsilon([sampled(0.25, sampling, f"r-{n}") for n in range(3)], DELTA) < 1e-3
    # so many kinds that multipliers are rounded to powers of 2, below what sampling is credited for
    many = [sampled(0.051 * 2 ** (n * 15 / 200), 0.001 + n * 1e-6, f"r-{n}") for n in range(200)]
    assert epsilon(many[:1], DELTA) <= epsilon(many, DELTA) < 1e5
