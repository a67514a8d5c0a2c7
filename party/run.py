"""One job at one party, seen from the daemon: signatures, dealer, mesh, worker process, ledger, outcome.

Steps are numbered as in docs/protocol.md, "A job at a party". Guarantee: a release is paid for at the ledger before the
worker is told that it may open; whatever goes wrong, the worker is ended, the streams are closed and one error is
reported that names who is at fault as far as this party can tell.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from party import report
from party.columns import scratch
from party.config import PartyConfig
from party.publish import check_manifest
from party.review import Reviewed
from veil.errors import PeerError, PolicyError, RevealError, StateError, VeilError, WireError
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.jobs import signing
from veil.jobs.columns import ColumnsTrainer
from veil.jobs.reports import ALIGN, Outcome, Progress, steps
from veil.jobs.signing import Approval
from veil.mpc.dealer_client import SEED_BYTES, DealerClient
from veil.mpc.faults import from_document
from veil.mpc.grpc_mesh import GrpcMesh, MeshServicer
from veil.mpc.relay_hub import Correct, RelayHub
from veil.mpc.transport import Traffic
from veil.privacy.accountant import to_micro
from veil.privacy.ledger import Ledger
from veil.recsys.manifest import sign_manifest

_LOG = logging.getLogger("veil.party.run")
_CONNECT_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 10.0
# What a worker inherits of the environment: nothing that names keys, addresses or users.
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VEIL_LOG")


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
        self._servicer = mesh
        self._predecessors = predecessors
        self._on_progress, self._on_done, self._on_failed = on_progress, on_done, on_failed
        self._name = credentials.identity.name
        self._lock = threading.Lock()
        self._stopped: VeilError | None = None
        self._failure: VeilError | None = None
        self._outcome: Outcome | None = None
        self._permitted: set[str] = set()
        self._worker: subprocess.Popen[bytes] | None = None
        self._mesh: GrpcMesh | None = None
        self._dealer: DealerClient | None = None
        self._seed: bytes = b""
        # The traffic of an alignment shows how many users are common, which parties learn and nobody else: what passed
        # until its end is told to nobody (None: it has not ended). All else follows from shapes.
        self._untold: Traffic | None = None if isinstance(self._spec.trainer, ColumnsTrainer) else Traffic()
        self._started_at = time.monotonic()
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
            worker, mesh = self._worker, self._mesh
        _LOG.warning("job %s stopped: %s", self._job_id[:8], reason)
        if worker is not None:
            worker.kill()
        if mesh is not None:
            mesh.close()

    def _run(self) -> None:
        try:
            self._verify_approvals()
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
        # Signed before the other run paid for anything, so `party.review` could not know: the coordinator showed one
        # text as two jobs. Consent is for one run.
        if any(entry.digest == self._digest for entry in self._ledger.entries()):
            raise StateError(
                "got a job that has run here under another name, expected a new one", hint="submit it anew"
            )

    def _verify_approvals(self) -> None:
        by_party = {approval.party: approval for approval in self._approvals}
        for party in self._spec.parties:
            approval = by_party.get(party)
            if approval is None:
                raise PolicyError(f"got no signature of {party}, expected one of every party")
            try:
                signing.verify(
                    approval,
                    consortium=self._spec.consortium,
                    party=party,
                    digest=self._digest,
                    authority_pem=self._credentials.authority_pem,
                )
            except VeilError as error:
                raise PeerError(
                    f"the signature of {party} does not fit the job that {self._name} has signed: {error.message}",
                    culprits=(party,),
                ) from error

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
        )
        with self._lock:
            self._mesh = mesh
            if self._stopped is not None:
                raise self._stopped
        mesh.connect(_CONNECT_TIMEOUT_S)
        own_end, worker_end = socket.socketpair()
        hub = RelayHub(own_end, mesh.transport(), self._answer, correct)
        with worker_end:
            self._launch(worker_end)  # (3)
        hub.start()
        hub.wait()

    def _open_dealer(self) -> Correct | None:
        """The seed, and at rank 0 how to ask for corrections. A job that needs no dealer does not call one."""
        spec = self._spec
        if isinstance(spec.trainer, ColumnsTrainer) and spec.trainer.triples == "he":
            self._seed = secrets.token_bytes(SEED_BYTES)
            return None
        dealer = DealerClient(
            self._config.dealer.address,
            self._credentials,
            Identity(spec.consortium, Role.DEALER, spec.dealer),
            job_id=self._job_id,
            job_text=spec.text(),
            job_digest=self._digest,
        )
        self._dealer = dealer
        self._seed = dealer.open()
        return dealer.correct if spec.rank(self._name) == 0 else None

    def _launch(self, worker_end: socket.socket) -> None:
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        with self._lock:
            if self._stopped is not None:
                raise self._stopped
            rank, parties = self._spec.rank(self._name), len(self._spec.parties)
            descriptor = worker_end.fileno()
            # -P: whatever lies in the daemon's working directory is not imported in a process that holds rows.
            environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
            command = [sys.executable, "-P", "-m", "party.worker", f"--fd={descriptor}"]
            self._worker = subprocess.Popen(
                [*command, f"--rank={rank}", f"--parties={parties}"],
                pass_fds=[descriptor],
                stdin=subprocess.DEVNULL,
                env=environment,
            )

    def _clean_up(self) -> None:
        if self._worker is not None:
            try:
                self._worker.wait(_END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._worker.kill()
                self._worker.wait()
            if self._columns is not None:
                # The worker removes it, unless it was killed: correlations must not lie there until the next start.
                shutil.rmtree(scratch(self._columns.parent, self._digest), ignore_errors=True)
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
            return self._permit(str(body.get("release")))
        if kind == "progress":
            self._progress(str(body.get("step")), int(body.get("done", 0)))
            return {}
        if kind == "sign":
            return self._sign(str(body.get("manifest")))
        if kind == "measured":
            report.write(self._config.state, self._job_id, self._name, self._spec.text(), body)
            return {}
        if kind == "published":
            manifest_digest = bytes.fromhex(str(body.get("manifest_digest")))
            self._outcome = Outcome(manifest_digest, to_micro(self._epsilon), repr(self._spec.privacy.delta))
            return {}
        if kind == "failed":
            self._failure = self._failure or from_document(body)
            return {}
        raise WireError(f"got control request {kind[:32]!r}, expected one that this daemon knows")

    def _initial(self) -> dict[str, Any]:
        seed, self._seed = self._seed, b""
        if not seed:
            raise StateError("got a second start of the worker, expected one: a seed serves once")
        return {
            "job_text": self._spec.text(),
            "party": self._name,
            "seed": seed.hex(),
            "rows": str(self._rows),
            "columns": str(self._columns or ""),
            "catalogue": str(self._config.catalogue or ""),
            "model": str(self._config.state / "models" / self._job_id),
            "authority_pem": self._credentials.authority_pem.decode("ascii"),
            "timeout_s": self._config.peer_timeout_s,
            "modules": {name: str(path) for name, path in self._config.modules.items()},
        }

    def _permit(self, name: str) -> dict[str, Any]:
        # "A round", step (4): listed, first time, within budget, written down; then, and only then, yes.
        if name in self._permitted:
            raise RevealError(f"got release {name!r} a second time, expected each once")
        release = self._spec.release(name)
        self._ledger.record(self._job_id, self._digest, release)
        self._permitted.add(name)
        _LOG.info(
            "job %s: %s paid for, noise multiplier %.3f", self._job_id[:8], name, release.sigma / release.sensitivity
        )
        return {}

    def _progress(self, step: str, done: int) -> None:
        total = Traffic() if self._mesh is None else self._mesh.meter.total()
        if step == ALIGN:
            self._untold = total
        untold = self._untold or total
        corrected = 0 if self._dealer is None else self._dealer.bytes_received
        self._on_progress(
            Progress(
                step=step,
                done=done,
                total=len(steps(self._spec)),
                bytes_sent=total.bytes_sent - untold.bytes_sent,
                bytes_received=total.bytes_received - untold.bytes_received + corrected,
                messages_sent=total.messages_sent - untold.messages_sent,
                elapsed_ms=int(1000 * (time.monotonic() - self._started_at)),
            )
        )

    def _sign(self, manifest: str) -> dict[str, Any]:
        # "Publishing", step (2): the daemon signs only a manifest of this very job.
        checked = check_manifest(manifest, self._digest, now_s=time.time())
        signature = sign_manifest(checked, self._name, self._credentials.certificate_pem, self._credentials.sign)
        return signature.model_dump(mode="json")
