"""Series: errors as stated, symmetry, refusal of what would not fit."""

from __future__ import annotations

import numpy as np
import pytest

from veil.errors import ConfigError
from veil.mpc.engine.waves import fit, sigmoid, sine_table


@pytest.mark.parametrize(
    ("reach", "period", "harmonics", "most"), [(6, 16, 8, 3e-4), (4, 16, 5, 1e-4), (12, 32, 10, 6e-4)]
)
def test_the_sigmoid_within_its_stated_error(reach: float, period: int, harmonics: int, most: float) -> None:
    series = fit(sigmoid, reach=reach, period=period, harmonics=harmonics)
    points = np.linspace(-reach, reach, 20_011)
    assert np.abs(series(points) - sigmoid(points)).max() <= series.error * 1.05 <= most * 1.05
    assert set(series.cosines) == {0} and series.constant == 2**23
    beyond = np.linspace(-10 * period, 10 * period, 10_001)
    assert np.abs(series(beyond)).max() <= series.most


def test_even_functions_have_cosines_only() -> None:
    series = fit(np.square, reach=3, period=8, harmonics=6)
    assert set(series.sines) == {0} and series.error < 0.05


@pytest.mark.parametrize(
    ("reach", "period", "harmonics"), [(8, 16, 4), (0, 16, 4), (4, 12, 4), (4, 16, 0), (4, 16, 33), (4, 64, 12)]
)
def test_what_cannot_be_fitted_is_refused(reach: float, period: int, harmonics: int) -> None:
    with pytest.raises(ConfigError, match="got"):
        fit(sigmoid, reach=reach, period=period, harmonics=harmonics)


def test_the_table_is_a_sine() -> None:
    table = sine_table()
    turns = (np.arange(len(table)) + 0.5) * 2 * np.pi / len(table)
    assert np.abs(table / 2.0**30 - np.sin(turns)).max() < 2.0**-30
