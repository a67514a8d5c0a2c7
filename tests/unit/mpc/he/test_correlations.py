"""Every kind of item, made by the parties themselves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.unit.mpc.he.numbers import Integers, together, total
from veil.errors import InputError, WireError
from veil.mpc.communicator import TensorCommunicator
from veil.mpc.engine.items import EngineItem
from veil.mpc.he.correlations import make
from veil.mpc.he.exchange import Exchange
from veil.mpc.he.shared import SharedProducts


def test_every_kind_of_item() -> None:
    mask = EngineItem("mask", (6, 4))
    items = [
        mask,
        EngineItem("mask", (4, 2)),
        EngineItem("mask", (4, 3)),
        EngineItem("product", (3, 2), left=0, right=1, first_row=2, rows=3),
        EngineItem("product", (3, 3), left=0, right=2, first_row=2, rows=3),
        EngineItem("mask", (6, 4), owner=1),
        EngineItem("product", (6, 4), operation="mul", left=0, right=5, rows=6),
        EngineItem("mask", (6, 1)),
        EngineItem("product", (6, 4), operation="mul", left=0, right=7, rows=6),
        EngineItem("product", (4, 1), left=0, right=7, first_row=0, rows=6, transposed=True),
        EngineItem("truncation", (3,), shift=5),
        EngineItem("truncation", (2, 2), shift=5),
        EngineItem("truncation", (2,), shift=9),
        EngineItem("noise", (3,), release="sums"),
        EngineItem("waves", (2, 3), period_bits=20, harmonics=2, precision_bits=12),
    ]

    def program(communicator: TensorCommunicator) -> list[tuple[Integers, Integers | None]]:
        exchange = Exchange(communicator)
        exchange.start()
        return make(SharedProducts(exchange), items, lambda item: torch.full(item.shape, communicator.rank + 1))

    shares = together(3, program)
    roots = [total([own[number][0] for own in shares]) for number in range(len(items))]
    last = [
        None if items[n].dependent_shape is None else total([np.asarray(own[n][1]) for own in shares])
        for n in range(len(items))
    ]
    for item, dependent in zip(items, last, strict=True):
        assert (None if dependent is None else dependent.shape) == item.dependent_shape
    assert np.array_equal(np.asarray(last[3]), roots[0][2:5] @ roots[1])
    assert np.array_equal(np.asarray(last[4]), roots[0][2:5] @ roots[2])
    assert np.array_equal(np.asarray(last[6]), roots[0] * roots[5])
    assert np.array_equal(np.asarray(last[8]), roots[0] * roots[7])
    assert np.array_equal(np.asarray(last[9]), roots[0].T @ roots[7])
    assert not any(own[5][0].any() for rank, own in enumerate(shares) if rank != 1)
    for number in (10, 11, 12):
        cut, top = np.asarray(last[number]).view(np.uint64)
        assert np.array_equal(cut, roots[number].view(np.uint64) >> np.uint64(items[number].shift))
        assert np.array_equal(top, roots[number].view(np.uint64) >> np.uint64(63))
    assert np.asarray(last[13]).tolist() == [6, 6, 6]


def test_items_are_checked() -> None:
    def program(communicator: TensorCommunicator) -> None:
        exchange = Exchange(communicator)
        exchange.start()
        products = SharedProducts(exchange)
        with pytest.raises(WireError):
            make(products, [EngineItem("product", (3, 2), left=0, right=1, rows=3)])
        with pytest.raises(InputError):
            make(products, [EngineItem("noise", (3,), release="sums")])

    together(2, program)
