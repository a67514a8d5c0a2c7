"""What the phases of a job took at one party: seconds, and what the communicator's meter counted in each."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from veil.mpc.communicator import TensorCommunicator


class Phases:
    """Of one run. started_at_s: when the job began here, on the monotonic clock; None: now."""

    def __init__(self, communicator: TensorCommunicator, started_at_s: float | None = None) -> None:
        self._communicator = communicator
        self._started_at_s = time.monotonic() if started_at_s is None else started_at_s
        self._seconds: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"Phases({', '.join(self._seconds)})"

    def ready(self) -> None:
        """All before the first message is phase "start"."""
        self._seconds["start"] = time.monotonic() - self._started_at_s

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts what happens within it as `name`, with what an earlier phase of that name took."""
        started = time.perf_counter()
        try:
            with self._communicator.phase(name):
                yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - started

    def measured(self) -> dict[str, Any]:
        """Seconds of each phase and the meter's counts; nothing of it depends on rows' values."""
        return {"seconds": self._seconds, "communication": self._communicator.report().document()}
