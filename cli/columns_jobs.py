"""Whole jobs on split columns for `veil bench columns`: daemons, coordinator and dealer as processes, mutual TLS.

Guarantee: a draw is one job from its proposal to the signed model, which is verified before it is scored; its bytes and
seconds are those of the parties' own reports.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, Self

from cli import job_client
from cli.columns_data import DELTA, Sample
from cli.columns_tables import Draw
from cli.job_forecast import forecast_of, link_of, read_report
from cli.local import LocalConsortium, to_toml
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role

if TYPE_CHECKING:
    from veil.trainers.columns.publication import ColumnsModel

Model = Literal["logistic", "perceptron", "towers"]
Noise = Literal["dealer", "parties"]

# For all draws of a run: what a ledger allows is not what is measured here.
_BUDGET: Final = 1000.0


@dataclass(frozen=True)
class JobKind:
    """What jobs of one line have in common."""

    model: Model
    epsilon: float
    noise: Noise = "dealer"


class Consortium:
    """The programs, started once for all jobs on one sample. Use as a context manager."""

    def __init__(self, sample: Sample, bandwidth: str, latency: str) -> None:
        """bandwidth, latency: of the link that forecasts are for, as `veil job plan` takes them."""
        self._sample = sample
        self._link = link_of(bandwidth, latency)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        """Starts the programs. Raises `StateError` when one does not come up."""
        from baseline.tabular.ctr import write_party_files

        sample = self._sample
        with ExitStack() as stack:
            self._root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="veil-bench-")))
            paths = write_party_files(sample.frames, sample.schema, self._root / "tables")
            self._local = stack.enter_context(LocalConsortium(self._root, sample.names))
            self._local.start_coordinator()
            self._local.start_dealer()
            for party, source in zip(sample.schema.parties, paths["train"], strict=True):
                section = {
                    "source": str(source),
                    "identifier": party.identifier,
                    "use": [column.name for column in party.columns],
                    "labels": [sample.schema.label.name] if sample.schema.label_party == party.party else [],
                }
                self._local.start_columns_party(party.party, section, epsilon=_BUDGET)
            self._stack = stack.pop_all()
        self._operator = Credentials.load(self._local.credentials(Role.OPERATOR))
        (self._root / "columns.json").write_text(sample.schema.model_dump_json())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def draw(self, kind: JobKind) -> Draw:
        """One job. Raises the error that ended it when it ended badly."""
        desk = job_client.Desk(self._local.address("coordinator"), self._operator)
        spec = job_client.plan_job(self._request(kind), self._local.consortium)
        started = time.perf_counter()
        job = str(job_client.submit_job(desk, spec).job_id)
        deque(job_client.watch_job(desk, job), maxlen=0)
        seconds = time.perf_counter() - started
        reports = [read_report(self._root / f"party-{name}" / "reports" / f"{job}.json") for name in self._sample.names]
        phases = {}
        # Every program of the consortium runs on this machine.
        forecasts = forecast_of(spec, self._link, cores=os.cpu_count())
        for phase in forecasts[0].phases:
            rounds, sent, _ = reports[0].totals(phase.phase)
            phases[phase.phase] = {
                "forecast_rounds": float(phase.rounds),
                "measured_rounds": float(rounds),
                "forecast_bytes": float(phase.sent_bytes),
                "measured_bytes": float(sent),
                "forecast_s": phase.seconds,
                "measured_s": reports[0].measured.seconds.get(phase.phase, 0.0),
            }
        sample, model = self._sample, self._model(job)
        return sample.ranked(
            {split: model.predict(sample.held(split)) for split in ("dev", "test")},
            seconds=seconds,
            bytes_per_party=tuple(
                sum(row.bytes_sent for row in report.measured.communication.peers) for report in reports
            ),
            forecast_bytes_per_party=tuple(sum(phase.sent_bytes for phase in one.phases) for one in forecasts),
            phases=phases,
        )

    def _model(self, job: str) -> ColumnsModel:
        from veil.trainers.columns.publication import load_columns

        signers = [Identity(self._local.consortium, Role.PARTY, name) for name in self._sample.names]
        # Every party holds the same directory; any copy will do.
        folder = self._root / f"party-{self._sample.names[0]}" / "models" / job
        return load_columns(folder, self._operator.authority_pem, require_signers=signers)

    def _request(self, kind: JobKind) -> Path:
        """job.toml."""
        sample = self._sample
        file = self._root / "job.toml"
        file.write_text(
            to_toml(
                {
                    "name": "bench-columns",
                    "parties": list(sample.names),
                    "privacy": {"epsilon": kind.epsilon, "delta": DELTA, "noise": kind.noise},
                    "trainer": {
                        "kind": "columns",
                        "model": kind.model,
                        "schema_file": "columns.json",
                        "alignment": {
                            "mode": "reveal",
                            "sizes": [sample.rows] * len(sample.names),
                            "result": sample.rows,
                        },
                    },
                }
            )
        )
        return file
