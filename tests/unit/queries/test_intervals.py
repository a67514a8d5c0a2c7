"""Intervals against closed forms and against draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, stats

from veil.errors import ConfigError
from veil.privacy.laplace import discrete_laplace
from veil.privacy.noise import keyed_source
from veil.queries.intervals import half_width, laplace_tail, standard_deviation


def test_one_laplace_draw_is_the_closed_form() -> None:
    assert laplace_tail(2.0, 1) == pytest.approx(math.exp(-2) / 2, rel=1e-14)
    assert half_width("discrete-laplace", 7.0, 1) == pytest.approx(7 * math.log(20), rel=1e-9)


@pytest.mark.parametrize("draws", [2, 3, 16])
def test_several_laplace_draws_match_the_integral(draws: int) -> None:
    gamma = stats.gamma(draws)
    for t in (0.0, 1.0, 8.0):
        wanted, _ = integrate.quad(lambda h, t=t: gamma.pdf(h) * gamma.sf(t + h), 0, np.inf)
        assert laplace_tail(t, draws) == pytest.approx(wanted, rel=1e-7)
    assert laplace_tail(0.0, draws) == pytest.approx(0.5, rel=1e-12)


def test_gaussian_draws() -> None:
    assert half_width("rounded-gaussian", 2.0, 9) == pytest.approx(2 * 3 * 1.959964, rel=1e-6)
    assert standard_deviation("rounded-gaussian", 2.0, 9) == pytest.approx(6)


def test_intervals_cover_what_the_sampler_draws() -> None:
    scale, draws, n = 4096, 3, 200_000
    total = sum(discrete_laplace(n, scale, keyed_source(b"\x01" * 32, b"%d" % draw)) for draw in range(draws))
    within = np.abs(total) <= half_width("discrete-laplace", scale, draws)
    # 6 standard errors of a proportion of 0.95
    assert abs(within.mean() - 0.95) < 6 * math.sqrt(0.95 * 0.05 / n)
    assert np.std(total) == pytest.approx(standard_deviation("discrete-laplace", scale, draws), rel=0.02)


def test_nonsense_is_refused() -> None:
    for arguments in (("discrete-laplace", 0.0, 1), ("discrete-laplace", 1.0, 0), ("none", 1.0, 1)):
        with pytest.raises(ConfigError):
            half_width(*arguments)  # type: ignore[arg-type]
