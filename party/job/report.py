"""What a job took at this party, kept for its staff: seconds of each phase, bytes and rounds by operation and peer.

Guarantee: the worker's numbers are checked and bounded before they are written, mode 0600; they are sizes and times,
which the peers saw too, and nothing else. `veil job report` prints them beside the forecast.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from veil.errors import WireError
from veil.files import write_atomic
from veil.jobs.spec import MAX_TEXT_BYTES, describe

_LOG = logging.getLogger("veil.party.report")
SCHEMA: Final = "veil.job-report/1"
_MOST_ROWS = 4096

_Label = Annotated[str, StringConstraints(max_length=96, pattern=r"^[A-Za-z0-9_./-]*$")]
_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Seconds = Annotated[float, Field(ge=0, le=1e9)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)


class OperationCount(_Frozen):
    """As `veil.mpc.meters.OperationRow`."""

    phase: _Label
    operation: _Label
    rounds: _Count
    seconds: _Seconds
    waited_s: _Seconds


class PeerCount(_Frozen):
    """As `veil.mpc.meters.PeerRow`."""

    phase: _Label
    operation: _Label
    peer: _Label
    rounds: _Count
    bytes_sent: _Count
    messages_sent: _Count
    bytes_received: _Count
    messages_received: _Count
    waited_s: _Seconds


class Communication(_Frozen):
    """As `veil.mpc.meters.CommunicationReport.document`."""

    schema_: Literal["veil.communication/1"] = Field(alias="schema")
    party: _Label
    operations: Annotated[list[OperationCount], Field(max_length=_MOST_ROWS)]
    peers: Annotated[list[PeerCount], Field(max_length=_MOST_ROWS)]


class Measured(_Frozen):
    """What the worker says."""

    seconds: Annotated[dict[_Label, _Seconds], Field(max_length=64)]
    communication: Communication


class JobReport(_Frozen):
    """One file of `state/reports`."""

    schema_: Literal["veil.job-report/1"] = Field(default=SCHEMA, alias="schema")
    job_id: _Label
    party: _Label
    job_text: Annotated[str, StringConstraints(max_length=MAX_TEXT_BYTES)]
    measured: Measured

    def totals(self, phase: str) -> tuple[int, int, int]:
        """(rounds, bytes sent, bytes received) of a phase."""
        rounds = sum(row.rounds for row in self.measured.communication.operations if row.phase == phase)
        peers = [row for row in self.measured.communication.peers if row.phase == phase]
        return rounds, sum(row.bytes_sent for row in peers), sum(row.bytes_received for row in peers)


def write(state: Path, job_id: str, party: str, job_text: str, body: dict[str, Any]) -> Path:
    """Writes `state/reports/JOB.json`. Raises `WireError` when the worker's document is not of its form."""
    try:
        report = JobReport(job_id=job_id, party=party, job_text=job_text, measured=Measured.model_validate(body))
    except ValidationError as error:
        raise WireError(f"report of the worker: {describe(error)}") from None
    folder = state / "reports"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"{job_id}.json"
    write_atomic(path, json.dumps(report.model_dump(mode="json", by_alias=True), indent=1).encode(), mode=0o600)
    return path


def keep(state: Path, job_id: str, party: str, job_text: str, body: dict[str, Any]) -> None:
    """As `write`, but a disk that does not take it is a warning in the log: the job is over, and its outcome stands."""
    try:
        write(state, job_id, party, job_text, body)
    except OSError as error:
        _LOG.warning("job %s: its report is not kept: %s; make room in state/reports", job_id[:8], error.strerror)


def read(data: bytes) -> JobReport:
    """A report from its bytes. Raises `WireError`."""
    try:
        return JobReport.model_validate_json(data)
    except ValidationError as error:
        raise WireError(f"report: {describe(error)}") from None
