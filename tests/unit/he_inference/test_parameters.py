"""Parameter sets: the named ones are what they claim, and nothing outside of the checked family exists."""

from __future__ import annotations

import dataclasses

import pytest
import tenseal.sealapi as seal

from he_inference.parameters import DEFAULT, EXACT, FAST, KEYLESS, KEYLESS_SMALL, NAMES, PQ, named
from veil.errors import ConfigError


def test_the_default_is_within_the_post_quantum_table() -> None:
    assert DEFAULT is PQ
    assert [(p.name, p.modulus_bits, p.post_quantum) for p in (FAST, PQ, EXACT, KEYLESS, KEYLESS_SMALL)] == [
        ("fast", 109, False),
        ("pq", 109, True),
        ("exact", 109, False),
        ("keyless", 54, True),
        ("keyless-small", 54, False),
    ]
    assert [named(name).name for name in NAMES] == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_seal_allows_the_whole_modulus_at_128_bits(name: str) -> None:
    parameters = named(name)
    assert parameters.modulus_bits <= seal.CoeffModulus.MaxBitCount(parameters.degree, seal.SEC_LEVEL_TYPE.TC128)
    assert parameters.modulus_bits == sum(prime.bit_length() for prime in parameters.primes)
    assert len(set(parameters.primes)) == len(parameters.primes)
    assert all(prime % (2 * parameters.degree) == 1 for prime in parameters.primes)


@pytest.mark.parametrize(
    "change",
    [
        {"degree": 1024},
        {"degree": 5000},
        {"data_bits": (28, 27)},  # 110 bits at N = 4096
        {"data_bits": (27,)},
        {"data_bits": (27, 19)},
        {"data_bits": (27, 29)},
        {"data_bits": (20, 20, 20)},
        {"special_bits": (27,)},
        {"special_bits": (26, 26)},  # fewer bits than the data primes
        {"query_scale_bits": 31},  # the product would wrap
        {"item_scale_bits": 4},
        {"response_bits": (30, 26)},
        {"response_bits": (26, 33)},
        {"response_bits": (7, 30)},
        {"score_error": float("nan")},
        {"score_error": 0.0},
        {"score_error": 1.0},
        {"name": ""},
        {"name": "x" * 100},
    ],
)
def test_weak_or_useless_numbers_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        dataclasses.replace(FAST, **change)  # type: ignore[arg-type]


def test_the_plain_modulus_of_the_exact_set_has_slots() -> None:
    for modulus in (114688, 65539, 0):
        with pytest.raises(ConfigError):
            dataclasses.replace(EXACT, plain_modulus=modulus)


@pytest.mark.parametrize("name", ["", "nonsense", "FAST", "fast ", "x" * 10_000])
def test_other_names_are_refused_shortly(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        named(name)
    assert len(str(caught.value)) < 300


def test_digests_tell_sets_apart_in_every_field() -> None:
    digests = {named(name).digest for name in NAMES}
    assert len(digests) == len(NAMES) and all(len(digest) == 32 for digest in digests)
    for change in ({"response_bits": (25, 30)}, {"score_error": 2e-4}, {"item_scale_bits": 21}, {"security": "other"}):
        assert dataclasses.replace(FAST, **change).digest != FAST.digest


def test_rotations_by_nothing_or_all_are_no_elements() -> None:
    assert FAST.element(1) == 3 and FAST.element(2) == 9
    assert FAST.element(2047) * 3 % 8192 == pow(3, 2048, 8192) == 1
    for step in (0, -1, 2048):
        with pytest.raises(ConfigError):
            FAST.element(step)
