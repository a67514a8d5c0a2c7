"""One job at one party, seen from the daemon: signatures, dealer, mesh, worker process, ledger, outcome.

Steps are numbered as in docs/protocol.md, "A job at a party". Guarantee: a release is paid for at the ledger before the
worker is told that it may open; whatever goes wrong, the worker is ended, the streams are closed and one error is
reported that names who is at fault as far as this party can tell.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from party.config import PartyConfig
from party.job import report
from party.job.carriage import Carriage
from party.job.dealing import dealer_of
from party.job.launch import end, launch, told
from party.job.permits import Permits
from party.job.progress import StepReports
from party.job.review import Reviewed
from party.job.signatures import verify_approvals
from party.rows.columns import scratch
from party.rows.prediction_rows import PredictionRecord, count
from party.worker.publish import sign
from veil.errors import PeerError, StateError, VeilError, WireError
from veil.identity.credentials import Credentials
from veil.jobs.reports import Outcome, Progress
from veil.jobs.signing import Approval
from veil.mpc.dealer_client import SEED_BYTES, DealerClient
from veil.mpc.faults import from_document
from veil.mpc.grpc_mesh import GrpcMesh, MeshServicer
from veil.mpc.relay_divided import NoPeers
from veil.mpc.relay_hub import Correct, RelayHub
from veil.mpc.transport import ListeningTransport, Traffic
from veil.privacy.accountant import to_micro
from veil.privacy.ledger import Ledger

_LOG = logging.getLogger("veil.party.run")
_CONNECT_TIMEOUT_S = 60.0


class JobRun:
    """Runs one signed job in a thread; `stop` ends it from outside."""

    def __init__(
        self,
        *,
        job_id: str,
        reviewed: Reviewed,
        approvals: Sequence[Approval],
        addresses: dict[str, str],
        config: PartyConfig,
        credentials: Credentials,
        rows: Path,
        ledger: Ledger,
        mesh: MeshServicer,
        predecessors: Sequence[JobRun],
        on_progress: Callable[[Progress], None],
        on_done: Callable[[Outcome], None],
        on_failed: Callable[[VeilError], None],
        columns: Path | None = None,
        predictions: PredictionRecord | None = None,
    ) -> None:
        self._job_id = job_id
        self._spec = reviewed.spec
        self._digest = reviewed.digest
        self._epsilon = reviewed.epsilon
        self._approvals = list(approvals)
        self._addresses = addresses
        self._config = config
        self._credentials = credentials
        self._rows = rows
        self._columns = columns
        self._ledger = ledger
        self._predictions = predictions
        self._servicer = mesh
        self._predecessors = predecessors
        self._on_progress, self._on_done, self._on_failed = on_progress, on_done, on_failed
        self._name = credentials.identity.name
        self._lock = threading.Lock()
        self._stopped: VeilError | None = None
        self._failure: VeilError | None = None
        self._outcome: Outcome | None = None
        self._permits = Permits(ledger, job_id, self._spec, self._digest)
        self._worker: subprocess.Popen[bytes] | None = None
        self._mesh: GrpcMesh | None = None
        self._carriage: Carriage | None = None
        self._dealer: DealerClient | None = None
        self._seed: bytes = b""
        self._steps = StepReports(self._spec)
        self._launched_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"job-{job_id[:8]}", daemon=True)

    @property
    def active(self) -> bool:
        """Whether the job still runs here."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Starts the job's thread."""
        self._thread.start()

    def stop(self, reason: VeilError) -> None:
        """Ends the job here; nothing is reported, since whoever stops it knows."""
        with self._lock:
            self._stopped = self._stopped or reason
            worker, mesh, carriage = self._worker, self._mesh, self._carriage
        _LOG.warning("job %s stopped: %s", self._job_id[:8], reason)
        if worker is not None:
            worker.kill()
        if carriage is not None:
            carriage.kill()
        if mesh is not None:
            mesh.close()

    def _run(self) -> None:
        spec = self._spec
        try:
            verify_approvals(self._approvals, spec, self._digest, self._credentials.authority_pem, here=self._name)
            self._wait_for_predecessors()
            self._check_first_run()
            self._take_part()
        except VeilError as error:
            self._failure = self._failure or error
        except Exception:  # noqa: BLE001 - a bug here must end the job with a report, not leave the others waiting
            _LOG.exception("job %s broke", self._job_id[:8])
            self._failure = self._failure or StateError(f"{self._name} failed inside", hint="its log says why")
        finally:
            self._clean_up()
        try:
            self._report()
        finally:
            # Last: the dealer then forgets the job, which the party of rank 0 could take for a failure of its own.
            if self._dealer is not None:
                self._dealer.close()

    def _report(self) -> None:
        if self._stopped is not None:
            return
        if self._outcome is not None and self._failure is None:
            self._on_done(self._outcome)
        else:
            self._on_failed(self._failure or self._died())

    def _wait_for_predecessors(self) -> None:
        """One job at a time: the job before may have reported its end and still be closing its streams."""
        until = time.monotonic() + _CONNECT_TIMEOUT_S / 2
        for run in self._predecessors:
            run._thread.join(max(0.0, until - time.monotonic()))
            if run.active:
                raise StateError(f"{self._name} runs another job now, expected one at a time")
        self._predecessors = ()

    def _check_first_run(self) -> None:
        # Signed before the other run paid for anything, so the review could not know: the coordinator showed one
        # text as two jobs. Consent is for one run.
        if any(entry.digest == self._digest for entry in self._ledger.entries()):
            raise StateError(
                "got a job that has run here under another name, expected a new one", hint="submit it anew"
            )
        count(self._predictions, self._spec, self._digest, self._name)

    def _take_part(self) -> None:
        spec = self._spec
        missing = [party for party in spec.parties if party not in self._addresses]
        if missing:
            raise WireError(f"got no address of {', '.join(missing)}, expected one of every party")
        correct = self._open_dealer()  # (1)
        mesh = GrpcMesh(  # (2)
            self._job_id,
            self._digest,
            self._name,
            {party: self._addresses[party] for party in spec.parties},
            self._credentials,
            self._servicer,
            plane="" if self._config.mesh.plane == "grpc" else self._config.mesh.plane,
        )
        with self._lock:
            self._mesh = mesh
            if self._stopped is not None:
                raise self._stopped
        mesh.connect(_CONNECT_TIMEOUT_S)
        transport = self._carried(mesh)
        own_end, worker_end = socket.socketpair()
        with own_end:
            with worker_end:
                self._launch(worker_end)  # (3)
            hub = RelayHub(own_end, transport, self._answer, correct)
            hub.start()
            hub.wait()

    def _carried(self, mesh: GrpcMesh) -> ListeningTransport:
        """What the worker's messages pass through here: the mesh, or nothing where a carrier has them."""
        host = self._config.mesh.gloo_host
        if host is None:
            return mesh.transport()
        with self._lock:
            if self._stopped is not None:
                raise self._stopped
            carriage = self._carriage = Carriage(mesh.transport(), self._spec.parties, host)
        carriage.wait_ready()
        return NoPeers()

    def _open_dealer(self) -> Correct | None:
        """The seed, and at rank 0 how to ask for corrections. A job that needs no dealer does not call one."""
        spec = self._spec
        self._dealer = dealer_of(spec, self._job_id, self._digest, self._config.dealer.address, self._credentials)
        if self._dealer is None:
            self._seed = secrets.token_bytes(SEED_BYTES)
            return None
        self._seed = self._dealer.open()
        return self._dealer.correct if spec.rank(self._name) == 0 else None

    def _launch(self, worker_end: socket.socket) -> None:
        with self._lock:
            if self._stopped is not None:
                raise self._stopped
            self._launched_at = time.monotonic()
            messages = None if self._carriage is None else self._carriage.messages
            rank, parties = self._spec.rank(self._name), len(self._spec.parties)
            self._worker = launch(worker_end, rank=rank, parties=parties, messages=messages)
            if messages is not None:
                messages.close()  # so that the carrier sees the worker's end

    def _clean_up(self) -> None:
        if self._worker is not None:
            end(self._worker)
            # The worker removes it, unless it was killed: correlations must not lie there until the next start.
            shutil.rmtree(scratch(self._rows.parent, self._digest), ignore_errors=True)
        if self._carriage is not None:
            self._carriage.close()
        if self._mesh is not None:
            self._mesh.close()
        self._seed = b""

    def _died(self) -> VeilError:
        status = self._worker.returncode if self._worker is not None else None
        return PeerError(
            f"the worker of {self._name} ended with status {status} before it reported",
            culprits=(self._name,),
            hint=f"see the log of {self._name}",
        )

    # --- what the worker asks ----------------------------------------------------------------------------------

    def _answer(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        if kind == "init":
            return self._initial()
        if kind == "permit":
            self._permits.permit([str(name) for name in body.get("releases") or ()])
            return {}
        if kind == "progress":
            if self._carriage is not None:
                self._carriage.count(body.get("passed"))
            self._progress(str(body.get("step")), int(body.get("done", 0)))
            return {}
        if kind == "sign":
            return sign(str(body.get("manifest")), self._spec, self._digest, self._credentials)
        if kind == "measured":
            report.keep(self._config.state, self._job_id, self._name, self._spec.text(), body)
            return {}
        if kind == "published":
            manifest_digest = bytes.fromhex(str(body.get("manifest_digest")))
            delta = "0" if self._spec.privacy_ is None else repr(self._spec.privacy_.delta)
            self._outcome = Outcome(manifest_digest, to_micro(self._epsilon), delta)
            return {}
        if kind == "failed":
            self._failure = self._failure or from_document(body)
            return {}
        raise WireError(f"got control request {kind[:32]!r}, expected one that this daemon knows")

    def _initial(self) -> dict[str, Any]:
        seed, self._seed = self._seed, b""
        if not seed:
            raise StateError("got a second start of the worker, expected one: a seed serves once")
        first = told(
            self._config,
            self._credentials,
            self._spec,
            job_id=self._job_id,
            seed=seed,
            rows=self._rows,
            columns=self._columns,
        )
        return {**first, "running_s": time.monotonic() - self._launched_at}

    def _progress(self, step: str, done: int) -> None:
        total = Traffic() if self._mesh is None else self._mesh.meter.total()
        if self._carriage is not None:
            total = self._carriage.passed
        corrected = 0 if self._dealer is None else self._dealer.bytes_received
        self._on_progress(self._steps.report(step, done, total, corrected))
