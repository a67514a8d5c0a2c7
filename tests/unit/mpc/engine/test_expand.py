"""Stretches of randomness: what counter mode gives, however they are cut; and what a dealer keeps of them."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from veil.mpc.engine import expand
from veil.mpc.engine.expand import Expander, Totals, correction, waves_of
from veil.mpc.engine.items import EngineItem
from veil.mpc.randomness import derive_key

SEED = bytes(range(32))


def reference(number: int, count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """AES-256 in counter mode by its definition in `veil.mpc.engine.expand`."""
    key = algorithms.AES(derive_key(SEED, b"engine", b"independent"))
    encryptor = Cipher(key, modes.CTR(number.to_bytes(8, "big") + bytes(8))).encryptor()
    return np.frombuffer(encryptor.update(bytes(8 * count)), "<i8").astype(np.int64)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**63), st.integers(1, 700), st.integers(1, 40), st.data())
def test_rows_of_a_stretch_are_those_of_counter_mode(number: int, rows: int, width: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, rows - 1))
    count = data.draw(st.integers(1, rows - first))
    expander, item = Expander(0, SEED), EngineItem("mask", (rows, width))
    whole = reference(number, rows * width).reshape(rows, width)
    assert np.array_equal(expander.independent(number, item, first, count).numpy(), whole[first : first + count])
    assert np.array_equal(expander.independent(number, item).numpy(), whole)


@pytest.mark.parametrize("count", [8191, 8192, 8193, 300_001])
def test_long_and_short_stretches_agree(count: int) -> None:
    found = Expander(0, SEED).independent(7, EngineItem("mask", (count,))).numpy()
    assert np.array_equal(found, reference(7, count))


def test_masks_that_are_kept_give_the_same_products(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = {0: EngineItem("mask", (20, 3), owner=1), 1: EngineItem("mask", (3, 1)), 2: EngineItem("mask", (20, 1))}
    items = [EngineItem("product", (10, 1), left=0, right=1, first_row=first, rows=10) for first in (0, 10, 0)] + [
        EngineItem("product", (3, 1), left=0, right=2, first_row=0, rows=20, transposed=True)
    ]
    seeds = [os.urandom(32) for _ in range(3)]

    def corrections() -> list[torch.Tensor]:
        totals = Totals([Expander(rank, seed) for rank, seed in enumerate(seeds)])
        return [correction(3 + at, item, totals, masks) for at, item in enumerate(items + items)]

    kept = corrections()
    monkeypatch.setattr(expand, "KEPT_BYTES", 0)
    for found, expected in zip(kept, corrections(), strict=True):
        assert torch.equal(found, expected)
    expanders = [Expander(rank, seed) for rank, seed in enumerate(seeds)]
    left = expanders[1].independent(0, masks[0])
    right = sum(one.independent(1, masks[1]) for one in expanders)
    others = sum(one.dependent(3, items[0]) for one in expanders[1:])
    assert torch.equal(kept[0] + others, (left[:10, :, None] * right[None]).sum(1))


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expand, "KEPT_BYTES", 20_000)
    totals = Totals([Expander(0, SEED)])
    for number in range(50):
        totals.total(number, EngineItem("mask", (800,)))
        totals.total(number, EngineItem("truncation", (800,), shift=3))
        assert sum(one.nbytes for one in totals._kept.values()) <= totals._kept_bytes <= 20_000
    assert list(totals._kept) == [(number, 0, None) for number in (48, 49)]
    totals.total(50, EngineItem("mask", (2_500,)))  # larger than all that may be kept
    assert list(totals._kept) == [(number, 0, None) for number in (48, 49)]
    for row in range(800):  # a tensor of one element takes far more than 8 bytes
        totals.total(49, EngineItem("mask", (800,)), row, 1)
    assert len(totals._kept) < 20


def test_waves_are_rounded_cosines_and_sines() -> None:
    masks = torch.from_numpy(np.random.default_rng(1).integers(-(2**63), 2**63 - 1, (5, 7)))
    item = EngineItem("waves", (5, 7), period_bits=24, harmonics=9, precision_bits=30)
    angles = (masks.numpy() & (2**24 - 1)) * (2 * np.pi / 2**24)
    turns = np.arange(1, 10)[:, None, None] * angles[None]
    expected = np.concatenate([np.cos(turns), np.sin(turns)]) * 2.0**30
    found = waves_of(masks, item).numpy()
    assert found.shape == (18, 5, 7) and np.abs(found - expected).max() <= 0.5 + 1e-4
