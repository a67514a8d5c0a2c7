"""Residues as bytes: one form only, and a typed error with the peer's name for everything else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veil.errors import ProtocolMismatch
from veil.mpc.he import bits
from veil.mpc.he.spaces import kept, whole


@given(st.integers(1, 300), st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_there_and_back(count: int, seed: int) -> None:
    ring = whole()
    drawn = np.random.default_rng(seed).integers(0, 2**32, (2, 7, count), dtype=np.uint32)
    values = (drawn % ring.q[:, None]).astype(np.uint32)
    values[0, :, 0] = ring.q - 1
    data = bits.write_rows(values, ring)
    assert len(data) == bits.rows_bytes(2, count, ring)
    assert np.array_equal(bits.read_rows(data, 2, count, ring, peer="p", what="it"), values)


def test_numbers_lie_where_the_guarantee_says() -> None:
    ring = kept()
    values = np.array([[[1, 2], [0, 0], [ring.primes[2] - 1, 3]]], np.uint32)
    data = bits.write_rows(values, ring)
    assert int.from_bytes(data[:7], "little") == 1 | 2 << 25
    assert int.from_bytes(data[14:], "little") == (ring.primes[2] - 1) | 3 << 25


@given(st.binary(max_size=80))
@settings(max_examples=200, deadline=None)
def test_hostile_bytes_name_the_peer(data: bytes) -> None:
    try:
        values = bits.read_rows(data, 1, 5, kept(), peer="mallory", what="it")
    except ProtocolMismatch as error:
        assert error.culprits == ("mallory",)
    else:
        assert bits.write_rows(values, kept()) == data


def test_each_kind_of_wrong_bytes() -> None:
    ring = kept()
    good = bits.write_rows(np.zeros((1, 3, 5), np.uint32), ring)
    too_great = bytearray(good)
    too_great[:4] = ring.primes[0].to_bytes(4, "little")
    spare = bytearray(good)
    spare[-1] |= 0x80
    for wrong in (good[:-1], good + b"\x00", bytes(too_great), bytes(spare), b""):
        with pytest.raises(ProtocolMismatch, match="mallory") as caught:
            bits.read_rows(wrong, 1, 5, ring, peer="mallory", what="it")
        assert caught.value.culprits == ("mallory",)
