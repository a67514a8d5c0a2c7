"""A party that sends what the protocol does not foresee: a typed error that names it, at the party that receives it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from tests.unit.align.company import NAMES, Hostile, Tamper, as_tensor, communicators, run
from veil.align import exchange
from veil.align.curve import POINT_BYTES, Curve, Scalar
from veil.align.ids import PSEUDONYM_BYTES, dummies
from veil.align.protocol import AlignmentPlan
from veil.errors import PeerError, PeerLost, ProtocolMismatch

Mode = Literal["reveal", "hidden"]
LISTS = [[f"left-{row}" for row in range(6)] + list("abcdef"), list("fedcba") + [f"right-{row}" for row in range(6)]]
THIRD = list("abcxyz") + [f"third-{row}" for row in range(6)]


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "BATCH_ROWS", 4)


def no_points(tensor: Tensor) -> Tensor:
    return torch.full_like(tensor, 0xFF)


def one_no_point(tensor: Tensor) -> Tensor:
    spoiled = tensor.clone()
    spoiled[-1, 0] = 7
    return spoiled


def repeated(tensor: Tensor) -> Tensor:
    return tensor[:1].repeat(len(tensor), 1)


def negated(tensor: Tensor) -> Tensor:
    """The second point is the first one's negative: after a shuffle two points with one x stand for them."""
    spoiled = tensor.clone()
    spoiled[1] = spoiled[0]
    spoiled[1, 0] ^= 1
    return spoiled


TAMPERS: dict[str, Tamper] = {
    "no points": no_points,
    "one no point": one_no_point,
    "repeated": repeated,
    "negated": negated,
    "one less": lambda tensor: tensor[:-1],
    "one more": lambda tensor: torch.cat([tensor, tensor[:1]]),
    "nothing": lambda tensor: tensor[:0],
    "oversize": lambda tensor: torch.zeros((2**20, POINT_BYTES), dtype=torch.uint8),
    "flat": lambda tensor: tensor.reshape(-1),
    "numbers": lambda tensor: tensor.to(torch.int64),
    "a protobuf": lambda tensor: as_tensor(b"\x08\x01\x12\x21" * 33, 33),
}


def attacked(
    mode: Mode,
    lists: Sequence[Sequence[str]],
    hostile: int,
    chosen: Callable[[int, Tensor], bool],
    tamper: Tamper,
    **more: Any,
) -> tuple[list[Any], Hostile]:
    sizes = (12,) * len(lists)
    plan = AlignmentPlan(mode, sizes, 12 if mode == "reveal" else sum(sizes), **more)
    parties, _ = communicators(len(lists))
    bad = Hostile(parties[hostile].transport, NAMES[: len(lists)], timeout_s=20)
    bad.chosen, bad.tamper = chosen, tamper
    parties[hostile] = bad
    return run(lists, plan, parties), bad


def is_batch_of_points(tensor: Tensor) -> bool:
    return tensor.dim() == 2 and tensor.shape[1] == POINT_BYTES and len(tensor) > 1


@pytest.mark.parametrize("what", TAMPERS)
@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("mode", ["reveal", "hidden"])
def test_two_parties(mode: Mode, number: int, what: str) -> None:
    for hostile in (0, 1):
        seen = [0]

        def chosen(_: int, tensor: Tensor, seen: list[int] = seen) -> bool:
            seen[0] += is_batch_of_points(tensor)
            return is_batch_of_points(tensor) and seen[0] == number + 1

        results, bad = attacked(mode, LISTS, hostile, chosen, TAMPERS[what])
        victim = results[1 - hostile]
        assert bad.tampered == 1
        assert isinstance(victim, ProtocolMismatch) and victim.culprits == (NAMES[hostile],), victim
        assert all(name not in str(victim) for own in LISTS for name in own if len(name) > 1)


@pytest.mark.parametrize("what", ["no points", "repeated", "one less", "oversize"])
@pytest.mark.parametrize("mode", ["reveal", "hidden"])
def test_every_stage_of_three(mode: Mode, what: str) -> None:
    """Each message in turn, until the protocol has none left: no run ends well and none blames only the honest."""
    number, outcomes = 0, 0
    while True:
        seen = [0]

        def chosen(_: int, tensor: Tensor, seen: list[int] = seen, number: int = number) -> bool:
            seen[0] += is_batch_of_points(tensor)
            return is_batch_of_points(tensor) and seen[0] == number + 1

        results, bad = attacked(mode, [*LISTS, THIRD], 1, chosen, TAMPERS[what])
        if not bad.tampered:
            break
        honest = [results[0], results[2]]
        assert all(isinstance(result, PeerError) for result in honest), (number, results)
        named = [result for result in honest if isinstance(result, ProtocolMismatch)]
        assert any("beta" in result.culprits for result in named), (number, results)
        number, outcomes = number + 3, outcomes + 1
    assert outcomes >= 3


def test_names_that_are_not_held_are_refused() -> None:
    """A collector that announces pseudonyms outside of the intersection."""

    def chosen(_: int, tensor: Tensor) -> bool:
        return tensor.dim() == 2 and tensor.shape[1] == PSEUDONYM_BYTES

    results, bad = attacked("reveal", LISTS, 0, chosen, lambda t: torch.from_numpy(dummies(len(t)).copy()))
    assert bad.tampered == 2  # six names in batches of four
    assert isinstance(results[1], ProtocolMismatch) and results[1].culprits == ("alpha",)


def test_points_that_were_never_sent_are_refused() -> None:
    """A party that returns other points of the curve when it should take its secret off the common ones."""
    batches = [0]

    def chosen(_: int, tensor: Tensor) -> bool:
        batches[0] += is_batch_of_points(tensor)
        return is_batch_of_points(tensor) and batches[0] > 6  # 12 rows out, 12 rows to the collector, then 6 unwrapped

    def others(tensor: Tensor) -> Tensor:
        with Curve() as curve:
            return torch.from_numpy(curve.hash(dummies(len(tensor)), Scalar.draw()).copy())

    results, bad = attacked("reveal", LISTS, 1, chosen, others)
    assert bad.tampered == 2
    assert isinstance(results[0], ProtocolMismatch) and results[0].culprits == ("beta",)


def test_only_points_of_the_collectors_own_list_are_unwrapped() -> None:
    """A collector that has other points stripped of the secret would test guesses of ids on what comes back."""
    batches = [0]

    def chosen(_: int, tensor: Tensor) -> bool:
        batches[0] += is_batch_of_points(tensor)
        return is_batch_of_points(tensor) and batches[0] > 3  # 12 rows out, then the common ones

    def others(tensor: Tensor) -> Tensor:
        with Curve() as curve:
            return torch.from_numpy(curve.hash(dummies(len(tensor)), Scalar.draw()).copy())

    results, bad = attacked("reveal", LISTS, 0, chosen, others)
    assert bad.tampered >= 1
    assert isinstance(results[1], ProtocolMismatch) and results[1].culprits == ("alpha",)
    assert "blinded list" in str(results[1])


def test_a_set_of_names_without_the_own_ones_is_refused() -> None:
    """The last party replaces the final set."""
    batches = [0]

    def chosen(_: int, tensor: Tensor) -> bool:
        batches[0] += is_batch_of_points(tensor)
        return is_batch_of_points(tensor) and batches[0] > 9  # out, home, to the collector: three batches each

    def others(tensor: Tensor) -> Tensor:
        with Curve() as curve:
            return torch.from_numpy(curve.hash(dummies(len(tensor)), Scalar.draw()).copy())

    results, bad = attacked("hidden", LISTS, 1, chosen, others)
    assert bad.tampered == 6
    assert isinstance(results[0], ProtocolMismatch) and results[0].culprits == ("beta",)


class Liar(Hostile):
    """Tells other numbers: of its ids, and of the result."""

    told = 0

    def all_gather(self, tensor: Tensor) -> Any:
        return super().all_gather(torch.full_like(tensor, self.told) if tensor.dtype == torch.int64 else tensor)

    def broadcast(self, input: Any, src: int, group: object = None, batched: bool = False) -> Any:
        if src == self.rank:
            super().broadcast(torch.full_like(input, self.told), src)
            return input
        return super().broadcast(input, src)


@pytest.mark.parametrize("told", [13, -1, 2**62])
def test_a_number_of_ids_beyond_the_declared_one_is_refused(told: int) -> None:
    parties, _ = communicators(2)
    liar = Liar(parties[1].transport, NAMES[:2], timeout_s=20)
    liar.told = told
    results = run(LISTS, AlignmentPlan("reveal", (12, 12), 12, padded=False), [parties[0], liar])
    assert isinstance(results[0], ProtocolMismatch) and results[0].culprits == ("beta",)


@pytest.mark.parametrize("told", [13, -2, 2**62])
@pytest.mark.parametrize("mode", ["reveal", "hidden"])
def test_a_result_beyond_the_declared_one_is_refused(mode: Mode, told: int) -> None:
    parties, _ = communicators(2)
    liar = Liar(parties[0].transport, NAMES[:2], timeout_s=20)
    liar.told = told
    results = run(LISTS, AlignmentPlan(mode, (12, 12), 12 if mode == "reveal" else 24), [liar, parties[1]])
    assert isinstance(results[1], ProtocolMismatch) and results[1].culprits == ("alpha",)


def test_a_party_that_leaves_is_named() -> None:
    parties, _ = communicators(2)

    class Deserter(Hostile):
        def send(self, tensor: Tensor, dst: int) -> None:
            self.transport.close()
            raise PeerLost("leaving", culprits=("beta",))

    results = run(LISTS, AlignmentPlan("reveal", (12, 12), 12), [parties[0], Deserter(parties[1].transport, NAMES[:2])])
    assert isinstance(results[0], PeerLost) and results[0].culprits == ("beta",)


def test_plans_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        AlignmentPlan("reveal", (3, 3), 3).result = 4  # type: ignore[misc]
