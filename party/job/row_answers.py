"""How many jobs a day a party answers by rules alone where the answer tells something of its rows.

Whether a job on columns is signed depends on rows too (more of them than it declares, a value that it has no word for):
one bit about them, noised by nothing, and whoever submits jobs can ask again with other numbers. Both answers tell it,
so both are counted. The same job shown again is the same question and counts once.

Guarantee: within 24 hours at most `most` different jobs get such an answer; any other waits for a person, which tells
nothing. An answer is counted, on disk, before a row is looked at; a clock that is set back makes the count last longer.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from veil.errors import StateError
from veil.files import read_bounded, write_atomic
from veil.jobs.columns import ColumnsTrainer
from veil.jobs.predictions import PredictionsTrainer
from veil.jobs.side import SideTrainer
from veil.jobs.spec import JobSpec

DAY_S: Final = 24 * 3600.0
FILE: Final = "row-answers.json"
_MOST_BYTES: Final = 1024 * 1024
_DIGEST_CHARACTERS: Final = 64


def looks_at_rows(spec: JobSpec) -> bool:
    """Whether signing the job depends on rows, not on the party's configuration and the job text alone."""
    return isinstance(spec.trainer, ColumnsTrainer | SideTrainer | PredictionsTrainer)


class RowAnswers:
    """The record of such answers, `state/row-answers.json`, mode 0600. clock: seconds since the epoch."""

    def __init__(self, state: Path, most: int, *, clock: Callable[[], float] = time.time) -> None:
        """Raises `StateError` for a file that is no such record."""
        self._path, self._most, self._clock = state / FILE, most, clock
        self._lock = threading.Lock()
        self._answered = self._read()

    def __repr__(self) -> str:
        return f"RowAnswers({len(self._answered)} of {self._most})"

    def admit(self, job_digest: bytes) -> bool:
        """Whether this job may be answered by rules alone; counted when this returns True."""
        name = job_digest.hex()
        with self._lock:
            since = self._clock() - DAY_S
            recent = {one: at for one, at in self._answered.items() if at > since}
            if name in recent:
                return True
            if len(recent) >= self._most:
                return False
            recent[name] = self._clock()
            write_atomic(self._path, json.dumps(recent).encode(), mode=0o600)
            self._answered = recent
            return True

    def _read(self) -> dict[str, float]:
        if not self._path.exists():
            return {}
        try:
            found = {str(name): float(at) for name, at in json.loads(read_bounded(self._path, _MOST_BYTES)).items()}
        except (ValueError, AttributeError, TypeError):
            found = {"": 0.0}
        if any(len(name) != _DIGEST_CHARACTERS for name in found):
            raise StateError(
                f"got {FILE} that cannot be read, expected which jobs were answered",
                hint="remove it: the day's count starts anew",
            )
        return found
