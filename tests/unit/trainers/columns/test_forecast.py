"""The forecast's bytes and rounds are those that the meter counts; its seconds follow from the link."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.unit.party.worker.test_joint import play
from tests.unit.trainers.columns.clicks import COMMON, job
from veil.align.traffic import align_traffic
from veil.errors import ConfigError
from veil.jobs.spec import Noise
from veil.mpc.meters import CommunicationReport
from veil.trainers.columns.forecast import PHASES, forecast
from veil.trainers.columns.speeds import Link, Speeds
from veil.trainers.columns.terms import PAID_TOGETHER, ColumnsTerms

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
        assert (expected.phases[0].phase, expected.phases[0].rounds, expected.phases[0].sent_bytes) == ("start", 0, 0)
        assert [phase.phase for phase in expected.phases] == wanted
        for phase in expected.phases:
            rounds = sum(row.rounds for row in report.operations if row.phase == phase.phase)
            sent = sum(row.bytes_sent for row in report.peers if row.phase == phase.phase)
            received = sum(row.bytes_received for row in report.peers if row.phase == phase.phase)
            if phase.phase == "offline":
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
    # a round trip of 200 ms more, for rounds that follow one another: batches of an alignment are on their way together
    waits = align_traffic(ColumnsTerms.of(spec).alignment)[0].waits
    rounds = sum(phase.rounds for phase in fast.phases if phase.phase != "align") + waits
    assert slow.seconds - fast.seconds == pytest.approx(rounds * 0.1)
    narrow = forecast(spec, Link(1e6, 0.02), SPEEDS)[0]
    assert narrow.seconds > fast.seconds
    assert forecast(spec, LINK, Speeds(1e-3, 1e-9))[0].seconds > fast.seconds
    assert [party.dealer_bytes > 0 for party in forecast(spec, LINK, SPEEDS)] == [True, False]
    # a slow disk delays statistics once a release; steps once a group, where that takes longer than the steps
    disk = forecast(spec, Link(1e13, 0.0), Speeds(1e-4, 1e-9, entry_s=10.0))[0]
    seconds = {phase.phase: phase.seconds for phase in disk.phases}
    assert seconds["statistics"] == pytest.approx(20.0, rel=0.01)
    assert seconds["descend"] == pytest.approx(10.0 * 6 / PAID_TOGETHER, rel=0.01)


def test_programs_that_share_cores_take_longer_than_with_machines_of_their_own() -> None:
    spec = job()
    alone, two, one = (
        forecast(spec, LINK, dataclasses.replace(SPEEDS, cores=cores))[0].seconds for cores in (None, 2, 1)
    )
    assert alone <= two < one
    # with more cores than there is work for them, others' work does not show
    assert forecast(spec, LINK, dataclasses.replace(SPEEDS, cores=64))[0].seconds == pytest.approx(alone, rel=0.01)


@pytest.mark.parametrize("cores", [0, -1, 5000])
def test_cores_out_of_range(cores: int) -> None:
    with pytest.raises(ConfigError, match="cores"):
        Speeds(1e-4, 1e-9, cores=cores)


def test_what_is_measured_is_a_time() -> None:
    found = Speeds.measure(cores=3)
    assert found.cores == 3 and found.ciphertext_byte_s == 0.0
    assert all(0 < seconds < 10 for seconds in (found.point_s, found.product_s, found.entry_s))


@pytest.mark.parametrize(("bandwidth", "round_trip_s"), [(0.0, 0.1), (float("inf"), 0.1), (1e6, -1.0), (1e6, 1e3)])
def test_links_out_of_range(bandwidth: float, round_trip_s: float) -> None:
    with pytest.raises(ConfigError, match="link"):
        Link(bandwidth, round_trip_s)
