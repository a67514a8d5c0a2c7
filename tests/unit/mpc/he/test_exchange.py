"""Deals among threads, and what a peer that sends something else gets."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.unit.mpc.he.numbers import Integers, bounded, product, together, total, uniform
from veil.errors import InputError, ProtocolMismatch, VeilError
from veil.mpc.communicator import TensorCommunicator
from veil.mpc.he.exchange import Deal, Exchange
from veil.mpc.he.keys import hello_bytes
from veil.mpc.he.matrix import MatrixPlan
from veil.mpc.he.vectors import VectorPlan


def test_deals_of_all_kinds_at_once() -> None:
    left, rights = uniform(1, 9, 4), [uniform(2 + rank, 4, 3) for rank in range(3)]
    a, b = bounded(7, 20, 50), bounded(8, 20, 50)

    def program(communicator: TensorCommunicator) -> list[Integers]:
        exchange = Exchange(communicator)
        exchange.start()
        rank = exchange.rank
        assert repr(exchange) == f"Exchange(rank={rank}, parties=3)"
        return exchange.run(
            [
                Deal(MatrixPlan(9, 4, 3), 1, (0, 2), left if rank == 1 else None, rights[rank]),
                Deal(VectorPlan(50, 20, 20), 2, (0,), a if rank == 2 else None, b if rank == 0 else None),
                Deal(VectorPlan(50, 20, 20), 0, (), a, b),
            ]
        )

    shares = together(3, program)
    assert np.array_equal(total([own[0] for own in shares]), product(left, rights[0]) + product(left, rights[2]))
    assert np.array_equal(total([own[1] for own in shares]), a * b)
    assert not shares[1][1].any()
    assert not total([own[2] for own in shares]).any()


def test_messages_longer_than_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("veil.mpc.he.exchange._PIECE_BYTES", 70_001)
    a, b = bounded(7, 5, 100), bounded(8, 5, 100)

    def program(communicator: TensorCommunicator) -> Integers:
        exchange = Exchange(communicator)
        exchange.start()
        return exchange.run([Deal(VectorPlan(100, 5, 5), 0, (1,), a, b)])[0]

    assert np.array_equal(total(together(2, program)), a * b)


@pytest.mark.parametrize("when", ["hello", "request"])
@pytest.mark.parametrize("kind", ["garbage", "short"])
def test_a_hostile_peer_is_named(when: str, kind: str) -> None:
    def send(communicator: TensorCommunicator, size: int) -> None:
        data = torch.full((size if kind == "garbage" else size - 1,), 255, dtype=torch.uint8)
        communicator.send(data, 0)

    def hostile(communicator: TensorCommunicator) -> None:
        if when == "request":
            Exchange(communicator).start()
            send(communicator, VectorPlan(5, 3, 3).request_bytes)
        else:
            send(communicator, hello_bytes())

    def honest(communicator: TensorCommunicator) -> None:
        exchange = Exchange(communicator)
        with pytest.raises(ProtocolMismatch) as caught:
            exchange.start()
            exchange.run([Deal(VectorPlan(5, 3, 3), 1, (0,), None, np.arange(5))])
        assert caught.value.culprits == ("party-1",)

    roles: dict[int, Callable[[TensorCommunicator], None]] = {0: honest, 1: hostile}
    together(2, lambda communicator: roles[communicator.rank](communicator))


def test_a_missing_factor_is_said() -> None:
    def program(communicator: TensorCommunicator) -> None:
        exchange = Exchange(communicator)
        exchange.start()
        exchange.run([Deal(VectorPlan(5, 3, 3), 0, (1,), None, np.arange(5))])

    with pytest.raises((InputError, VeilError)):
        together(2, program)
