"""Series: errors as stated, symmetry, refusal of what would not fit."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
import torch

from veil.errors import ConfigError
from veil.mpc.engine.expand import waves_of
from veil.mpc.engine.items import EngineItem
from veil.mpc.engine.kernels import wave_sums
from veil.mpc.engine.waves import (
    COEFFICIENT_BITS,
    TABLE_BITS,
    Series,
    coefficients,
    cut_bits,
    fit,
    sigmoid,
    sine_table,
)


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


def computed(series: Series, precision_bits: int, points: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """The series as an engine computes it, over 2^(2 precision_bits), at random phases and masks."""
    generator = np.random.default_rng(precision_bits)
    masks, phases = generator.integers(0, 1 << 20, points), generator.integers(0, 1 << TABLE_BITS, points)
    item = EngineItem("waves", (points,), period_bits=20, harmonics=series.harmonics, precision_bits=precision_bits)
    out = np.full((1, points), series.constant * 2 ** (2 * precision_bits) >> COEFFICIENT_BITS, np.int64)
    sines, cosines = coefficients([series])
    wave_sums(
        phases,
        waves_of(torch.from_numpy(masks), item).numpy(),
        sines,
        cosines,
        sine_table(),
        cut_bits(precision_bits),
        out,
    )
    result: np.ndarray[tuple[int, ...], np.dtype[np.int64]] = out[0]
    return result


LARGEST = 2**28 - 1
SERIES = [
    Series(16, 6, 2**23, (2**27,), (0,), 0.0),
    Series(16, 6, 2**23, (LARGEST,), (LARGEST,), 0.0),
    Series(16, 6, -LARGEST, (LARGEST, -LARGEST, 5), (LARGEST, 0, LARGEST), 0.0),
    fit(sigmoid, reach=6, period=16, harmonics=8),
    fit(sigmoid, reach=12, period=32, harmonics=10),
]


@pytest.mark.parametrize("series", SERIES)
@pytest.mark.parametrize("precision_bits", [4, 6, 8, 16, 20])
def test_no_phase_and_no_mask_lead_beyond_the_bounds(series: Series, precision_bits: int) -> None:
    """Sensitivities rest on this: with the table, cut coefficients and rounded waves, not in floating point."""
    values = computed(series, precision_bits, 300_000)
    one = 1 << 2 * precision_bits
    low, high = int(values.min()), int(values.max())
    limit, residual = series.limit(precision_bits), series.residual_limit(precision_bits)
    assert max(high, -low) <= limit and max(high, one - low) <= residual
    rounding = series.rounding(precision_bits)
    # and they are not much wider than what is there
    assert limit - max(high, -low) < 2 * rounding + 0.02 * limit


def test_the_bounds_hold_for_exact_sums_on_a_finer_grid() -> None:
    for series in SERIES:
        values = series(np.linspace(0, series.period, 1_000_003))
        low, high = float(values.min()), float(values.max())
        assert high < series.limit(20) / 2.0**40 and -low < series.limit(20) / 2.0**40
        assert max(high, 1 - low) < series.residual_limit(20) / 2.0**40 < max(high, 1 - low) * 1.01 + 0.01


def test_bounds_and_table_do_not_hang_on_a_machines_last_digit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A party whose sine is off by some units in the last place holds the same table and computes the same bounds."""
    expected = hashlib.sha256(sine_table().tobytes()).hexdigest()
    assert expected == "921ae78ab20ab6aa2eba9f5a0045263cfe7a37ae85cdae9dd70cf6f0eea9b0db"
    series = fit(sigmoid, reach=6, period=16, harmonics=10)
    bounds = [(series.residual_limit(bits), series.limit(bits)) for bits in range(4, 31)]
    true_sine, generator = np.sin, np.random.default_rng(0)

    def other_sine(
        angle: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        exact = true_sine(angle)
        return exact + generator.integers(-4, 5, exact.shape) * np.spacing(exact)

    monkeypatch.setattr(np, "sin", other_sine)
    monkeypatch.setattr(np, "cos", lambda angle: other_sine(angle + math.pi / 2))
    other = sine_table.__wrapped__()
    assert hashlib.sha256(other.tobytes()).hexdigest() == expected
    again = Series(series.period, series.reach, series.constant, series.sines, series.cosines, error=0.5)
    assert bounds == [(again.residual_limit(bits), again.limit(bits)) for bits in range(4, 31)]


@pytest.mark.parametrize(
    ("period", "sines", "cosines"),
    [
        (16, (1, 2), (1,)),
        (16, (2**28,), (0,)),
        (16, (0,), (-(2**28),)),
        (12, (1,), (1,)),
        (16, (), ()),
        (1, (1,), (1,)),
    ],
)
def test_series_that_could_overflow_are_refused(period: int, sines: tuple[int, ...], cosines: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="got"):
        Series(period, 1.0, 0, sines, cosines, 0.0)
