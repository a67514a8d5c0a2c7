"""Every id in one of its bins, one id in a bin."""

from __future__ import annotations

import math
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
    assert np.all(np.diff(np.sort(options, axis=1), axis=1) > 0)  # three different ones
    tenant, choice = place(options, bins(count), source())
    taken = np.flatnonzero(tenant >= 0)
    assert sorted(tenant[taken].tolist()) == list(range(count))
    assert np.array_equal(options[tenant[taken], choice[taken]], taken)


@pytest.mark.parametrize("count", [3, 4, 9])
def test_all_triples_of_bins_are_alike(count: int) -> None:
    """Chi-square over all ordered triples; twelve standard deviations of it are allowed."""
    drawn = choices([str(number).encode() for number in range(20_000)], bytes(32), count)
    seen = np.bincount(drawn @ np.array([count**2, count, 1]), minlength=count**3)
    triples = math.perm(count, CHOICES)
    assert np.count_nonzero(seen) == triples
    expected = len(drawn) / triples
    excess = float(np.square(seen[seen > 0] - expected).sum()) / expected - (triples - 1)
    assert abs(excess) < 12 * math.sqrt(2 * triples)


def _failure_bits(ids: int, count: int) -> float:
    """log2 of a bound on the probability that ids with three different bins each have no places.

    By Hall, some s ids have s - 1 bins in all; in the least such set each bin is a choice of two ids or more. Union
    over sets of ids and of bins, with the smaller of two bounds: all choices fall into the bins (exact), and the
    coefficient of z^(3s) in (e^z - 1 - z)^(s-1), which counts choices that hit each bin twice: at most its value at
    any z, over z^(3s).
    """

    def log_choose(n: int, k: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    total = 0.0
    for some in range(4, ids + 1):
        few = some - 1
        within = some * math.log(math.perm(few, 3) / math.perm(count, 3))
        ways = (few * math.log(math.expm1(z) - z) - 3 * some * math.log(z) for z in (1.0, 1.5, 2.0, 2.15, 2.3, 2.5))
        twice = math.lgamma(3 * some + 1) + min(ways) - some * math.log(math.perm(count, 3))
        total += math.exp(min(0.0, log_choose(ids, some) + log_choose(count, few) + min(within, twice)))
    return math.log2(total) if total else -math.inf


@pytest.mark.parametrize("ids", [1, 4, 10, 25, 50, 75, 100, 120, 150, 200, 300, 500, 1000, 2000, 4096])
def test_no_place_is_found_less_than_once_in_2_to_the_40_runs(ids: int) -> None:
    assert _failure_bits(ids, bins(ids)) < -40


def test_bins_depend_on_the_key() -> None:
    ids = [str(number).encode() for number in range(100)]
    first, again, other = (choices(ids, bytes([key]) * 32, 1000) for key in (0, 0, 1))
    assert np.array_equal(first, again) and np.mean(first == other) < 0.1


def test_what_cannot_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("veil.align.cuckoo._MOST_STEPS", 50)
    with pytest.raises(StateError):
        place(np.zeros((4, 3), dtype=np.int64), 10, source())
