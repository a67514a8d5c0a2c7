"""Reports and approvals to and from their wire form (veil/wire/v1/job.proto); the only place that reads those fields.

Guarantee: what comes out of `*_from_wire` has been checked; anything else raises `WireError`.
"""

from __future__ import annotations

from veil.errors import WireError
from veil.jobs.reports import Failure, Outcome, Progress
from veil.jobs.signing import Approval
from veil.wire.v1 import job_pb2

# Version of the contract of CoordinatorService.Join, which both ends state.
JOIN_PROTOCOL_VERSION = 1

_MOST_SIGNATURE_BYTES = 256
_MOST_CERTIFICATE_CHARACTERS = 16 * 1024
_MOST_NAME_CHARACTERS = 48


def approval_to_wire(approval: Approval) -> job_pb2.Approval:
    """Wire form of an approval."""
    return job_pb2.Approval(
        party=approval.party,
        signature=approval.signature,
        certificate_pem=approval.certificate_pem.decode("ascii"),
    )


def approval_from_wire(message: job_pb2.Approval) -> Approval:
    """An approval of bounded size; whether it verifies is another question (`veil.jobs.signing.verify`)."""
    if not 1 <= len(message.party) <= _MOST_NAME_CHARACTERS:
        raise WireError(f"got a party name of {len(message.party)} characters, expected 1 to {_MOST_NAME_CHARACTERS}")
    if not 1 <= len(message.signature) <= _MOST_SIGNATURE_BYTES:
        raise WireError(f"got a signature of {len(message.signature)} bytes, expected 1 to {_MOST_SIGNATURE_BYTES}")
    pem = message.certificate_pem
    if not 1 <= len(pem) <= _MOST_CERTIFICATE_CHARACTERS or not pem.isascii():
        raise WireError(f"got a certificate of {len(pem)} characters, expected PEM of at most 16 KiB")
    return Approval(party=message.party, signature=message.signature, certificate_pem=pem.encode("ascii"))


def progress_to_wire(progress: Progress) -> job_pb2.Progress:
    """Wire form of a progress report."""
    return job_pb2.Progress(
        step=progress.step,
        done=progress.done,
        total=progress.total,
        bytes_sent=progress.bytes_sent,
        bytes_received=progress.bytes_received,
        messages_sent=progress.messages_sent,
        elapsed_ms=progress.elapsed_ms,
    )


def progress_from_wire(message: job_pb2.Progress) -> Progress:
    """A checked progress report."""
    return Progress(
        step=message.step,
        done=message.done,
        total=message.total,
        bytes_sent=message.bytes_sent,
        bytes_received=message.bytes_received,
        messages_sent=message.messages_sent,
        elapsed_ms=message.elapsed_ms,
    )


def outcome_to_wire(outcome: Outcome) -> job_pb2.Outcome:
    """Wire form of an outcome."""
    return job_pb2.Outcome(
        manifest_digest=outcome.manifest_digest, epsilon_micro=outcome.epsilon_micro, delta=outcome.delta
    )


def outcome_from_wire(message: job_pb2.Outcome) -> Outcome:
    """A checked outcome."""
    return Outcome(message.manifest_digest, message.epsilon_micro, message.delta)


def failure_to_wire(failure: Failure) -> job_pb2.Failure:
    """Wire form of a failure."""
    return job_pb2.Failure(code=failure.code, sentence=failure.sentence, culprits=failure.culprits)


def failure_from_wire(message: job_pb2.Failure) -> Failure:
    """A checked failure, its sentence cut to one line."""
    return Failure(message.code, message.sentence, tuple(message.culprits))
