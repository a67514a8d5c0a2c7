"""Dry run, pool and dealer's bookkeeping."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dealer.engine_items import EngineItems
from tests.unit.mpc.engine.together import dealer_of, together
from veil.errors import PeerLost, ProtocolMismatch, StateError, WireError
from veil.mpc.engine import wire
from veil.mpc.engine.engine import Engine
from veil.mpc.engine.expand import Expander
from veil.mpc.engine.items import EngineItem, check
from veil.mpc.engine.plan import plan
from veil.mpc.engine.pool import PooledCorrelations, batches
from veil.mpc.items import MAX_ELEMENTS, MAX_WORK

ITEMS = [
    EngineItem("mask", (6, 4), owner=1),
    EngineItem("mask", (4, 1)),
    EngineItem("product", (3, 1), left=0, right=1, first_row=2, rows=3),
    EngineItem("truncation", (5,), shift=12),
    EngineItem("waves", (3,), period_bits=36, harmonics=4, precision_bits=18),
]


def program(engine: Engine) -> torch.Tensor:
    numbers = torch.arange(12, dtype=torch.int64).reshape(6, 2)
    data = engine.fix(engine.own(numbers if engine.rank == 0 else None, (6, 2), 0, bits=0, limit_bits=4), owner=0)
    weights = engine.public(torch.ones(2, 1, dtype=torch.int64), bits=0, limit_bits=1)
    for _ in range(8):
        weights = engine.truncated(engine.matmul(data, engine.masked(weights), rows=(0, 2)).scaled(4), 2)
    return engine.combine(weights)


def test_a_dry_run_tells_what_the_run_takes() -> None:
    for parties in (2, 3):
        plans = [plan(program, rank, parties) for rank in range(parties)]
        assert all(one.items == plans[0].items and one.rounds == plans[0].rounds for one in plans)
        assert plans[0].rounds == 1 + 16 + 1
        # Rank 0 alone sends the masked data, 6 x 2; all send 16 openings of two numbers, and the result as a matrix.
        openings = 16 * (16 + 8 + 16) + (16 + 16 + 16)
        assert plans[1].sent_bytes == (parties - 1) * openings
        assert plans[0].sent_bytes == (parties - 1) * (openings + 16 + 16 + 8 * 12)
        assert plans[0].correction_bytes == 8 * 8 * 2 + 8 * 8 * 4


@pytest.mark.parametrize("ahead_bytes", [1, 100, 2**20])
def test_the_pool_gives_the_same_however_little_may_wait(ahead_bytes: int) -> None:
    expected = torch.ones(2, 1, dtype=torch.int64)
    for _ in range(8):
        expected = torch.arange(4, dtype=torch.int64).reshape(2, 2) @ expected
    assert all(torch.equal(result, expected) for result in together(2, program, ahead_bytes=ahead_bytes))


def test_another_item_than_planned_stops_the_program() -> None:
    with PooledCorrelations(1, 2, os.urandom(32), None, ITEMS) as pool:
        pool.take(ITEMS[0])
        with pytest.raises(StateError, match="expected mask as planned"):
            pool.take(ITEMS[2])


def test_an_error_of_the_dealer_reaches_the_program() -> None:
    def fetch(first: int, items: Sequence[EngineItem]) -> bytes:
        raise PeerLost("the dealer has gone", culprits=("main",))

    with PooledCorrelations(0, 2, os.urandom(32), fetch, ITEMS) as pool, pytest.raises(PeerLost, match="dealer"):
        pool.take(ITEMS[0])


@pytest.mark.parametrize("excess", [-8, 8])
def test_corrections_of_another_length_are_refused(excess: int) -> None:
    seeds = [os.urandom(32)] * 2
    fetch = dealer_of(seeds)

    def wrong(first: int, items: Sequence[EngineItem]) -> bytes:
        data = fetch(first, items)
        return data[:excess] if excess < 0 else data + bytes(excess)

    with PooledCorrelations(0, 2, seeds[0], wrong, ITEMS) as pool, pytest.raises(ProtocolMismatch, match="bytes"):
        for item in ITEMS:
            pool.take(item)


def test_the_dealer_serves_each_number_once_and_in_order() -> None:
    items = EngineItems([os.urandom(32)] * 2, max_items=7)
    items.admit(0, ITEMS, max_elements=1000, max_work=1000)
    for first in (0, 3, 6):
        with pytest.raises(StateError, match="expected 5 on"):
            items.admit(first, ITEMS[:1], max_elements=1000, max_work=1000)
    with pytest.raises(StateError, match="below 7"):
        items.admit(5, ITEMS[:3], max_elements=1000, max_work=1000)
    with pytest.raises(WireError, match="at most 10 elements"):
        items.admit(5, ITEMS[:1], max_elements=10, max_work=1000)
    items.admit(5, ITEMS[:1], max_elements=1000, max_work=1000)


@pytest.mark.parametrize(
    "item",
    [
        EngineItem("mask", (0,)),
        EngineItem("mask", (1, 1, 1, 1, 1)),
        EngineItem("mask", (2**30,)),
        EngineItem("mask", (2,), owner=3),
        EngineItem("mask", (2,), owner=-2),
        EngineItem("truncation", (2,), shift=1),
        EngineItem("truncation", (2,), shift=62),
        EngineItem("waves", (2,), period_bits=63, harmonics=1, precision_bits=18),
        EngineItem("waves", (2,), period_bits=30, harmonics=33, precision_bits=18),
        EngineItem("waves", (2,), period_bits=30, harmonics=3, precision_bits=41),
        EngineItem("product", (3, 1), left=0, right=1, first_row=4, rows=3),
        EngineItem("product", (3, 1), left=0, right=9, first_row=0, rows=3),
        EngineItem("product", (3, 2), left=0, right=1, first_row=0, rows=3),
        EngineItem("product", (6, 4), left=0, right=1, operation="mul"),
        EngineItem("product", (), left=2, right=2, operation="mul"),
        EngineItem("truncation", (2,), shift=4, owner=0),
        EngineItem("waves", (2,), period_bits=30, harmonics=1, precision_bits=18, owner=7),
    ],
)
def test_items_beyond_their_bounds_are_refused(item: EngineItem) -> None:
    with pytest.raises(WireError, match="got"):
        check(item, dict(enumerate([*ITEMS[:2], EngineItem("mask", ())])), 3)


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=300))
def test_bytes_of_anybody_give_items_or_a_typed_error(data: bytes) -> None:
    from google.protobuf.message import DecodeError

    from veil.wire.v1 import dealer_pb2

    try:
        batch = dealer_pb2.EngineItems.FromString(data)
    except DecodeError:
        return
    items = EngineItems([os.urandom(32)] * 2, max_items=100)
    try:
        wanted = wire.from_wire(batch)
        items.admit(0, wanted, max_elements=1000, max_work=1000)
    except (WireError, StateError):
        return
    for number, item in enumerate(wanted):
        if item.dependent_shape is not None and item.kind != "noise":
            items.correction(number, item, None)


def test_items_survive_the_wire() -> None:
    request = wire.to_wire(7, ITEMS)
    assert wire.from_wire(request.engine_items) == ITEMS and request.index == 7


def test_rows_of_a_mask_are_those_of_the_whole() -> None:
    expander = Expander(0, os.urandom(32))
    item = EngineItem("mask", (7, 3))
    whole = expander.independent(5, item)
    for first in range(7):
        for rows in range(8 - first):
            assert torch.equal(expander.independent(5, item, first, rows), whole[first : first + rows])
    assert not torch.equal(expander.independent(6, item), whole)
    other = EngineItem("mask", (7, 3), owner=1)
    assert not expander.independent(5, other).any() and Expander(1, os.urandom(32)).independent(5, other).any()


def test_requests_are_cut_by_number_and_by_size() -> None:
    many = [EngineItem("truncation", (1000,), shift=4)] * 10_000
    cut = batches(many)
    assert [first for first, _ in cut] == list(np.cumsum([0] + [len(items) for _, items in cut[:-1]]))
    assert sum(len(items) for _, items in cut) == 10_000
    assert max(sum(item.correction_bytes for item in items) for _, items in cut) <= 4 * 2**20
    assert MAX_ELEMENTS * MAX_WORK > 0 and dealer_of([os.urandom(32)] * 2)(0, ITEMS)


def test_a_request_takes_the_dealer_no_more_work_than_one_item_may() -> None:
    left, right = EngineItem("mask", (512, 1024)), EngineItem("mask", (1024, 4))
    product = EngineItem("product", (512, 4), left=0, right=1, rows=512)
    work = 512 * 1024 * 4
    items = EngineItems([os.urandom(32)] * 2, max_items=10**6)
    items.admit(0, [left, right, product, product], max_elements=MAX_ELEMENTS, max_work=2 * work)
    with pytest.raises(StateError, match="multiplications in one request"):
        items.admit(4, [product] * 3, max_elements=MAX_ELEMENTS, max_work=2 * work)
    items.admit(4, [product] * 2, max_elements=MAX_ELEMENTS, max_work=2 * work)
    # and the pool asks for as much as that in several requests
    cut = batches([left, right, *[product] * 2000])
    assert sum(len(asked) for _, asked in cut) == 2002
    assert max(sum(one.kind == "product" for one in asked) for _, asked in cut) * work <= 2**30
