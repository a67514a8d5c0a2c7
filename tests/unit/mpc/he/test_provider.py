"""CrypTen's tuples without a dealer."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.unit.mpc.he.numbers import together
from veil.errors import ConfigError, WireError
from veil.mpc.communicator import TensorCommunicator
from veil.mpc.he.exchange import Exchange
from veil.mpc.he.provider import HomomorphicProvider
from veil.mpc.he.shared import SharedProducts


def _run(parties: int, program: Callable[[HomomorphicProvider], tuple[Tensor, ...]]) -> list[list[Tensor]]:
    """For each tensor that `program` gives, its shares in rank order."""

    def started(communicator: TensorCommunicator) -> tuple[Tensor, ...]:
        exchange = Exchange(communicator)
        exchange.start()
        provider = HomomorphicProvider(SharedProducts(exchange))
        assert repr(provider) == f"HomomorphicProvider(rank={communicator.rank})"
        return program(provider)

    return [list(column) for column in zip(*together(parties, started), strict=True)]


def _sum(shares: list[Tensor]) -> Tensor:
    return torch.stack(shares).sum(0)


def _xor(shares: list[Tensor]) -> Tensor:
    return functools.reduce(operator.xor, shares)


@pytest.mark.parametrize("parties", [2, 3])
def test_additive_triples(parties: int) -> None:
    a, b, c = map(_sum, _run(parties, lambda p: p.generate_additive_triple((3, 4), (4, 2), "matmul")))
    assert torch.equal(c, a @ b)
    a, b, c = map(_sum, _run(parties, lambda p: p.generate_additive_triple((3, 1), (4,), "mul")))
    assert torch.equal(c, a * b)
    assert c.shape == (3, 4)
    r, square = map(_sum, _run(parties, lambda p: p.square((2, 5))))
    assert torch.equal(square, r * r)


@pytest.mark.parametrize("parties", [2, 3])
def test_binary_triples_and_bits(parties: int) -> None:
    a, b, c = map(_xor, _run(parties, lambda p: p.generate_binary_triple((3, 4), (4,))))
    assert torch.equal(c, a & b)
    assert len(torch.unique(c)) == 12
    additive, binary = _run(parties, lambda p: p.B2A_rng((4, 50)))
    assert torch.equal(_sum(additive), _xor(binary))
    assert set(_xor(binary).flatten().tolist()) == {0, 1}
    assert all(set(share.flatten().tolist()) == {0, 1} for share in binary)


def test_additive_shares_of_bits_do_not_tell_the_binary_ones() -> None:
    # Among three parties a share that opens is seen by parties that could not know it from the sum.
    for additive, binary in zip(*_run(3, lambda p: p.B2A_rng((200,))), strict=True):
        assert 50 < int(((additive ^ binary) & 1).sum()) < 150
        assert len(torch.unique(additive >> 61)) == 8


def test_what_is_not_served_is_said() -> None:
    def program(provider: HomomorphicProvider) -> tuple[Tensor, ...]:
        with pytest.raises(ConfigError):
            provider.wrap_rng((3,))
        with pytest.raises(ConfigError):
            provider.generate_additive_triple((1, 1, 4), (1, 1, 2), "conv1d")
        with pytest.raises(ConfigError):
            provider.generate_additive_triple((2, 3, 4), (2, 4, 3), "matmul")
        with pytest.raises(WireError):
            provider.generate_additive_triple((3, 4), (3, 4), "matmul")
        return ()

    assert _run(2, program) == []
