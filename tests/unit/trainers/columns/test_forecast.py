"""The forecast's bytes and rounds are those that the meter counts; its seconds follow from the link."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Literal

import pytest

from tests.unit.party.test_joint import play
from tests.unit.trainers.columns.clicks import COMMON, job
from veil.align.plan import AlignmentPlan
from veil.align.protocol import align
from veil.errors import ConfigError
from veil.jobs.spec import Noise
from veil.mpc.communicator import TensorCommunicator
from veil.mpc.loopback import loopback
from veil.mpc.meters import CommunicationReport
from veil.trainers.columns.forecast import PHASES, Link, Speeds, align_traffic, forecast

LINK = Link(bandwidth=100e6, round_trip_s=0.02)
SPEEDS = Speeds(point_s=1e-4, product_s=1e-9)


@pytest.mark.parametrize(
    ("mode", "positive_weight", "triples"),
    [("reveal", 1.0, "dealer"), ("reveal", 2.0, "dealer"), ("hidden", 1.0, "dealer"), ("reveal", 1.0, "he")],
)
def test_bytes_and_rounds_are_those_of_the_meter(
    tmp_path: Path, mode: str, positive_weight: float, triples: str
) -> None:
    noise = Noise(source="dealer" if triples == "dealer" else "parties")
    spec = job(mode=mode, positive_weight=positive_weight, result=COMMON, triples=triples, noise=noise)
    reports: list[CommunicationReport] = []
    play(spec, tmp_path, reports=reports)
    for expected, report in zip(forecast(spec, LINK, SPEEDS), reports, strict=True):
        wanted = [phase for phase in PHASES if phase != "offline" or triples == "he"]
        assert [phase.phase for phase in expected.phases] == wanted
        for phase in expected.phases:
            rounds = sum(row.rounds for row in report.operations if row.phase == phase.phase)
            sent = sum(row.bytes_sent for row in report.peers if row.phase == phase.phase)
            received = sum(row.bytes_received for row in report.peers if row.phase == phase.phase)
            if phase.phase == "align":
                # rounds are those that wait for one another; the meter counts a send and a receive as one each
                assert (phase.sent_bytes, phase.received_bytes) == (sent, received)
            elif phase.phase == "offline":
                assert (phase.sent_bytes, phase.received_bytes) == pytest.approx((sent, received), rel=0.01)
            elif phase.phase == "statistics":
                # the test's rounds leave out that parties state what they are about to open, 56 bytes each
                assert (phase.rounds, phase.sent_bytes, phase.received_bytes) == (
                    rounds + 2,
                    sent + 112,
                    received + 112,
                )
            else:
                assert (phase.rounds, phase.sent_bytes, phase.received_bytes) == (rounds, sent, received)


def test_seconds_follow_from_the_link_and_the_machine() -> None:
    spec = job()
    fast, slow = (forecast(spec, link, SPEEDS)[0] for link in (LINK, Link(100e6, 0.22)))
    rounds = sum(phase.rounds for phase in fast.phases)
    assert slow.seconds - fast.seconds == pytest.approx(rounds * 0.1)
    narrow = forecast(spec, Link(1e6, 0.02), SPEEDS)[0]
    assert narrow.seconds > fast.seconds
    assert forecast(spec, LINK, Speeds(1e-3, 1e-9))[0].seconds > fast.seconds
    assert [party.dealer_bytes > 0 for party in forecast(spec, LINK, SPEEDS)] == [True, False]


@pytest.mark.parametrize(("bandwidth", "round_trip_s"), [(0.0, 0.1), (float("inf"), 0.1), (1e6, -1.0), (1e6, 1e3)])
def test_links_out_of_range(bandwidth: float, round_trip_s: float) -> None:
    with pytest.raises(ConfigError, match="link"):
        Link(bandwidth, round_trip_s)


@pytest.mark.parametrize("collector", [0, 1, 2])
@pytest.mark.parametrize(("mode", "result"), [("reveal", 30), ("hidden", 170)])
def test_lists_of_three_parties_go_where_the_forecast_says(
    mode: Literal["reveal", "hidden"], result: int, collector: int
) -> None:
    alignment = AlignmentPlan(mode=mode, sizes=(60, 50, 60), result=result, collector=collector)
    names = [[f"u{number}" for number in range(first, last)] for first, last in ((0, 40), (10, 50), (0, 50))]
    transports, counted = loopback(3), {}

    def take_part(rank: int) -> None:
        communicator = TensorCommunicator(transports[rank], ("a", "b", "c"), 60.0)
        align(communicator, names[rank], alignment, bytes(32))
        peers = communicator.report().peers
        counted[rank] = sum(row.bytes_sent for row in peers), sum(row.bytes_received for row in peers)

    threads = [threading.Thread(target=take_part, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = align_traffic(alignment)
    assert [(one.sent_bytes, one.received_bytes) for one in expected] == [counted[rank] for rank in range(3)]
