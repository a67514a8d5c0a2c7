"""Every id in one of its bins, one id in a bin."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veil.align.cuckoo import CHOICES, bins, choices, place
from veil.errors import StateError
from veil.mpc.randomness import RingStream


def source() -> RingStream:
    return RingStream(os.urandom(32), b"test")


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 3000), st.binary(min_size=32, max_size=32))
def test_all_ids_find_a_place(count: int, key: bytes) -> None:
    ids = [str(number).encode() for number in range(count)]
    options = choices(ids, key, bins(count))
    assert options.shape == (count, CHOICES) and np.all((options >= 0) & (options < bins(count)))
    tenant, choice = place(options, bins(count), source())
    taken = np.flatnonzero(tenant >= 0)
    assert sorted(tenant[taken].tolist()) == list(range(count))
    assert np.array_equal(options[tenant[taken], choice[taken]], taken)


def test_bins_depend_on_the_key() -> None:
    ids = [str(number).encode() for number in range(100)]
    first, again, other = (choices(ids, bytes([key]) * 32, 1000) for key in (0, 0, 1))
    assert np.array_equal(first, again) and np.mean(first == other) < 0.1


def test_what_cannot_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("veil.align.cuckoo._MOST_STEPS", 50)
    with pytest.raises(StateError):
        place(np.zeros((4, 3), dtype=np.int64), 10, source())
