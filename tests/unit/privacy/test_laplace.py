"""Discrete Laplace noise: arguments, determinism, the algorithm against a plain one. The law: tests/statistical."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from veil.errors import ConfigError, InputError
from veil.jobs.spec import Release
from veil.mpc.provider import party_noise
from veil.privacy import noise_of
from veil.privacy.laplace import SCALE_LIMIT, discrete_laplace
from veil.privacy.noise import keyed_source, rounded_gaussian, system_source

KEY = b"\x05" * 32


@pytest.mark.parametrize("size", [0, 1, 2, 1000, 40_000])
def test_size_and_type(size: int) -> None:
    values = discrete_laplace(size, 12, system_source())
    assert values.shape == (size,)
    assert values.dtype == np.int64


def test_a_keyed_source_repeats_and_labels_differ() -> None:
    first, again, other = (discrete_laplace(5000, 2**40, keyed_source(KEY, label)) for label in (b"a", b"a", b"b"))
    np.testing.assert_array_equal(first, again)
    assert np.count_nonzero(first == other) < 3


def test_the_widest_scale_stays_in_range_and_uses_it() -> None:
    values = discrete_laplace(20_000, SCALE_LIMIT - 1, system_source())
    # P(|k| > 30 scale) is e^-30 for each; half are above 0.69 scale.
    assert np.abs(values).max() < 60 * SCALE_LIMIT
    assert np.median(np.abs(values)) == pytest.approx(math.log(2) * SCALE_LIMIT, rel=0.1)


def test_both_signs_and_zero_once() -> None:
    # scale 1: P(0) = (1 - 1/e) / (1 + 1/e) = 0.4621; were zero counted under both signs, 0.6321
    values = discrete_laplace(100_000, 1, system_source())
    assert np.count_nonzero(values == 0) / values.size == pytest.approx(0.4621, abs=0.012)
    assert np.count_nonzero(values > 0) == pytest.approx(np.count_nonzero(values < 0), rel=0.1)


@pytest.mark.parametrize("scale", [0, -1, SCALE_LIMIT])
def test_scales_out_of_range_are_refused(scale: int) -> None:
    with pytest.raises(InputError, match="scale"):
        discrete_laplace(1, scale, system_source())


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(InputError, match="size"):
        discrete_laplace(-1, 1, system_source())


def test_ratio_of_probabilities_is_the_privacy_loss() -> None:
    """The law itself, in fractions: shifting by s changes no probability by more than e^(s / scale)."""
    scale, values = 3, discrete_laplace(400_000, 3, system_source())
    counts = Counter(values.tolist())
    for k in range(-6, 6):
        if min(counts[k], counts[k + 1]) > 1000:
            ratio = Fraction(counts[k], counts[k + 1])
            spread = 6 * math.sqrt(1 / counts[k] + 1 / counts[k + 1])
            assert abs(math.log(ratio)) < 1 / scale + spread


def test_one_function_draws_by_mechanism() -> None:
    laplace = Release(name="a", shape=(3, 5), sensitivity=1, sigma=100, mechanism="discrete-laplace")
    gaussian = Release(name="a", shape=(3, 5), sensitivity=1, sigma=100)
    source = [keyed_source(KEY, b"dispatch") for _ in range(5)]
    drawn = noise_of.draw(laplace, source[0])
    assert drawn.shape == (3, 5)
    np.testing.assert_array_equal(drawn.ravel(), discrete_laplace(15, 100, source[1]))
    np.testing.assert_array_equal(noise_of.draw(gaussian, source[2]).ravel(), rounded_gaussian(15, 100, source[3]))
    np.testing.assert_array_equal(party_noise(laplace, source[4]).numpy(), drawn)


def test_a_mechanism_without_a_sampler_is_refused() -> None:
    release = Release.model_construct(name="a", shape=(1,), sensitivity=1, sigma=1, mechanism="none", sampling=1.0)
    with pytest.raises(ConfigError, match="mechanism"):
        noise_of.draw(release, system_source())
