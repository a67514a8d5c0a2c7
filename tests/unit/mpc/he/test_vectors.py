"""Products number by number against Python's integers: all bounds, cut ones, complex ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.mpc.he.numbers import Integers, bounded, wrapped
from veil.errors import InputError, ProtocolMismatch
from veil.mpc.he.products import PairProducts
from veil.mpc.he.vectors import HIDING_BITS, VectorPlan

Pair = tuple[PairProducts, PairProducts]


def _exact(plan: VectorPlan, left: Integers, right: Integers) -> np.ndarray[tuple[int, ...], np.dtype[np.object_]]:
    a, b = left.astype(object), right.astype(object)
    if not plan.complex_numbers:
        return a * b
    return np.stack([a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]])


def _run(pair: Pair, plan: VectorPlan, left: Integers, right: Integers) -> tuple[Integers, Integers]:
    asker, answerer = pair
    request = asker.request(plan, left)
    assert len(request) == plan.request_bytes
    answer, theirs = answerer.answer(plan, request, right)
    assert len(answer) == plan.answer_bytes
    return asker.finish(plan, answer), theirs


@given(
    st.integers(1, 300),
    st.integers(1, 64),
    st.integers(1, 64),
    st.booleans(),
    st.integers(0, 63),
    st.integers(0, 2**32),
)
@settings(max_examples=30, deadline=None)
def test_shares_add_up(pair: Pair, count: int, left: int, right: int, twofold: bool, shift: int, seed: int) -> None:
    right = min(right, 63) if twofold else right
    left = min(left, 62) if twofold else left
    shift = min(shift, left + right)
    plan = VectorPlan(count, left, right, twofold, min(shift, 63))
    a, b = bounded(seed, left, *plan.shape), bounded(seed + 1, right, *plan.shape)
    ours, theirs = _run(pair, plan, a, b)
    difference = ours + theirs - wrapped(_exact(plan, a, b) >> plan.shift)
    allowed = {0} if plan.shift == 0 else {0, 1}
    assert set(np.unique(difference)) <= allowed


@pytest.mark.parametrize(("left", "right"), [(1, 1), (26, 26), (64, 1), (64, 64)])
def test_more_than_one_run_of_slots(pair: Pair, left: int, right: int) -> None:
    plan = VectorPlan(8193, left, right)
    a, b = bounded(1, left, 8193), bounded(2, right, 8193)
    ours, theirs = _run(pair, plan, a, b)
    assert np.array_equal(ours + theirs, a * b)


@pytest.mark.parametrize("number", [0, -1, -(2**63), 2**63 - 1])
def test_boundaries(pair: Pair, number: int) -> None:
    plan = VectorPlan(16, 64, 64)
    for other in (0, -1, -(2**63), 2**63 - 1):
        a, b = np.full(16, number), np.full(16, other)
        ours, theirs = _run(pair, plan, a, b)
        assert np.array_equal(ours + theirs, a * b)
        assert len(np.unique(ours)) == len(np.unique(theirs)) == 16


def test_masks_hide_by_the_bits_that_are_stated() -> None:
    for left in range(1, 65):
        for right in range(1, 65):
            plan = VectorPlan(1, left, right)
            mask_bits = 60 * plan.pairs - 1
            assert plan.product_bits <= mask_bits - HIDING_BITS
            # and no pair more than that takes
            assert plan.pairs == 1 or plan.product_bits > mask_bits - 60 - HIDING_BITS
    assert 40 + math.log2(8192) <= HIDING_BITS


@pytest.mark.parametrize(("twofold", "shift", "limb_bits"), [(False, 0, 40), (True, 30, 38), (False, 44, 30)])
def test_shares_in_limbs_add_up_over_the_integers(pair: Pair, twofold: bool, shift: int, limb_bits: int) -> None:
    plan = VectorPlan(300, 24, 20, twofold, shift, limb_bits)
    a, b = bounded(1, 24, *plan.shape), bounded(2, 20, *plan.shape)
    ours, theirs = _run(pair, plan, a, b)
    assert ours.shape == theirs.shape == plan.result_shape
    sums = [limbs[0].astype(object) + (limbs[1].astype(object) << limb_bits) for limbs in (ours, theirs)]
    difference = sums[0] + sums[1] - (_exact(plan, a, b) >> shift)
    assert set(np.unique(difference.astype(np.int64))) <= ({0, 1} if shift else {0})
    # Masks are as long as it takes to hide.
    assert max(sums[0].ravel()) > 2 ** (plan.product_bits + HIDING_BITS - shift - 2)
    assert np.abs(ours[0]).max() < 2**limb_bits
    for wrong in (20, 63):
        with pytest.raises(InputError):
            VectorPlan(1, 40, 30, False, 0, wrong)


def test_masks_are_uniform(pair: Pair) -> None:
    plan = VectorPlan(8192, 64, 64)
    ours, theirs = _run(pair, plan, np.zeros(8192, np.int64), np.zeros(8192, np.int64))
    for share in (ours, theirs):
        for shift in (0, 31, 60):
            counts = np.bincount(((share.view(np.uint64) >> np.uint64(shift)) & np.uint64(15)).astype(np.int64))
            assert len(counts) == 16
            assert (np.abs(counts - 512) < 7 * math.sqrt(512)).all()


def test_hostile_messages(pair: Pair) -> None:
    asker, answerer = pair
    plan = VectorPlan(5, 3, 3)
    request = asker.request(plan, bounded(1, 3, 5))
    for wrong in (request[:-1], request + b"\x00", b"", request[:32] + b"\xff" * (len(request) - 32)):
        with pytest.raises(ProtocolMismatch) as caught:
            answerer.answer(plan, wrong, bounded(1, 3, 5))
        assert caught.value.culprits == ("alpha",)
    answer, _ = answerer.answer(plan, request, bounded(1, 3, 5))
    for wrong in (answer[:-1], answer + b"\x00", b"", b"\xff" * len(answer)):
        with pytest.raises(ProtocolMismatch) as caught:
            asker.finish(plan, wrong)
        assert caught.value.culprits == ("beta",)


def test_bounds_are_checked(pair: Pair) -> None:
    asker, answerer = pair
    plan = VectorPlan(5, 3, 3)
    for wrong in (np.full(5, 8), np.full(5, -8), np.full(5, -(2**63)), np.zeros(4, np.int64), np.zeros(5, np.int32)):
        with pytest.raises(InputError):
            asker.request(plan, wrong)
        with pytest.raises(InputError):
            answerer.answer(plan, asker.request(plan, np.zeros(5, np.int64)), wrong)
    for arguments in ((0, 1, 1), (2**22 + 1, 1, 1), (1, 0, 1), (1, 65, 1)):
        with pytest.raises(InputError):
            VectorPlan(*arguments)
    with pytest.raises(InputError):
        VectorPlan(1, 64, 64, complex_numbers=True)
    with pytest.raises(InputError):
        VectorPlan(1, 4, 4, shift=9)
