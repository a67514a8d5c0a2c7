"""Truncation against Python's integers; packing there and back."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from he_inference.ring import bits as plain_bits
from he_inference.ring import ntt, plain
from he_inference.ring.response import packed, truncated
from tests.unit.he_inference.ring.polynomials import extreme_words, random_words, ring_of
from veil.errors import CiphertextError, ConfigError


@pytest.mark.parametrize("bits", [8, 22, 27, 32])
@pytest.mark.parametrize("degree", [2048, 4096])
def test_truncation_rounds_to_the_nearest_step(degree: int, bits: int) -> None:
    ring = ring_of(degree, 2)
    coefficients = np.concatenate([random_words(ring, 2), extreme_words(ring)])
    q = ring.modulus
    # the places where rounding turns: around 0, Q, Q/2, and between two steps
    special = [
        0,
        1,
        q - 1,
        q // 2,
        q // 2 + 1,
        q >> bits,
        (q >> (bits + 1)) + 1,
        q >> (bits + 1),
        q - (q >> (bits + 1)),
    ]
    coefficients[0, :, : len(special)] = [[x % prime for x in special] for prime in ring.primes]
    rest = [q // prime for prime in ring.primes]
    whole = np.zeros((len(coefficients), degree), object)
    for p, prime in enumerate(ring.primes):
        whole = (whole + coefficients[:, p].astype(object) * (rest[p] * pow(rest[p], -1, prime))) % q
    values = coefficients.copy()
    ntt.forward(values, ring)
    got = truncated(values, ring, bits)
    for c, t in zip(whole.ravel()[:4000], got.ravel()[:4000], strict=True):
        distance = (Fraction(int(c) << bits, q) - int(t)) % (1 << bits)
        assert min(distance, (1 << bits) - distance) <= Fraction(1, 2) + Fraction(1, 2**18)
    assert got.max() < 1 << bits


def test_bits_that_no_message_has_are_refused() -> None:
    ring = ring_of(2048)
    with pytest.raises(ConfigError):
        truncated(random_words(ring, 1), ring, 27)
    with pytest.raises(ConfigError):
        truncated(random_words(ring_of(2048, 2), 1), ring_of(2048, 2), 33)


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(8, 32), rows=st.integers(1, 3), count=st.integers(1, 300), seed=st.integers(0, 2**32 - 1))
def test_compiled_and_plain_packing_agree(bits: int, rows: int, count: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 1 << bits, (rows, count)).astype(np.uint32)
    values[0, 0], values[-1, -1] = 0, (1 << bits) - 1
    out = packed(values, bits)
    for row in range(rows):
        assert out[row].tobytes() == plain_bits.pack(values[row], bits)


@settings(max_examples=100, deadline=None)
@given(bits=st.integers(1, 32), count=st.integers(1, 70), seed=st.integers(0, 2**32 - 1))
def test_plain_packing_goes_there_and_back(bits: int, count: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 1 << bits, count).astype(np.uint32)
    data = plain_bits.pack(values, bits)
    assert len(data) == plain_bits.packed_bytes(count, bits)
    assert np.array_equal(plain_bits.unpack(data, count, bits, "x"), values)
    for wrong in (data + b"\x00", data[:-1]):
        with pytest.raises(CiphertextError):
            plain_bits.unpack(wrong, count, bits, "x")
    spare = 8 * len(data) - count * bits
    if spare:
        with pytest.raises(CiphertextError):
            plain_bits.unpack(data[:-1] + bytes([data[-1] | 0x80]), count, bits, "x")


def test_the_plain_transform_undoes_the_one_of_truncation() -> None:
    ring = ring_of(2048, 2)
    values = random_words(ring, 1)
    expected = plain.inverse(values[..., ring.place], ring)
    ntt.inverse(values, ring)
    assert np.array_equal(values, expected)
