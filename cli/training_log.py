"""What is shown while a job runs, and what the report says of it: seconds per step and bytes per party."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from cli.report import readable_bytes
from veil.jobs.reports import steps
from veil.jobs.spec import JobSpec
from veil.wire.v1 import coordinator_pb2


class TrainingLog:
    """A progress bar for each party on a terminal, one line a step otherwise; collects the meters as it goes."""

    def __init__(self, console: Console, spec: JobSpec) -> None:
        self._console = console
        self._spec = spec
        self._steps = steps(spec)
        self._elapsed_ms: dict[str, dict[str, int]] = {party: {} for party in spec.parties}
        self._sent: dict[str, int] = dict.fromkeys(spec.parties, 0)
        self._received: dict[str, int] = dict.fromkeys(spec.parties, 0)
        self._manifest_digest = b""
        self._started = time.monotonic()
        self._running_since: float | None = None
        self._seconds = 0.0
        columns = (TextColumn("  {task.description:10}"), BarColumn(), TextColumn("{task.fields[step]}"))
        self._bars = Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal)
        self._tasks = {
            party: self._bars.add_task(party, total=len(self._steps), step="waiting") for party in spec.parties
        }

    def __enter__(self) -> TrainingLog:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def add(self, event: coordinator_pb2.WatchJobResponse) -> None:
        """Takes in one event of the coordinator."""
        if event.HasField("progress") and event.party in self._tasks:
            progress = event.progress
            self._running_since = self._running_since or time.monotonic()
            self._elapsed_ms[event.party][progress.step] = progress.elapsed_ms
            self._sent[event.party] = progress.bytes_sent
            self._received[event.party] = progress.bytes_received
            note = f"{progress.step}, {readable_bytes(progress.bytes_sent)} sent"
            self._bars.update(self._tasks[event.party], completed=progress.done, step=note)
        if event.HasField("outcome"):
            self._manifest_digest = event.outcome.manifest_digest
        self._seconds = time.monotonic() - self._started
        if not self._console.is_terminal and event.line:
            self._console.print(f"  {self._seconds:6.1f} s  {event.line}", highlight=False, markup=False)

    def summary(self, job_digest: bytes) -> dict[str, Any]:
        """The `train` part of the report."""
        return {
            "seconds": round(self._seconds, 2),
            "rounds": len(self._spec.releases),
            "noise_source": self._spec.privacy.noise.source,
            "bytes_sent_per_party": dict(self._sent),
            "bytes_received_per_party": dict(self._received),
            "phases": {party: self._phases(party) for party in self._spec.parties},
            "releases": [
                {
                    "name": release.name,
                    "shape": list(release.shape),
                    "sensitivity": release.sensitivity,
                    "sigma": release.sigma,
                    "noise_multiplier": release.sigma / release.sensitivity,
                }
                for release in self._spec.releases
            ],
            "job_digest": job_digest.hex(),
            "manifest_digest": self._manifest_digest.hex(),
        }

    def _phases(self, party: str) -> dict[str, float]:
        seconds, before = {}, 0
        for step in self._steps:
            if step in self._elapsed_ms[party]:
                now = self._elapsed_ms[party][step]
                seconds[step] = round((now - before) / 1000, 3)
                before = now
        return seconds
