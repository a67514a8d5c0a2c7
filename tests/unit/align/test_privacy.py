"""What the messages say: no ids, nothing that two runs share, and a shape that depends on the plan alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pytest

from tests.unit.align.company import HEADER_BYTES, Recorder, aligned, communicators, points, run
from veil.align import hidden, mixing, protocol
from veil.align.curve import Curve, Scalar
from veil.align.ids import pseudonyms
from veil.align.protocol import AlignmentPlan

Mode = Literal["reveal", "hidden"]
MODES: tuple[Mode, ...] = ("reveal", "hidden")
LEFT = [f"alice-{row:04}@left.example" for row in range(10)] + [f"common-{row:04}@both.example" for row in range(6)]
RIGHT = [f"common-{row:04}@both.example" for row in range(6)] + [f"bob-{row:04}@right.example" for row in range(8)]


def plan_of(mode: Mode, sizes: tuple[int, ...] = (20, 20), **more: Any) -> AlignmentPlan:
    return AlignmentPlan(mode, sizes, min(sizes) if mode == "reveal" else sum(sizes), **more)


def recorded(lists: Sequence[Sequence[str]], plan: AlignmentPlan) -> list[Recorder]:
    parties, recorders = communicators(len(lists))
    aligned(lists, run(lists, plan, parties))
    return recorders


def said(recorders: Sequence[Recorder]) -> bytes:
    return b"".join(message for recorder in recorders for _, message in recorder.sent)


@pytest.mark.parametrize("mode", MODES)
def test_no_id_and_no_unlisted_pseudonym_travels(mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []

    def spy(ids: Sequence[bytes], key: bytes) -> Any:
        keys.append(key)
        return pseudonyms(ids, key)

    monkeypatch.setattr(protocol, "pseudonyms", spy)
    traffic = said(recorded([LEFT, RIGHT], plan_of(mode)))
    assert keys[0] == keys[1] and keys[0] not in traffic
    for name in {*LEFT, *RIGHT}:
        assert name.encode() not in traffic and name.split("@")[0].encode() not in traffic
    held = {name: bytes(pseudonyms([name.encode()], keys[0])[0]) for name in {*LEFT, *RIGHT}}
    travelled = {name for name, value in held.items() if value in traffic}
    assert travelled == (set(LEFT) & set(RIGHT) if mode == "reveal" else set())


@pytest.mark.parametrize("mode", MODES)
def test_no_plain_point_travels(mode: Mode, monkeypatch: pytest.MonkeyPatch) -> None:
    """H(x) without a secret would be found by whoever can guess x, and every party knows the key of the pseudonyms."""
    keys = []

    def spy(ids: Sequence[bytes], key: bytes) -> Any:
        keys.append(key)
        return pseudonyms(ids, key)

    monkeypatch.setattr(protocol, "pseudonyms", spy)
    travelled = points(recorded([LEFT, RIGHT], plan_of(mode)))
    assert len(travelled) >= 60
    with Curve() as curve:
        names = [name.encode() for name in {*LEFT, *RIGHT}]
        plain = curve.hash(pseudonyms(names, keys[0]), Scalar(1))
    assert travelled.isdisjoint({bytes(row) for row in plain})


@pytest.mark.parametrize("mode", MODES)
def test_two_runs_of_one_job_have_nothing_in_common(mode: Mode) -> None:
    first, second = (recorded([LEFT, RIGHT], plan_of(mode)) for _ in range(2))
    assert len(points(first)) >= 60 and points(first).isdisjoint(points(second))
    windows = [
        {message[at : at + 12] for r in run_ for _, message in r.sent for at in range(HEADER_BYTES, len(message) - 12)}
        for run_ in (first, second)
    ]
    both = {window for window in windows[0] & windows[1] if len(set(window)) > 4}
    # The digest of plan and job, stated first, is public and the same in both.
    agreed = first[0].sent[0][1]
    assert all(window in agreed for window in both)


def shape(recorders: Sequence[Recorder]) -> list[list[tuple[int, int]]]:
    return [[(peer, len(message)) for peer, message in recorder.sent] for recorder in recorders]


@pytest.mark.parametrize("collector", [0, 1, 2])
def test_hidden_traffic_has_one_shape_whatever_the_ids(collector: int) -> None:
    plan = plan_of("hidden", (8, 8, 8), collector=collector)
    same = ["a", "b", "c", "d", "e", "f", "g", "h"]
    companies = [
        [same, same, same],
        [["a"], [], ["x"]],
        [same, ["a", "q"], []],
        [[f"{rank}-{row}" for row in range(8)] for rank in range(3)],
    ]
    shapes = [shape(recorded(lists, plan)) for lists in companies]
    assert all(each == shapes[0] for each in shapes)


def test_the_collector_of_a_hidden_result_works_alike_whatever_the_union(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashing a point takes longer than multiplying one: were dummies hashed, batches would tell how many there are."""
    plan = plan_of("hidden", (8, 8))
    real = hidden._convert_union
    work: list[tuple[str, int]] = []

    class Counting(Curve):
        def hash(self, names: Any, scalar: Scalar) -> Any:
            work.append(("hash", len(names)))
            return super().hash(names, scalar)

        def multiply(self, points: Any, scalar: Scalar) -> Any:
            work.append(("multiply", len(points)))
            return super().multiply(points, scalar)

    def convert(exchange: Any, *rest: Any) -> None:
        exchange.curve = Counting()
        with exchange.curve:
            real(exchange, *rest)

    monkeypatch.setattr(hidden, "_convert_union", convert)
    same = [str(row) for row in range(8)]
    totals = []
    for lists in ([same, same], [same, [f"other-{row}" for row in range(8)]]):
        work.clear()
        aligned(lists, run(lists, plan))
        totals.append({kind: sum(rows for name, rows in work if name == kind) for kind in ("hash", "multiply")})
    assert totals[0] == totals[1] == {"hash": 16, "multiply": 16}


def test_revealed_traffic_depends_on_the_size_of_the_result_alone() -> None:
    plan = plan_of("reveal", (8, 8, 8))
    companies = [
        [["a", "b"], ["a", "b"], ["a", "b"]],
        [["a", "b", "c", "d"], ["a", "b", "c", "x"], ["a", "b", "y", "d", "z"]],
        [[f"{rank}-{row}" for row in range(6)] + ["p", "q"] for rank in range(3)],
    ]
    shapes = [shape(recorded(lists, plan)) for lists in companies]
    assert all(each == shapes[0] for each in shapes)


@pytest.mark.parametrize("parties", [2, 3])
def test_blinded_lists_come_in_no_order_of_their_owners(parties: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the collector compares: position j of F_i must not be what the owner sent j-th."""
    count = 24
    ids = [f"u{row}" for row in range(count)]
    seen: dict[int, list[Any]] = {}
    secrets: dict[int, Any] = {}

    def mix(exchange: Any, own: Any, sizes: Any, own_secrets: Any) -> Any:
        secrets[exchange.rank] = (own_secrets, own)
        return mixing.mix(exchange, own, sizes, own_secrets)

    def collect(exchange: Any, mixed: Any, sizes: Any) -> Any:
        lists = mixing.collect(exchange, mixed, sizes)
        if lists is not None:
            seen[exchange.rank] = lists
        return lists

    monkeypatch.setattr(protocol, "mix", mix)
    monkeypatch.setattr(protocol, "collect", collect)
    lists = [ids] * parties
    aligned(lists, run(lists, plan_of("reveal", (count,) * parties)))
    (blinded,) = seen.values()
    product = Scalar(1)
    for own_secrets, _ in secrets.values():
        product = product.times(own_secrets.compare)
    with Curve() as curve:
        for rank in range(parties):
            sent = [bytes(row) for row in curve.hash(secrets[rank][1], product)]
            got = [bytes(row) for row in blinded[rank]]
            assert sorted(sent) == sorted(got)
            kept = sum(left == right for left, right in zip(sent, got, strict=True))
            assert kept < 12  # one on average; twelve or more once in 10^9 runs


def test_secrets_do_not_print() -> None:
    from veil.align.mixing import Mixed, Secrets

    shown = repr(Secrets(Scalar(7), Scalar(8))) + repr(
        Mixed(np.zeros((1, 33), np.uint8), np.zeros((1, 33), np.uint8), None)
    )
    assert "7" not in shown.split("0x")[0] and "Scalar" not in shown and "array" not in shown
