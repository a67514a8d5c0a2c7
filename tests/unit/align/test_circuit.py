"""Equality with zero and selection on shares, against plain integers, for 2, 3 and 5 parties."""

from __future__ import annotations

from functools import reduce
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.unit.align.company import communicators, dealer, together
from veil.align.circuit import Circuit
from veil.mpc.randomness import RingStream

EDGES = [0, 1, -1, 2, 2**31, 2**32, -(2**32), 2**62, -(2**63), 2**63 - 1]
WORDS = st.lists(st.sampled_from(EDGES) | st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=12)


def shares(value: Tensor, size: int, xor: bool) -> list[Tensor]:
    stream = RingStream(bytes(32), b"test")
    masks = [stream.ring(tuple(value.shape)) for _ in range(size - 1)]
    if xor:
        return [*masks, reduce(torch.bitwise_xor, masks, value)]
    return [*masks, value - sum(masks)]


def compute(size: int, act: Any) -> list[Any]:
    return together(communicators(size)[0], lambda party: act(party.rank, Circuit(party, dealer(party.rank, size))))


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([2, 3, 5]), WORDS)
def test_is_zero(size: int, words: list[int]) -> None:
    value = torch.tensor(words, dtype=torch.int64)
    parts = shares(value, size, xor=True)
    results = compute(size, lambda rank, circuit: circuit.is_zero(parts[rank]))
    assert sum(results).tolist() == (value == 0).long().tolist()


@settings(deadline=None, max_examples=25)
@given(st.sampled_from([2, 3, 5]), WORDS, st.integers(1, 3), st.integers(0, 2**12 - 1))
def test_select(size: int, words: list[int], columns: int, pattern: int) -> None:
    values = torch.tensor(words, dtype=torch.int64).reshape(-1, 1) + torch.arange(columns)
    bits = torch.tensor([pattern >> row & 1 for row in range(len(words))], dtype=torch.int64)
    bit_parts, value_parts = shares(bits, size, xor=False), shares(values, size, xor=False)
    results = compute(size, lambda rank, circuit: circuit.select(bit_parts[rank], value_parts[rank]))
    assert torch.equal(sum(results), bits[:, None] * values)


@pytest.mark.parametrize("size", [2, 3])
def test_single_bits_of_every_place(size: int) -> None:
    value = torch.tensor([1 << place if place < 63 else -(2**63) for place in range(64)] + [0], dtype=torch.int64)
    parts = shares(value, size, xor=True)
    results = compute(size, lambda rank, circuit: circuit.is_zero(parts[rank]))
    assert sum(results).tolist() == [0] * 64 + [1]
    assert not any(torch.equal(result, (value == 0).long()) for result in results)  # no share is the value
