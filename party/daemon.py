"""The party's daemon: one port, one stream to the coordinator, one worker process for the job at hand.

Guarantee: rows are read by `party.rows` and by workers only; the daemon decides (reviews, signs, pays at the ledger)
and relays, and never computes with rows. A worker that crashes ends its job, not the daemon.
"""

from __future__ import annotations

import logging
import re
import threading
from dataclasses import dataclass, replace
from pathlib import Path

from party.config import PartyConfig
from party.job.review import Reviewed, review
from party.job.row_answers import RowAnswers, looks_at_rows
from party.job.run import JobRun
from party.link import CoordinatorLink
from party.rows import store
from party.rows.prediction_rows import HeldPredictions
from party.state_folder import prepare_state
from veil.errors import DataError, PolicyError, StateError, VeilError, WireError
from veil.files import read_bounded, write_atomic
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.jobs import convert, signing
from veil.jobs.reports import Failure, Progress
from veil.mpc.grpc_mesh import MeshServicer
from veil.privacy.ledger import Ledger
from veil.recsys.catalogue import Catalogue
from veil.wire.status import public_sentence
from veil.wire.v1 import coordinator_pb2, job_pb2

_LOG = logging.getLogger("veil.party")
_MOST_PENDING = 100
_JOB_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Pending:
    """A job that waits for a person."""

    job: job_pb2.Job
    reviewed: Reviewed


class Daemon:
    """State of one party between jobs. The gRPC shell (`party.service`) and the coordinator's link call into it."""

    def __init__(self, config: PartyConfig, credentials: Credentials) -> None:
        if credentials.identity.role is not Role.PARTY:
            raise StateError(f"got a certificate of {credentials.identity}, expected one of role party")
        self.config = config
        self.credentials = credentials
        self.name = credentials.identity.name
        prepare_state(config.state)
        self.catalogue = None if config.catalogue is None else Catalogue.load(config.catalogue)
        self.prepared = store.prepare(config, self.catalogue)
        self.ledger = Ledger(
            config.state / "ledger.sqlite", epsilon_limit=config.budget.epsilon, delta=config.budget.delta
        )
        self.predictions = HeldPredictions.of(config, credentials.authority_pem)
        self._row_answers = RowAnswers(config.state, config.approval.row_answers_a_day)
        self.mesh = MeshServicer()
        self._lock = threading.Lock()
        self._pending: dict[str, Pending] = {}
        self._signed: dict[str, Reviewed] = {}
        self._runs: dict[str, JobRun] = {}
        self.link = CoordinatorLink(
            config.coordinator.address,
            Identity(credentials.identity.consortium, Role.COORDINATOR, config.coordinator.name),
            credentials,
            config.advertise,
            self._handle,
        )

    # --- decisions ---------------------------------------------------------------------------------------------

    def pending(self) -> list[job_pb2.Job]:
        """Jobs that wait for a person, oldest first."""
        with self._lock:
            return [entry.job for entry in self._pending.values()]

    def running(self) -> list[str]:
        """Identifiers of the jobs that run now."""
        with self._lock:
            return [job_id for job_id, run in self._runs.items() if run.active]

    def approve(self, job_id: str, digest: bytes) -> None:
        """Signs a pending job. Raises `StateError` when it is unknown or its digest is another."""
        with self._lock:
            entry = self._pending.get(job_id)
            if entry is None:
                raise StateError(f"got job {job_id[:32]!r}, expected one that waits for a decision")
            if entry.reviewed.digest != digest:
                raise StateError("got another digest than the job's", hint="look at the job again before you approve")
            del self._pending[job_id]
        try:
            reviewed = self._review(entry.job)  # the budget may have been spent since the job was proposed
        except VeilError as error:
            self._report_refusal(job_id, error)
            raise
        self._sign(job_id, reviewed)

    def refuse(self, job_id: str, reason: str) -> None:
        """Declines a pending job."""
        with self._lock:
            if self._pending.pop(job_id, None) is None:
                raise StateError(f"got job {job_id[:32]!r}, expected one that waits for a decision")
        self._report_refusal(job_id, PolicyError(f"{self.name} declined: {reason[:200]}"))

    # --- commands of the coordinator ---------------------------------------------------------------------------

    def _handle(self, response: coordinator_pb2.JoinResponse) -> None:
        command = response.WhichOneof("command")
        try:
            if command == "propose":
                self._consider(response.propose.job)
            elif command == "start":
                self._start(response.start)
            elif command == "stop":
                self._stop(response.stop.job_id, convert.failure_from_wire(response.stop.failure))
            elif command == "confirmed":
                _LOG.info("job %s: every party has ended it alike", response.confirmed.job_id[:8])
        except VeilError as error:
            _LOG.warning("command %s: %s", command, error)
        except Exception:  # noqa: BLE001 - whatever one command does, the party must hear the next one
            _LOG.exception("command %s broke", command)

    def _review(self, job: job_pb2.Job, *, consented: bool = True) -> Reviewed:
        return review(
            job.text,
            job.digest,
            me=self.credentials.identity,
            dealer=self.config.dealer.name,
            catalogue=self.catalogue,
            ledger=self.ledger,
            rules=self.config.approval,
            modules=self.config.modules,
            users=self.config.users,
            columns=self.prepared.columns,
            identifiers=self.prepared.identifiers,
            predictions=self.predictions,
            consented=consented,
        )

    def _review_or_refuse(self, job: job_pb2.Job, *, consented: bool) -> Reviewed | None:
        try:
            return self._review(job, consented=consented)
        except VeilError as error:
            _LOG.warning("job %s refused: %s", job.job_id[:8], error)
            self._report_refusal(job.job_id, error)
            return None

    def _consider(self, job: job_pb2.Job) -> None:
        reviewed = self._review_or_refuse(job, consented=False)
        if reviewed is None:
            return
        # The coordinator proposes again whenever this party comes back; a person is asked once for a digest.
        approved = self._approved_before(job.job_id, reviewed.digest)
        if approved or self._by_rules(reviewed):
            again = approved or looks_at_rows(reviewed.spec)
            final = self._review_or_refuse(job, consented=True) if again else reviewed
            if final is not None:
                self._sign(job.job_id, final)
            return
        with self._lock:
            if len(self._pending) >= _MOST_PENDING:
                self._pending.pop(next(iter(self._pending)))
            self._pending[job.job_id] = Pending(job, reviewed)
        _LOG.info("job %s waits for a decision: veil party approve", job.job_id[:8])

    def _by_rules(self, reviewed: Reviewed) -> bool:
        """Whether nobody is asked. Whether rows fit a job tells something of them: answered so many times a day."""
        if self.config.approval.mode != "policy":
            return False
        if not looks_at_rows(reviewed.spec) or self._row_answers.admit(reviewed.digest):
            return True
        _LOG.warning("as many jobs on columns as [approval] row_answers_a_day allows were answered: a person decides")
        return False

    def _sign(self, job_id: str, reviewed: Reviewed) -> None:
        approval = signing.approve(self.credentials, reviewed.digest)
        self._note(job_id).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomic(self._note(job_id), reviewed.digest.hex().encode(), mode=0o600)
        with self._lock:
            self._signed.pop(job_id, None)
            if len(self._signed) >= _MOST_PENDING:
                del self._signed[next(iter(self._signed))]
            self._signed[job_id] = reviewed
        _LOG.info("job %s signed: epsilon %.4f, digest %s", job_id[:8], reviewed.epsilon, reviewed.digest.hex()[:16])
        self.link.report(
            coordinator_pb2.JoinRequest(
                signed=coordinator_pb2.JobSigned(job_id=job_id, approval=convert.approval_to_wire(approval))
            )
        )

    def _start(self, start: coordinator_pb2.StartJob) -> None:
        job_id = start.job_id
        with self._lock:
            reviewed = self._signed.pop(job_id, None)
            running = self._runs.get(job_id)
        if running is not None and running.active:
            raise StateError(f"got a start of job {job_id[:8]!r}, which runs, expected each once")
        # Consent is for one start: a job that is shown again later needs it again.
        self._note(job_id).unlink(missing_ok=True)
        try:
            if reviewed is None:
                raise StateError(f"got a start of job {job_id[:8]}, which {self.name} has not signed")
            with self._lock:
                predecessors = [run for run in self._runs.values() if run.active]
            run = JobRun(
                job_id=job_id,
                reviewed=reviewed,
                approvals=[convert.approval_from_wire(approval) for approval in start.approvals],
                addresses={peer.party: peer.address for peer in start.peers},
                config=self.config,
                credentials=self.credentials,
                rows=self.prepared.path,
                columns=None if self.prepared.columns is None else self.prepared.columns.path,
                predictions=None if self.predictions is None else self.predictions.record,
                ledger=self.ledger,
                mesh=self.mesh,
                predecessors=predecessors,
                on_progress=lambda progress: self._report_progress(job_id, progress),
                on_done=lambda outcome: self.link.report(
                    coordinator_pb2.JoinRequest(
                        done=coordinator_pb2.JobDone(job_id=job_id, outcome=convert.outcome_to_wire(outcome))
                    )
                ),
                on_failed=lambda error: self._report_failure(job_id, error),
            )
        except VeilError as error:
            self._report_failure(job_id, error)
            return
        with self._lock:
            self._runs = {key: value for key, value in self._runs.items() if value.active}
            self._runs[job_id] = run
        run.start()

    def _stop(self, job_id: str, failure: Failure) -> None:
        with self._lock:
            self._pending.pop(job_id, None)
            self._signed.pop(job_id, None)
            run = self._runs.get(job_id)
        if run is not None:
            run.stop(failure.error())
        self._note(job_id).unlink(missing_ok=True)

    # --- what has been approved, kept over a restart -----------------------------------------------------------

    def _note(self, job_id: str) -> Path:
        if not _JOB_ID.fullmatch(job_id):
            raise WireError(f"got job id {job_id[:40]!r}, expected 32 hexadecimal digits")
        return self.config.state / "approved" / job_id

    def _approved_before(self, job_id: str, digest: bytes) -> bool:
        note = self._note(job_id)
        return note.exists() and read_bounded(note, 128) == digest.hex().encode()

    # --- reports -----------------------------------------------------------------------------------------------

    def _failure(self, error: VeilError) -> Failure:
        """What the coordinator may read of an error: nothing of rows, not even their positions, and no folders."""
        if isinstance(error, DataError):
            error = DataError(f"the rows of {self.name} do not fit the job", hint=f"see the log of {self.name}")
        failure = Failure.of(error, otherwise=(self.name,))
        return replace(failure, sentence=public_sentence(failure.sentence))

    def _report_refusal(self, job_id: str, error: VeilError) -> None:
        failure = self._failure(error)
        self.link.report(
            coordinator_pb2.JoinRequest(
                refused=coordinator_pb2.JobRefused(job_id=job_id, failure=convert.failure_to_wire(failure))
            )
        )

    def _report_progress(self, job_id: str, progress: Progress) -> None:
        self.link.report(
            coordinator_pb2.JoinRequest(
                progress=coordinator_pb2.JobProgress(job_id=job_id, progress=convert.progress_to_wire(progress))
            )
        )

    def _report_failure(self, job_id: str, error: VeilError) -> None:
        _LOG.error("job %s failed: %s", job_id[:8], error)
        failure = self._failure(error)
        self.link.report(
            coordinator_pb2.JoinRequest(
                failed=coordinator_pb2.JobFailed(job_id=job_id, failure=convert.failure_to_wire(failure))
            )
        )

    def close(self) -> None:
        """Stops the link and whatever runs."""
        with self._lock:
            runs = [run for run in self._runs.values() if run.active]
        for run in runs:
            run.stop(StateError(f"{self.name} is shutting down"))
        self.link.stop()
