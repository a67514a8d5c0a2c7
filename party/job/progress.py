"""What a party tells the coordinator of a job under way: steps, bytes, messages, seconds.

Guarantee: the traffic of an alignment shows how many users are common, which parties learn and nobody else; so what has
passed until its end is told to nobody. All else follows from shapes.
"""

from __future__ import annotations

import time

from veil.jobs.reports import ALIGN, Progress, steps
from veil.jobs.spec import JobSpec
from veil.mpc.transport import Traffic


class StepReports:
    """Reports of one job, which begins when this is made."""

    def __init__(self, spec: JobSpec) -> None:
        self._names = steps(spec)
        # None: an alignment has not ended.
        self._untold: Traffic | None = None if ALIGN in self._names else Traffic()
        self._started_at = time.monotonic()

    def __repr__(self) -> str:
        return f"StepReports({len(self._names)} steps)"

    def report(self, step: str, done: int, total: Traffic, corrected_bytes: int) -> Progress:
        """After a step. total: of the mesh, since the job began; corrected_bytes: of the dealer."""
        if step == ALIGN:
            self._untold = total
        untold = self._untold or total
        return Progress(
            step=step,
            done=done,
            total=len(self._names),
            bytes_sent=total.bytes_sent - untold.bytes_sent,
            bytes_received=total.bytes_received - untold.bytes_received + corrected_bytes,
            messages_sent=total.messages_sent - untold.messages_sent,
            elapsed_ms=int(1000 * (time.monotonic() - self._started_at)),
        )
