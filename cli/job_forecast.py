"""Forecasts of a job as tables, alone or beside what a party measured."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.job_view import size
from veil.errors import ConfigError

if TYPE_CHECKING:
    from party.job.report import JobReport
    from veil.jobs.spec import JobSpec
    from veil.trainers.columns.forecast import PartyForecast
    from veil.trainers.columns.speeds import Link

_BITS = {"bit": 1.0, "kbit": 1e3, "Mbit": 1e6, "Gbit": 1e9}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_LARGEST_REPORT_BYTES = 4 * 1024 * 1024


def link_of(bandwidth: str, latency: str) -> Link:
    """A link from texts such as "100Mbit" (a second, each way) and "20ms" (there and back)."""
    from veil.trainers.columns.speeds import Link

    return Link(_number(bandwidth, _BITS, "bandwidth"), _number(latency, _SECONDS, "latency"))


def _number(text: str, units: dict[str, float], what: str) -> float:
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s?([A-Za-z]+)", text.strip())
    if found is None or found[2] not in units:
        raise ConfigError(f"got {what} {text[:40]!r}, expected a number and one of {', '.join(units)}, as in 20ms")
    return float(found[1]) * units[found[2]]


def forecast_of(spec: JobSpec, link: Link, *, cores: int | None = None) -> list[PartyForecast]:
    """What a job takes at each party. Raises `ConfigError` for a trainer that has no forecast.

    cores: of one machine that runs all parties, the dealer and the coordinator; None: each has its own machine.
    """
    from veil.jobs.columns import ColumnsTrainer
    from veil.jobs.predictions import PredictionsTrainer
    from veil.jobs.side import SideTrainer
    from veil.trainers.columns.forecast import forecast
    from veil.trainers.columns.prediction_plan import forecast_predictions
    from veil.trainers.columns.speeds import Speeds

    if isinstance(spec.trainer, PredictionsTrainer):
        made = spec.trainer.correlated and spec.trainer.triples == "he"
        return forecast_predictions(spec, link, Speeds.measure(ciphertexts=made, cores=cores))
    if isinstance(spec.trainer, SideTrainer):
        from veil.trainers.side.forecast import forecast_side

        return forecast_side(spec, link, Speeds.measure(ciphertexts=spec.trainer.triples == "he", cores=cores))
    if not isinstance(spec.trainer, ColumnsTrainer):
        raise ConfigError(
            f"got trainer {spec.trainer.kind!r}, expected columns, predictions or side",
            hint="other trainers send each release's numbers once to each peer: 8 bytes a number, 2 rounds a release",
        )
    return forecast(spec, link, Speeds.measure(ciphertexts=spec.trainer.triples == "he", cores=cores))


def lines(found: list[PartyForecast]) -> Iterator[str]:
    """A table for a terminal."""
    yield f"{'party':14} {'phase':12} {'rounds':>8} {'sent':>10} {'received':>10} {'seconds':>9}"
    for one in found:
        for phase in one.phases:
            traffic = f"{size(phase.sent_bytes):>10} {size(phase.received_bytes):>10}"
            yield f"{one.party:14} {phase.phase:12} {phase.rounds:>8} {traffic} {phase.seconds:>9.2f}"
        dealer = f", {size(one.dealer_bytes)} from the dealer" if one.dealer_bytes else ""
        sent, received = (sum(getattr(p, name) for p in one.phases) for name in ("sent_bytes", "received_bytes"))
        yield f"{one.party:14} {'in all':12} {'':>8} {size(sent):>10} {size(received):>10} {one.seconds:>9.2f}{dealer}"


def document(found: list[PartyForecast]) -> list[dict[str, Any]]:
    """As JSON types."""
    from dataclasses import asdict

    return [asdict(one) for one in found]


def read_report(file: Path) -> JobReport:
    """A party's report of a job."""
    from party.job.report import read
    from veil.files import read_bounded

    return read(read_bounded(file, _LARGEST_REPORT_BYTES))


def compared(report: JobReport, found: list[PartyForecast]) -> Iterator[str]:
    """Forecast against measured, for the party whose report it is."""
    mine = next((one for one in found if one.party == report.party), None)
    if mine is None:
        raise ConfigError(f"got a report of {report.party!r}, expected one of a party of the job")
    yield f"{'phase':12} {'rounds':>15} {'sent':>21} {'received':>21} {'seconds':>17}"
    yield f"{'':12} {'forecast/is':>15} {'forecast/is':>21} {'forecast/is':>21} {'forecast/is':>17}"
    for phase in mine.phases:
        rounds, sent, received = report.totals(phase.phase)
        seconds = report.measured.seconds.get(phase.phase, 0.0)
        yield (
            f"{phase.phase:12} {phase.rounds:>7}/{rounds:<7} {size(phase.sent_bytes):>10}/{size(sent):<10}"
            f" {size(phase.received_bytes):>10}/{size(received):<10} {phase.seconds:>8.2f}/{seconds:<8.2f}"
        )
