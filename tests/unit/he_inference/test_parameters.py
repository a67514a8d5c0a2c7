"""Parameter sets: the named ones are what they claim, and nothing outside of the checked family exists."""

from __future__ import annotations

import dataclasses

import pytest

from he_inference.parameters import DEFAULT, NAMES, SESSION_4096, SESSION_8192, named
from veil.errors import ConfigError


def test_the_default_is_within_the_post_quantum_table() -> None:
    assert DEFAULT is SESSION_8192
    assert DEFAULT.post_quantum and DEFAULT.modulus_bits == 114
    assert not SESSION_4096.post_quantum and SESSION_4096.modulus_bits == 109
    assert [named(name).name for name in NAMES] == list(NAMES)


@pytest.mark.parametrize(
    "change",
    [
        {"poly_modulus_degree": 1024},
        {"poly_modulus_degree": 5000},
        {"coeff_modulus_bits": (52, 58)},  # 110 bits at N = 4096
        {"coeff_modulus_bits": (52,)},
        {"coeff_modulus_bits": (57, 52)},
        {"coeff_modulus_bits": (10, 60)},
        {"query_scale_bits": 31},  # the product would wrap
        {"item_scale_bits": 4},
        {"score_error": float("nan")},
        {"score_error": 0.0},
        {"name": ""},
        {"name": "x" * 100},
    ],
)
def test_weak_or_useless_numbers_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        dataclasses.replace(SESSION_4096, **change)  # type: ignore[arg-type]


def test_the_digest_covers_every_field() -> None:
    changes: list[dict[str, object]] = [
        {"name": "other"},
        {"poly_modulus_degree": 8192},
        {"coeff_modulus_bits": (52, 56)},
        {"query_scale_bits": 28},
        {"item_scale_bits": 19},
        {"score_error": 2e-4},
        {"security": "none"},
    ]
    assert {field.name for field in dataclasses.fields(SESSION_4096)} == {name for c in changes for name in c}
    digests = {dataclasses.replace(SESSION_4096, **change).digest for change in changes}  # type: ignore[arg-type]
    assert len(digests | {SESSION_4096.digest}) == len(changes) + 1


def test_sets_are_immutable_and_unknown_names_are_refused() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SESSION_4096.name = "other"  # type: ignore[misc]
    with pytest.raises(ConfigError, match="session-8192"):
        named("session-2048")


@pytest.mark.parametrize("step", [0, -1, 2048])
def test_rotations_outside_of_the_slots_have_no_element(step: int) -> None:
    with pytest.raises(ConfigError):
        SESSION_4096.element(step)
