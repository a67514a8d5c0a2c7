"""CoordinatorService over gRPC: checks who calls and what they say, then hands plain events to the switchboard.

Guarantee: a party speaks for itself only (its name comes from its certificate) and about jobs that name it only; a
signature counts after it was verified here; a stream that breaks a rule ends with a status that says which.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc

from coordinator import messages as m
from coordinator.convert import (
    MOST_LISTED,
    MOST_LISTED_BYTES,
    USUAL_LISTED,
    hello_from,
    job_id_from,
    phase_to_wire,
    report_job_id,
    row_to_wire,
)
from coordinator.outlet import Outlet
from coordinator.roster import Roster
from coordinator.states import Job
from coordinator.switchboard import Line, Switchboard
from veil.errors import IdentityError, InputError, StateError, VeilError, WireError
from veil.identity.names import Identity, Role
from veil.jobs import convert, signing
from veil.jobs.spec import parse
from veil.wire.channel import Service, caller
from veil.wire.v1 import coordinator_pb2 as wire
from veil.wire.v1 import coordinator_pb2_grpc, job_pb2

SERVICE_NAME = "veil.wire.v1.CoordinatorService"
HELLO_WITHIN_S = 10.0
# A stream is read at this pace; a party that says more is slowed down by gRPC's flow control.
_REPORTS_PER_S = 50.0
_REPORTS_AT_ONCE = 200.0
_MOST_COMMANDS = 4_000
# Streams of one party at once: the one that is up, and newer ones that take over.
_MOST_STREAMS = 4
_ENDED = "is gone: its stream ended"
_LOG = logging.getLogger("veil.coordinator")


@dataclass
class _Stream:
    """A Join stream while it is served: `line` is set once the party has introduced itself."""

    outlet: Outlet[wire.JoinResponse]
    line: Line | None = None
    left: bool = False


class CoordinatorServicer(coordinator_pb2_grpc.CoordinatorServiceServicer):
    """The thin shell. `consortium` and `authority_pem` are the coordinator's own."""

    def __init__(self, switchboard: Switchboard, roster: Roster, authority_pem: bytes) -> None:
        self._switchboard = switchboard
        self._roster = roster
        self._authority_pem = authority_pem
        self._lock = threading.Lock()
        self._streams: Counter[str] = Counter()

    def service(self) -> Service:
        """What `veil.wire.channel.serve` needs."""
        return Service(
            name=SERVICE_NAME,
            add=lambda server: coordinator_pb2_grpc.add_CoordinatorServiceServicer_to_server(self, server),
            roles=frozenset({Role.PARTY, Role.OPERATOR}),
        )

    # --- parties ----------------------------------------------------------------------------------------------------

    def Join(
        self, request_iterator: Iterator[wire.JoinRequest], context: grpc.ServicerContext
    ) -> Iterator[wire.JoinResponse]:
        """A party's stream: a thread of its own reads reports while this one sends commands."""
        party = self._roster.admit(self._admitted(context, Role.PARTY))
        with self._counted(party):
            yield from self._serve(party, request_iterator, context)

    def _serve(
        self, party: str, requests: Iterator[wire.JoinRequest], context: grpc.ServicerContext
    ) -> Iterator[wire.JoinResponse]:
        stream = _Stream(Outlet(_MOST_COMMANDS))
        # a stream that ends at the other side wakes the reader of the outlet
        if not context.add_callback(stream.outlet.close):
            return
        threading.Thread(
            target=self._read, args=(party, requests, stream), name=f"reports-{party}", daemon=True
        ).start()
        try:
            yield from stream.outlet.read(first_within_s=HELLO_WITHIN_S)
        finally:
            self._end(stream, _ENDED)

    @contextmanager
    def _counted(self, party: str) -> Iterator[None]:
        with self._lock:
            if self._streams[party] >= _MOST_STREAMS:
                raise StateError(f"got more than {_MOST_STREAMS} streams of {party}, expected one")
            self._streams[party] += 1
        try:
            yield
        finally:
            with self._lock:
                self._streams[party] -= 1

    def _read(self, party: str, requests: Iterator[wire.JoinRequest], stream: _Stream) -> None:
        try:
            try:
                first = next(requests, None)
                if first is None:
                    raise WireError("got an empty stream, expected Hello")
                self._introduce(party, first, stream)
                for request in _paced(requests):
                    self._report(party, request, stream)
                self._end(stream, _ENDED)
            except VeilError as error:
                _LOG.warning("%s: %s", party, error)
                stream.outlet.close(error)
                self._end(stream, f"broke the protocol: {error.message}" if isinstance(error, InputError) else _ENDED)
            except grpc.RpcError:
                self._end(stream, _ENDED)
        except VeilError as error:
            # the end of a stream could not be written; the next tick finds the party silent
            _LOG.error("%s: %s", party, error)

    def _introduce(self, party: str, request: wire.JoinRequest, stream: _Stream) -> None:
        address, software = hello_from(request)
        with self._lock:
            # a stream that has ended meanwhile must not take the place of a newer one
            if not stream.left:
                stream.line = self._switchboard.join(party, address, software, stream.outlet)

    def _end(self, stream: _Stream, sentence: str) -> None:
        with self._lock:
            stream.left = True
            line, stream.line = stream.line, None
        stream.outlet.close()
        if line is not None:
            self._switchboard.leave(line, sentence)

    def _report(self, party: str, request: wire.JoinRequest, stream: _Stream) -> None:
        line = stream.line
        if line is None:
            return
        if request.WhichOneof("report") == "heartbeat":
            self._switchboard.report(line, m.Heard(party))
            return
        job_id = report_job_id(request)
        job = self._switchboard.job(job_id)
        if job is None:
            self._switchboard.disown(line, job_id)
            return
        if party not in job.plan.parties:
            raise WireError(f"got a report of {party} on a job that does not name it")
        self._switchboard.report(line, self._event(party, request, job))

    def _event(self, party: str, request: wire.JoinRequest, job: Job) -> m.JobEvent:
        job_id = job.job_id
        match request.WhichOneof("report"):
            case "signed":
                return self._signed(party, request.signed, job)
            case "refused":
                return m.Refused(party, job_id, convert.failure_from_wire(request.refused.failure))
            case "progress":
                progress = convert.progress_from_wire(request.progress.progress)
                if progress.step not in job.plan.steps:
                    raise WireError(f"got progress in step {progress.step!r}, expected a step of the job")
                return m.Progressed(party, job_id, progress)
            case "done":
                return m.Finished(party, job_id, convert.outcome_from_wire(request.done.outcome))
            case "failed":
                return m.Broke(party, job_id, convert.failure_from_wire(request.failed.failure))
        raise WireError("got a report of an unknown kind")

    def _signed(self, party: str, signed: wire.JobSigned, job: Job) -> m.JobEvent:
        approval = convert.approval_from_wire(signed.approval)
        try:
            signing.verify(
                approval,
                consortium=self._roster.consortium,
                party=party,
                digest=job.plan.digest,
                authority_pem=self._authority_pem,
            )
        except IdentityError as error:
            sentence = f"the signature of {party} does not fit the digest of the job: {error.message}"
            return m.Disputed(party, job.job_id, sentence)
        return m.Signed(party, job.job_id, approval)

    # --- operators --------------------------------------------------------------------------------------------------

    def SubmitJob(self, request: wire.SubmitJobRequest, context: grpc.ServicerContext) -> wire.SubmitJobResponse:
        """Registers a job and proposes it."""
        operator = self._admitted(context, Role.OPERATOR)
        spec = parse(request.text)
        self._roster.check(spec)
        row = self._switchboard.submit(spec, operator.name)
        plan = row.job.plan
        return wire.SubmitJobResponse(job=job_pb2.Job(job_id=plan.job_id, text=row.text, digest=plan.digest))

    def GetJob(self, request: wire.GetJobRequest, context: grpc.ServicerContext) -> wire.GetJobResponse:
        """One job."""
        self._admitted(context, Role.OPERATOR)
        return wire.GetJobResponse(record=row_to_wire(self._switchboard.find(job_id_from(request.job_id))))

    def ListJobs(self, request: wire.ListJobsRequest, context: grpc.ServicerContext) -> wire.ListJobsResponse:
        """The newest jobs, as many as fit one message."""
        self._admitted(context, Role.OPERATOR)
        if request.limit > MOST_LISTED:
            raise WireError(f"got limit {request.limit}, expected 0 to {MOST_LISTED}")
        response = wire.ListJobsResponse()
        size_bytes = 0
        for row in self._switchboard.newest(request.limit or USUAL_LISTED):
            record = row_to_wire(row)
            size_bytes += record.ByteSize() + 8
            if size_bytes > MOST_LISTED_BYTES:
                break
            response.records.append(record)
        return response

    def WatchJob(self, request: wire.WatchJobRequest, context: grpc.ServicerContext) -> Iterator[wire.WatchJobResponse]:
        """History, then live, until the job ends."""
        self._admitted(context, Role.OPERATOR)
        outlet = self._switchboard.watch(job_id_from(request.job_id))
        try:
            if context.add_callback(outlet.close):
                yield from outlet.read()
        finally:
            outlet.close()

    def CancelJob(self, request: wire.CancelJobRequest, context: grpc.ServicerContext) -> wire.CancelJobResponse:
        """Stops a job."""
        operator = self._admitted(context, Role.OPERATOR)
        phase = self._switchboard.cancel(job_id_from(request.job_id), operator.name)
        return wire.CancelJobResponse(phase=phase_to_wire(phase))

    def _admitted(self, context: grpc.ServicerContext, role: Role) -> Identity:
        identity = caller(context)
        if identity.role is not role:
            raise IdentityError(f"got a call of {identity}, expected role {role}")
        return identity


def _paced(requests: Iterator[wire.JoinRequest]) -> Iterator[wire.JoinRequest]:
    """The same messages, at most `_REPORTS_PER_S` on average after the first `_REPORTS_AT_ONCE`."""
    allowance = _REPORTS_AT_ONCE
    last = time.monotonic()
    for request in requests:
        now = time.monotonic()
        allowance = min(_REPORTS_AT_ONCE, allowance + (now - last) * _REPORTS_PER_S)
        last = now
        if allowance < 1.0:
            time.sleep((1.0 - allowance) / _REPORTS_PER_S)
        allowance -= 1.0
        yield request


def check_coordinator(identity: Identity) -> None:
    """Raises `StateError` unless the credentials are a coordinator's."""
    if identity.role is not Role.COORDINATOR:
        raise StateError(f"got credentials of {identity}, expected ones of role coordinator")
