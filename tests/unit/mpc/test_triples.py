"""Items expanded from seeds satisfy their relation; shapes, bounds and the wire form agree on both sides."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from veil.errors import InputError, ProtocolMismatch, StateError, WireError
from veil.jobs.spec import Release
from veil.mpc.items import MAX_ELEMENTS, Item, apply, check, from_wire, normalise, to_wire
from veil.mpc.provider import DealerProvider, party_noise
from veil.mpc.triples import correction, count_wraps, item_key
from veil.privacy.noise import keyed_source
from veil.wire.v1 import dealer_pb2

ADDITIVE = [
    ("mul", (3, 4), (3, 4), {}),
    ("mul", (3, 1), (1, 4), {}),
    ("mul", (), (2,), {}),
    ("matmul", (3, 4), (4, 5), {}),
    ("matmul", (4,), (4,), {}),
    ("matmul", (4,), (2, 4, 5), {}),
    ("matmul", (2, 1, 3, 4), (5, 4, 2), {}),
    ("matmul", (3, 4), (4,), {}),
    ("conv1d", (2, 3, 9), (4, 3, 2), {"padding": 1, "stride": 2}),
    ("conv1d", (3, 9), (4, 3, 2), {}),
    ("conv2d", (2, 4, 7, 8), (6, 2, 3, 2), {"groups": 2, "padding": (1, 0), "dilation": (2, 1)}),
    ("conv2d", (1, 2, 5, 5), (3, 2, 3, 3), {"stride": [2, 1], "padding": 1}),
    ("conv_transpose1d", (2, 3, 5), (3, 4, 3), {"stride": 2, "output_padding": 1}),
    ("conv_transpose2d", (2, 4, 5, 5), (4, 3, 3, 3), {"groups": 2, "padding": 1, "stride": 2}),
]


class Dealer:
    """Seeds of all, corrections as the dealer makes them."""

    def __init__(self, size: int, noise: torch.Tensor | None = None) -> None:
        self.seeds = [os.urandom(32) for _ in range(size)]
        self.requests: list[Any] = []
        self._noise = noise

    def correct(self, request: dealer_pb2.CorrectRequest) -> bytes:
        request = dealer_pb2.CorrectRequest.FromString(request.SerializeToString())
        self.requests.append(request)
        item = from_wire(request)
        if item.kind == "noise" and self._noise is not None:
            item = Item("noise", (tuple(self._noise.shape),), release=item.release)
        keys = [item_key(seed, request.index, item) for seed in self.seeds]
        return correction(check(item), keys, self._noise).numpy().tobytes()

    def providers(self) -> list[DealerProvider]:
        return [DealerProvider(rank, seed, self.correct) for rank, seed in enumerate(self.seeds)]


def total(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(parts).sum(0)


def xor(parts: list[torch.Tensor]) -> torch.Tensor:
    result = parts[0].clone()
    for part in parts[1:]:
        result ^= part
    return result


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize(("operation", "left", "right", "options"), ADDITIVE)
def test_additive_triples(size: int, operation: str, left: Any, right: Any, options: dict[str, Any]) -> None:
    dealer = Dealer(size)
    parts = [p.generate_additive_triple(left, right, operation, device=None, **options) for p in dealer.providers()]
    a, b, c = (total(list(column)) for column in zip(*parts, strict=True))
    assert a.shape == left and b.shape == right
    assert torch.equal(c, getattr(torch, operation)(a, b, **options))
    assert len(dealer.requests) == 1  # only rank 0 asks


@pytest.mark.parametrize("size", [2, 3, 5])
def test_square_binary_and_bits(size: int) -> None:
    providers = Dealer(size).providers()
    r, r2 = (total(list(column)) for column in zip(*[p.square((50,)) for p in providers], strict=True))
    assert torch.equal(r * r, r2)
    a, b, c = (xor(list(k)) for k in zip(*[p.generate_binary_triple((5, 1), (1, 6)) for p in providers], strict=True))
    assert torch.equal(a & b, c)
    bits = [p.B2A_rng((400,)) for p in providers]
    arithmetic, binary = total([part[0] for part in bits]), xor([part[1] for part in bits])
    assert torch.equal(arithmetic, binary)
    assert 100 < int(arithmetic.sum()) < 300  # a fair coin leaves this range with probability below 1e-22
    assert all(set(part[1].unique().tolist()) == {0, 1} for part in bits)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_wraps_count_exactly(size: int) -> None:
    parts = [p.wrap_rng((300,)) for p in Dealer(size).providers()]
    wraps = total([part[1] for part in parts])
    for at in range(300):
        exact = sum(int(part[0][at]) for part in parts)
        ring = (exact + 2**63) % 2**64 - 2**63
        assert exact == ring + int(wraps[at]) * 2**64


def test_wraps_at_the_edges() -> None:
    low, high = -(2**63), 2**63 - 1
    shares = [torch.tensor([low, high, low, 0, high]), torch.tensor([low, high, high, low, 1])]
    assert count_wraps(iter(shares)).tolist() == [-1, 1, 0, 0, 1]


def test_noise_shares_sum_to_the_draw_and_hide_it() -> None:
    release = Release(name="n", shape=(64, 64), sensitivity=1, sigma=2)
    draw = party_noise(release, keyed_source(b"k" * 32, b"n"))
    providers = Dealer(3, draw).providers()
    shares = [provider.noise_share(release) for provider in providers]
    assert torch.equal(total(shares), draw)
    for pair in ((0, 1), (0, 2), (1, 2)):  # any two of three
        octets = np.bincount((shares[pair[0]] + shares[pair[1]]).numpy().view(np.uint8).reshape(-1), minlength=256)
        assert scipy.stats.chisquare(octets).pvalue > 1e-9
    assert [provider.items for provider in providers] == [1, 1, 1]


def test_no_key_serves_twice() -> None:
    provider = Dealer(2).providers()[1]
    first, second = provider.square((4,)), provider.square((4,))
    other = provider.square((2, 2))
    assert not torch.equal(first[0], second[0]) and not torch.equal(second[0], other[0].reshape(-1))


@pytest.mark.parametrize(
    ("operation", "left", "right", "options"),
    [
        ("matmul", (3, 4), (5, 4), {}),
        ("matmul", (), (4,), {}),
        ("mul", (3,), (4,), {}),
        ("conv2d", (1, 2, 5, 5), (3, 1, 3, 3), {}),
        ("conv2d", (1, 2, 2, 2), (3, 2, 3, 3), {}),
        ("conv2d", (1, 2, 5, 5), (3, 2, 3, 3), {"stride": 0}),
        ("conv1d", (1, 2, 5), (3, 2, 3), {"output_padding": 1}),
        ("conv_transpose1d", (2, 3, 5), (3, 4, 3), {"output_padding": 1}),
        ("conv1d", (1, 2, 5), (3, 2, 3), {"groups": 2}),
        ("pow", (3,), (3,), {}),
    ],
)
def test_shapes_that_clash_are_refused_as_torch_refuses_them(
    operation: str, left: Any, right: Any, options: Any
) -> None:
    with pytest.raises(WireError):
        check(Item("additive", (left, right), operation=operation, options=normalise(options)))
    if operation != "pow":
        with pytest.raises((RuntimeError, TypeError)):
            getattr(torch, operation)(torch.zeros(left).long(), torch.zeros(right).long(), **options)


@pytest.mark.parametrize(
    "item",
    [
        Item("square", ((MAX_ELEMENTS + 1,),)),
        Item("square", ((2**40, 2**40),)),
        Item("square", ((1,) * 9,)),
        Item("additive", ((2**20, 1), (1, 2**20)), operation="mul"),
        Item("additive", ((2**13, 2**13), (2**13, 2**13)), operation="matmul"),
        Item("binary", ((2**20, 1), (1, 2**20))),
        Item("additive", ((1, 1, 4), (1, 1, 2)), operation="conv1d", options={"padding": (2**20,)}),
        Item("additive", ((1, 1, 4), (1, 1, 2)), operation="conv1d", options={"stride": (1, 1, 1)}),
    ],
    ids=lambda item: f"{item.kind}-{math.log2(max(map(max, item.shapes))):.0f}",
)
def test_too_large_items_are_refused_before_any_work(item: Item) -> None:
    with pytest.raises(WireError, match="got"):
        check(item)


@pytest.mark.parametrize(("operation", "left", "right", "options"), ADDITIVE)
def test_wire_form_round_trips(operation: str, left: Any, right: Any, options: dict[str, Any]) -> None:
    item = Item("additive", (left, right), operation=operation, options=normalise(options))
    again = from_wire(dealer_pb2.CorrectRequest.FromString(to_wire(item, "j", 7).SerializeToString()))
    assert again == item and again.label == item.label


def test_malformed_requests_are_refused() -> None:
    with pytest.raises(WireError, match="nothing"):
        from_wire(dealer_pb2.CorrectRequest())
    odd = to_wire(Item("additive", ((2,), (2,)), operation="mul"), "j", 0)
    odd.additive_triple.convolution.stride.append(1)
    with pytest.raises(WireError, match="convolution"):
        from_wire(odd)
    with pytest.raises(WireError, match="option"):
        normalise({"padding": "same"})
    with pytest.raises(WireError, match="operation"):
        apply(Item("additive", ((2,), (2,)), operation="__class__"), torch.zeros(2), torch.zeros(2))


def test_a_correction_of_another_size_is_refused() -> None:
    with pytest.raises(ProtocolMismatch, match="8 bytes, expected 16"):
        DealerProvider(0, os.urandom(32), lambda _: bytes(8)).square((2,))
    with pytest.raises(InputError):
        DealerProvider(0, os.urandom(32), None)
    with pytest.raises(StateError):
        correction(Item("noise", ((2,),)), [os.urandom(32)] * 2)
