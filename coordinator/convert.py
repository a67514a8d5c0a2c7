"""The coordinator's own messages to and from the wire (veil/wire/v1/coordinator.proto).

Guarantee: nothing of a request gets further than here without its bounds checked; a field that is missing or out of
bounds raises `WireError` with what was got and expected.
"""

from __future__ import annotations

import re

from coordinator.messages import Confirm, Propose, Record, Refresh, Start, Stop
from coordinator.states import Cancelled, Done, Ended, Failed, Phase, phase_of
from coordinator.store import Entry, Row
from veil.errors import ConfigError, WireError
from veil.jobs import convert
from veil.jobs.reports import sentence
from veil.wire.limits import split_address
from veil.wire.v1 import coordinator_pb2 as wire
from veil.wire.v1 import job_pb2

MOST_LISTED = 500
USUAL_LISTED = 50
# A listing stays well below the limit on a message.
MOST_LISTED_BYTES = 3 * 1024 * 1024
_JOB_ID = re.compile(r"[0-9a-f]{32}")
_SOFTWARE_CHARACTERS = 64


def job_id_from(text: str) -> str:
    """A job identifier."""
    if not _JOB_ID.fullmatch(text):
        raise WireError(f"got job id {sentence(text)[:64]!r}, expected 32 lower-case hex digits")
    return text


def hello_from(request: wire.JoinRequest) -> tuple[str, str]:
    """Mesh address and software version of a party's first message."""
    kind = request.WhichOneof("report")
    if kind != "hello":
        raise WireError(f"got {kind or 'nothing'} as the first message, expected Hello")
    hello = request.hello
    if hello.protocol_version != convert.JOIN_PROTOCOL_VERSION:
        raise WireError(
            f"got protocol version {hello.protocol_version}, expected {convert.JOIN_PROTOCOL_VERSION}",
            hint="install the same version of Veil at the coordinator and the parties",
        )
    try:
        _, port = split_address(hello.mesh_address)
    except ConfigError as error:
        raise WireError(f"mesh address: {error.message}") from None
    if port == 0:
        raise WireError("got mesh address with port 0, expected the port that peers can reach")
    return hello.mesh_address, sentence(hello.software_version)[:_SOFTWARE_CHARACTERS]


def report_job_id(request: wire.JoinRequest) -> str:
    """Which job a report is about."""
    kind = request.WhichOneof("report")
    match kind:
        case "signed":
            return job_id_from(request.signed.job_id)
        case "refused":
            return job_id_from(request.refused.job_id)
        case "progress":
            return job_id_from(request.progress.job_id)
        case "done":
            return job_id_from(request.done.job_id)
        case "failed":
            return job_id_from(request.failed.job_id)
    raise WireError(f"got {kind or 'nothing'} in mid-stream, expected a report about a job or Heartbeat")


def welcome_to_wire(heartbeat_interval_ms: int) -> wire.JoinResponse:
    """The answer to Hello."""
    return wire.JoinResponse(welcome=wire.Welcome(heartbeat_interval_ms=heartbeat_interval_ms))


def command_to_wire(command: Propose | Start | Stop | Confirm, text: str, digest: bytes) -> wire.JoinResponse:
    """A command to a party; `text` and `digest` are the job's, used by Propose."""
    match command:
        case Propose():
            job = job_pb2.Job(job_id=command.job_id, text=text, digest=digest)
            return wire.JoinResponse(propose=wire.ProposeJob(job=job))
        case Start():
            start = wire.StartJob(
                job_id=command.job_id,
                approvals=[convert.approval_to_wire(approval) for approval in command.approvals],
                peers=[wire.PeerAddress(party=party, address=address) for party, address in command.peers],
            )
            return wire.JoinResponse(start=start)
        case Stop():
            failure = convert.failure_to_wire(command.failure)
            return wire.JoinResponse(stop=wire.StopJob(job_id=command.job_id, failure=failure))
        case Confirm():
            return wire.JoinResponse(confirmed=wire.JobConfirmed(job_id=command.job_id))


def entry_to_wire(entry: Entry) -> wire.WatchJobResponse:
    """One line of a history."""
    record: Record = entry.record
    message = wire.WatchJobResponse(
        sequence=entry.sequence,
        time_ms=entry.time_ms,
        phase=phase_to_wire(record.phase),
        party=record.party,
        line=record.line,
    )
    if record.progress is not None:
        message.progress.CopyFrom(convert.progress_to_wire(record.progress))
    if record.failure is not None:
        message.failure.CopyFrom(convert.failure_to_wire(record.failure))
    if record.outcome is not None:
        message.outcome.CopyFrom(convert.outcome_to_wire(record.outcome))
    return message


def refresh_to_wire(refresh: Refresh, sequence: int, time_ms: int) -> wire.WatchJobResponse:
    """Newer numbers of a line that was sent before: they carry the sequence of the latest line and no text."""
    return wire.WatchJobResponse(
        sequence=sequence,
        time_ms=time_ms,
        phase=phase_to_wire(refresh.phase),
        party=refresh.party,
        progress=convert.progress_to_wire(refresh.progress),
    )


def row_to_wire(row: Row) -> wire.JobRecord:
    """A job with everything known of it."""
    job = row.job
    record = wire.JobRecord(
        job=job_pb2.Job(job_id=job.job_id, text=row.text, digest=job.plan.digest),
        phase=phase_to_wire(phase_of(job)),
        signed_by=job.signed_by,
        progress=[
            wire.PartyProgress(party=party, progress=convert.progress_to_wire(job.progress[party]))
            for party in job.plan.parties
            if party in job.progress
        ],
        submitted_ms=job.plan.submitted_ms,
        ended_ms=job.ended_ms if isinstance(job, Ended) else 0,
    )
    if isinstance(job, Failed | Cancelled):
        record.failure.CopyFrom(convert.failure_to_wire(job.failure))
    if isinstance(job, Done):
        record.outcome.CopyFrom(convert.outcome_to_wire(job.outcome))
    return record


def phase_to_wire(phase: Phase) -> job_pb2.JobPhase.ValueType:
    """The wire's number of a phase."""
    return job_pb2.JobPhase.Value(f"JOB_PHASE_{phase.name}")
