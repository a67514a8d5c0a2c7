"""What a gradient job opens: integers, on a grid that fits."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.trainers.gradient.conftest import MakeSpec
from tests.unit.trainers.gradient.module_files import BILINEAR
from veil.errors import ConfigError
from veil.jobs.spec import JobSpec
from veil.trainers.gradient.releases import (
    check_gradient_releases,
    expected,
    round_bits,
    round_sensitivity,
    sampling_threshold,
)


@given(st.floats(1e-6, 1000.0))
def test_a_clipped_update_is_one_to_two_million_steps_long(clip: float) -> None:
    assert 2**20 <= round_sensitivity(clip) < 2**21
    assert round_sensitivity(clip) <= Fraction(clip) * 2 ** round_bits(clip) < round_sensitivity(clip) + 1


@given(st.floats(2**-70, 1.0))
def test_users_are_never_sampled_more_often_than_is_accounted(sampling: float) -> None:
    threshold = sampling_threshold(sampling)
    assert Fraction(threshold, 2**64) <= Fraction(sampling) < Fraction(threshold + 1, 2**64)


@pytest.mark.parametrize("sampling", [0.0, -0.1, 1.0000001, float("nan")])
def test_no_probability_no_threshold(sampling: float) -> None:
    with pytest.raises(ConfigError, match="sampling"):
        sampling_threshold(sampling)


def test_clips_that_no_grid_fits() -> None:
    with pytest.raises(ConfigError, match="clip"):
        round_bits(1e-9)


def test_a_job_lists_what_its_trainer_makes(make_spec: MakeSpec) -> None:
    spec = make_spec(BILINEAR)
    trainer = check_gradient_releases(spec)
    assert [one.name for one in expected(trainer)] == ["users", "round-0001", "round-0002", "round-0003"]
    assert [(one.sensitivity, one.sampling) for one in expected(trainer)[:2]] == [
        (2**16, 1.0),
        (round_sensitivity(0.25), 0.5),
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"sensitivity": 1000},
        {"sampling": 0.25},  # would count on more secrecy than there is
        {"shape": (3,)},
        {"name": "round-0009"},
    ],
)
def test_a_release_that_says_something_else_is_refused(make_spec: MakeSpec, change: dict[str, object]) -> None:
    spec = make_spec(BILINEAR)
    changed = spec.releases[1].model_copy(update=change)
    wrong: JobSpec = spec.model_copy(update={"releases": (spec.releases[0], changed, *spec.releases[2:])})
    with pytest.raises(ConfigError, match="got release"):
        check_gradient_releases(wrong)
