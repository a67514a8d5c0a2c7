"""What an operator does with jobs, as functions: `cli.job` prints what they return, the demo calls them directly.

Guarantee: every failure is a `VeilError`; a job that ends badly raises the error that ended it, culprits included.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from veil.errors import StateError
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.jobs import convert, request
from veil.jobs.reports import Failure
from veil.jobs.spec import JobSpec, digest, parse
from veil.wire.channel import open_channel
from veil.wire.status import translated
from veil.wire.v1 import coordinator_pb2 as wire
from veil.wire.v1 import job_pb2
from veil.wire.v1.coordinator_pb2_grpc import CoordinatorServiceStub

_HINTS = {
    "PEER_LOST": "look at that party's log; when it is back, submit the job again",
    "PEER": "look at the logs of the parties at fault, then submit the job again",
    "PROTOCOL": "check that all parties run the same version of Veil",
    "BUDGET": "lower epsilon in the job, or ask that party what its ledger still allows (veil privacy)",
    "POLICY": "change the job to what that party's rules allow, or ask its operator",
    "SIGNATURE": "that party saw another job text; check versions, and who could have altered it on the way",
    "CONFIG": "compare the job with that party's config: catalogue, dealer and versions must be the same everywhere",
    "ARTIFACT": "the parties at odds must discard this job's model; compare their versions",
    "STATE": "see `veil job show` for its history",
}


@dataclass(frozen=True)
class Desk:
    """Where jobs are handed in: the coordinator's address, its name, and the operator's credentials."""

    address: str
    credentials: Credentials
    coordinator: str = "main"

    @property
    def identity(self) -> Identity:
        """Whom the address must prove to be."""
        return Identity(self.credentials.identity.consortium, Role.COORDINATOR, self.coordinator)

    @contextmanager
    def stub(self) -> Iterator[CoordinatorServiceStub]:
        """Calls within the block raise `VeilError` instead of gRPC's errors."""
        with translated(str(self.identity)), open_channel(self.address, self.credentials, self.identity) as channel:
            yield CoordinatorServiceStub(channel)


def plan_job(file: Path, consortium: str) -> JobSpec:
    """The job that a job.toml stands for, planned with the catalogue or the columns that it points to."""
    wish = request.load(file)
    # Here and not above: the catalogue and the planner bring numerical libraries along.
    from veil.recsys.catalogue import Catalogue
    from veil.trainers.registry import check_job, plan

    catalogue = facts = None
    if wish.catalogue is not None:
        catalogue = Catalogue.load(wish.catalogue.path)
        facts = request.CatalogueFacts(
            catalogue.digest,
            catalogue.items,
            int(catalogue.features.shape[1]),
            categories=len({name for names in catalogue.categories for name in names}),
        )
    spec = request.resolve(wish, consortium=consortium, catalogue=facts, planner=plan)
    # What every party would refuse is refused here, with the same words.
    module, source = wish.trainer.module, wish.trainer.module_file
    check_job(spec, catalogue, modules={module: source} if module and source else {})
    return spec


def submit_job(desk: Desk, spec: JobSpec) -> job_pb2.Job:
    """Registers a job; checks that the coordinator gives back the same text and digest."""
    text = spec.text()
    with desk.stub() as stub:
        job = stub.SubmitJob(wire.SubmitJobRequest(text=text)).job
    if job.text != text or job.digest != digest(text):
        raise StateError("got another text back than was submitted, expected the same", hint="do not trust it")
    return job


def watch_job(desk: Desk, job_id: str) -> Iterator[wire.WatchJobResponse]:
    """Events of a job from its first until it ends. Raises the error that ended it, when it ended badly."""
    ending: Failure | None = None
    with desk.stub() as stub:
        call = stub.WatchJob(wire.WatchJobRequest(job_id=job_id))
        try:
            for event in call:
                if event.HasField("failure") and event.phase in (job_pb2.JOB_PHASE_FAILED, job_pb2.JOB_PHASE_CANCELLED):
                    ending = convert.failure_from_wire(event.failure)
                yield event
        finally:
            call.cancel()  # type: ignore[no-untyped-call]
    if ending is not None:
        raise ending.error(hint=_hint(ending))


def get_job(desk: Desk, job_id: str) -> wire.JobRecord:
    """One job; `job_id` may be its first characters when no other recent job begins with them."""
    full = job_id if len(job_id) == 32 else _complete(desk, job_id)
    with desk.stub() as stub:
        return stub.GetJob(wire.GetJobRequest(job_id=full)).record


def list_jobs(desk: Desk, limit: int = 50) -> list[wire.JobRecord]:
    """The newest jobs first, at most `limit` (1 to 500)."""
    with desk.stub() as stub:
        return list(stub.ListJobs(wire.ListJobsRequest(limit=limit)).records)


def cancel_job(desk: Desk, job_id: str) -> str:
    """Stops a job; returns the name of its phase afterwards."""
    full = job_id if len(job_id) == 32 else _complete(desk, job_id)
    with desk.stub() as stub:
        return phase_name(stub.CancelJob(wire.CancelJobRequest(job_id=full)).phase)


def phase_name(phase: job_pb2.JobPhase.ValueType) -> str:
    """ "running" for JOB_PHASE_RUNNING."""
    return job_pb2.JobPhase.Name(phase).removeprefix("JOB_PHASE_").lower()


def spec_of(record: wire.JobRecord) -> JobSpec:
    """The job's text, parsed and checked."""
    return parse(record.job.text)


def _complete(desk: Desk, prefix: str) -> str:
    found = [record.job.job_id for record in list_jobs(desk, 500) if prefix and record.job.job_id.startswith(prefix)]
    if len(found) != 1:
        raise StateError(
            f"got job {prefix[:32]!r}, which fits {len(found)} recent jobs, expected one", hint="see `veil job list`"
        )
    return found[0]


def _hint(failure: Failure) -> str:
    return _HINTS.get(failure.code, "see the history above; `veil job show` has it all")
