"""What an alignment is said to take is what the communicator's meter counts, call by call and byte by byte."""

from __future__ import annotations

import threading
from typing import Literal

import pytest

from veil.align import exchange, traffic
from veil.align.plan import AlignmentPlan
from veil.align.protocol import align
from veil.align.traffic import align_points, align_traffic
from veil.mpc.communicator import TensorCommunicator
from veil.mpc.loopback import loopback


def counted(plan: AlignmentPlan, held: list[range]) -> list[tuple[int, int, int]]:
    """Rounds, bytes sent and bytes received of each party in a real alignment."""
    transports, found = loopback(len(held)), dict[int, tuple[int, int, int]]()
    names = tuple("abc"[: len(held)])

    def take_part(rank: int) -> None:
        communicator = TensorCommunicator(transports[rank], names, 60.0)
        align(communicator, [f"u{number}" for number in held[rank]], plan, bytes(32))
        report = communicator.report()
        found[rank] = (
            sum(row.rounds for row in report.operations),
            sum(row.bytes_sent for row in report.peers),
            sum(row.bytes_received for row in report.peers),
        )

    threads = [threading.Thread(target=take_part, args=(rank,)) for rank in range(len(held))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[rank] for rank in range(len(held))]


@pytest.mark.parametrize("batch_rows", [8192, 16])
@pytest.mark.parametrize(
    ("mode", "result", "collector", "parties"),
    [
        ("reveal", 30, 0, 3),
        ("reveal", 30, 2, 3),
        ("hidden", 170, 0, 3),
        ("hidden", 170, 1, 3),
        ("reveal", 30, 1, 2),
        ("hidden", 110, 0, 2),
    ],
)
def test_rounds_and_bytes_are_those_of_the_meter(
    monkeypatch: pytest.MonkeyPatch,
    mode: Literal["reveal", "hidden"],
    result: int,
    collector: int,
    parties: int,
    batch_rows: int,
) -> None:
    """Lists of several batches and of different lengths, so that those with fewer tick."""
    monkeypatch.setattr(exchange, "BATCH_ROWS", batch_rows)
    monkeypatch.setattr(traffic, "BATCH_ROWS", batch_rows)
    plan = AlignmentPlan(mode=mode, sizes=(60, 50, 60)[:parties], result=result, collector=collector)
    held = [range(40), range(10, 50), range(50)][:parties]
    expected = [(one.rounds, one.sent_bytes, one.received_bytes) for one in align_traffic(plan)]
    assert counted(plan, held) == expected


def test_announced_sizes_take_a_round_more() -> None:
    padded = AlignmentPlan(mode="reveal", sizes=(40, 40), result=30)
    told = AlignmentPlan(mode="reveal", sizes=(40, 40), result=30, padded=False)
    assert counted(told, [range(40), range(10, 50)]) == [
        (one.rounds, one.sent_bytes, one.received_bytes) for one in align_traffic(told)
    ]
    assert align_traffic(told)[0].rounds == align_traffic(padded)[0].rounds + 1


@pytest.mark.parametrize(("mode", "factor"), [("reveal", 3), ("hidden", 6)])
def test_all_parties_together_compute_more_points_than_one_waits_for(
    mode: Literal["reveal", "hidden"], factor: int
) -> None:
    plan = AlignmentPlan(mode=mode, sizes=(60, 50, 60), result=60 if mode == "hidden" else 40)
    points = align_points(plan)
    assert points.longest < points.all
    assert points.all >= factor * sum(plan.sizes)
