"""Exact sums by parts: all sizes and numbers of parties, what travels, and what a party cannot get away with."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from veil.errors import InputError, ProtocolMismatch, RevealError
from veil.mpc.communicator import TensorCommunicator
from veil.mpc.keys import agree_on_streams
from veil.mpc.loopback import loopback
from veil.mpc.policy import RevealPolicy
from veil.mpc.reduce import ROUNDS, least_bytes, masked_sum, open_sum

NAMES = ("alpha", "beta", "gamma", "delta", "epsilon")
DIGEST = bytes(32)


def together(size: int, act: Callable[[TensorCommunicator], Any]) -> list[Any]:
    parties = [TensorCommunicator(transport, NAMES[:size], timeout_s=10) for transport in loopback(size)]
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(act, parties))


def zero_of(communicator: TensorCommunicator) -> Any:
    streams = agree_on_streams(communicator, DIGEST)
    return streams["prev"], streams["next"]


@settings(max_examples=40, deadline=None)
@given(
    size=st.sampled_from([2, 3, 5]),
    elements=st.integers(0, 70),
    part=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
)
def test_sums_are_exact_modulo_two_to_the_64(size: int, elements: int, part: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    own = [torch.randint(-(2**63), 2**63 - 1, (elements,), generator=generator) for _ in range(size)]
    if elements:
        own[0][0], own[1][0] = 2**63 - 1, 1  # wraps
    expected = torch.stack(own).sum(0)
    before = [tensor.clone() for tensor in own]
    found = together(size, lambda c: masked_sum(c, own[c.rank], zero_of(c), part_elements=part))
    for total in found:
        assert torch.equal(total, expected)
    assert all(torch.equal(a, b) for a, b in zip(own, before, strict=True))


def test_shape_is_kept_and_views_are_read_right() -> None:
    grid = torch.arange(24).reshape(4, 6)
    found = together(3, lambda c: masked_sum(c, grid.t() * (c.rank + 1), zero_of(c), part_elements=2))
    for total in found:
        assert torch.equal(total, grid.t() * 6)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_bytes_are_the_least_possible(size: int) -> None:
    elements = 600_000

    def act(c: TensorCommunicator) -> float:
        zero = zero_of(c)
        c.reset_communication_stats()
        masked_sum(c, torch.ones(elements, dtype=torch.int64), zero)
        return c.get_communication_stats()["bytes"]

    least = least_bytes(size, elements)
    assert least == -(-2 * (size - 1) * 8 * elements // size)
    for sent in together(size, act):
        assert least - 16 * size <= sent <= 1.01 * least
    assert ROUNDS == 2


def test_what_leaves_a_party_is_masked() -> None:
    """The same numbers twice: nothing that is sent in step (1) repeats, and the numbers themselves never appear."""
    own = torch.full((300,), 7, dtype=torch.int64)
    sent: list[torch.Tensor] = []

    def act(c: TensorCommunicator) -> None:
        if c.rank == 0:
            plain = c.send

            def recorded(tensor: torch.Tensor, dst: int) -> None:
                sent.append(tensor.clone())
                plain(tensor, dst)

            c.send = recorded  # type: ignore[method-assign]
        zero = zero_of(c)
        for _ in range(2):
            masked_sum(c, own, zero, part_elements=100)

    together(3, act)
    first, second = sent[0:2], sent[4:6]
    for tensor in first + second:
        assert tensor.numel() == 100
        assert not (tensor == 7).any()
        assert len(set(tensor.tolist())) == 100
    assert not torch.equal(first[0], second[0])
    assert torch.equal(sent[2], torch.full((100,), 21, dtype=torch.int64))  # step (3): the sum of its part


def test_opening_is_listed_recorded_and_compared() -> None:
    own = torch.arange(10)

    def act(c: TensorCommunicator) -> Any:
        policy = RevealPolicy((), {"total": (10,)})
        zero = zero_of(c)
        total, opening = open_sum(c, policy, "total", own, zero)
        with pytest.raises(RevealError):
            open_sum(c, policy, "total", own, zero)  # once
        with pytest.raises(RevealError):
            open_sum(c, policy, "other", own, zero)
        return total, opening, policy.log

    for total, opening, log in together(3, act):
        assert torch.equal(total, 3 * own)
        assert log == (opening,)
        assert opening.name == "total"


def test_a_party_that_hands_out_different_sums_is_found_out() -> None:
    def act(c: TensorCommunicator) -> str:
        zero = zero_of(c)
        if c.rank == 2:
            plain = c.send
            calls = []

            def lying(tensor: torch.Tensor, dst: int) -> None:
                calls.append(dst)
                # its third and fourth messages are the sums of its part
                plain(tensor + 1 if calls.count(dst) == 2 and dst == 0 else tensor, dst)

            c.send = lying  # type: ignore[method-assign]
        try:
            open_sum(c, RevealPolicy((), {"total": (9,)}), "total", torch.ones(9, dtype=torch.int64), zero)
        except ProtocolMismatch as error:
            return ",".join(error.culprits)
        return ""

    assert together(3, act) == ["beta,gamma", "alpha", "alpha"]


def test_what_it_refuses() -> None:
    def act(c: TensorCommunicator) -> None:
        zero = zero_of(c)
        with pytest.raises(InputError, match="int64"):
            masked_sum(c, torch.ones(3), zero)
        with pytest.raises(InputError, match="parts"):
            masked_sum(c, torch.ones(3, dtype=torch.int64), zero, part_elements=0)

    together(2, act)


def test_another_size_is_named() -> None:
    def act(c: TensorCommunicator) -> str:
        zero = zero_of(c)
        try:
            masked_sum(c, torch.ones(8 if c.rank else 12, dtype=torch.int64), zero)
        except ProtocolMismatch as error:
            return ",".join(error.culprits)
        return ""

    assert together(2, act) == ["beta", "alpha"]
