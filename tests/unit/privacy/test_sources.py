"""Who draws how much: honest draws always carry what the release states, and totals are what the formulas say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baseline.evaluate import simulated_noise, simulation_spec
from veil.errors import ConfigError
from veil.jobs.spec import Noise, Release
from veil.privacy.noise import keyed_source, rounded_gaussian
from veil.privacy.sources import colluding, draws, party_release, total_sd
from veil.recsys import synthetic
from veil.recsys.features import build_catalogue


def release(sigma: int, mechanism: str = "rounded-gaussian") -> Release:
    return Release(name="counts", shape=(20_000,), sensitivity=2**20, sigma=sigma, mechanism=mechanism)  # type: ignore[arg-type]


@given(sigma=st.integers(2**14, 2**51), parties=st.integers(2, 16), data=st.data())
def test_the_honest_draws_carry_at_least_the_stated_noise_and_hardly_more(
    sigma: int, parties: int, data: st.DataObject
) -> None:
    t = data.draw(st.integers(0, parties - 1))
    part = party_release(release(sigma), Noise(source="parties", colluding=t), parties).sigma
    honest = parties - t
    assert honest * part**2 >= sigma**2 > honest * (part - 1) ** 2


@pytest.mark.parametrize("parties", [2, 3, 16])
def test_all_others_may_collude_by_default(parties: int) -> None:
    assert colluding(Noise(source="parties"), parties) == parties - 1
    assert party_release(release(2**22), Noise(source="parties"), parties).sigma == 2**22


def test_a_draw_too_small_for_the_argument_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1024"):
        party_release(release(1500), Noise(source="parties", colluding=0), 3)
    assert party_release(release(1500), Noise(source="parties"), 3).sigma == 1500


def test_more_colluding_parties_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected 0 to 2"):
        colluding(Noise(source="parties", colluding=3), 3)
    with pytest.raises(ValueError, match="expected it for noise by the parties only"):
        Noise(source="dealer", colluding=1)


def test_laplace_draws_are_full_ones() -> None:
    assert party_release(release(2**22, "discrete-laplace"), Noise(source="parties", colluding=0), 3).sigma == 2**22


@pytest.mark.parametrize(("t", "factor"), [(0, 1.0), (1, 1.5), (2, 3.0)])
def test_the_total_that_opens_has_the_variance_that_is_said(t: int, factor: float) -> None:
    """20,000 samples: the variance's relative error has sd 0.01; 6 sd is the bound (false alarms below 1e-8)."""
    catalogue = build_catalogue(synthetic.generate(200, 320).table)
    spec = simulation_spec(catalogue, epsilon=1.0, delta=1e-5, noise_source="parties", colluding=t)
    counts = spec.releases[0].model_copy(update={"shape": (20_000,)})
    assert draws(spec.privacy.noise, 3) == 3
    assert total_sd(spec, counts) == pytest.approx(counts.sigma * math.sqrt(factor), rel=1e-6)
    measured = simulated_noise(spec, counts, seed=4).astype(float)
    assert measured.std() ** 2 / total_sd(spec, counts) ** 2 == pytest.approx(1.0, abs=0.06)


def test_a_sum_of_rounded_draws_has_the_law_that_the_argument_says() -> None:
    """round draws of sigma 3, three of them: masses at the integers are phi_{3 sqrt 3} convolved with three boxes.

    Exact masses by quadrature on both sides; they agree to 1e-12 already at sigma 3, far below the 2^10 that is asked.
    """
    from scipy import special

    sigma, k = 3.0, 3
    support = np.arange(-200, 201)
    one = special.ndtr((support + 0.5) / sigma) - special.ndtr((support - 0.5) / sigma)
    discrete = np.convolve(np.convolve(one, one, "same"), one, "same")
    # continuous: E over the sum of two uniforms (triangle) of the rounded mass of N(0, k sigma^2)
    nodes, weights = np.polynomial.legendre.leggauss(64)
    shifts = np.concatenate([(nodes - 1) / 2, (nodes + 1) / 2])  # [-1, 0] and [0, 1]
    density = np.concatenate([weights, weights]) / 2 * (1 - np.abs(shifts))
    wide = sigma * math.sqrt(k)
    continuous = sum(
        share * (special.ndtr((support + 0.5 + u) / wide) - special.ndtr((support - 0.5 + u) / wide))
        for share, u in zip(density, shifts, strict=True)
    )
    assert np.abs(discrete - continuous).max() < 1e-12
    # and the sampler draws that law: the share of zeros among sums of three
    draws_of = [rounded_gaussian(200_000, 3, keyed_source(bytes(32), b"test/%d" % number)) for number in range(3)]
    zeros = float((sum(draws_of, np.zeros(200_000, np.int64)) == 0).mean())
    assert zeros == pytest.approx(float(discrete[200]), abs=6 * math.sqrt(0.08 * 0.92 / 200_000))
