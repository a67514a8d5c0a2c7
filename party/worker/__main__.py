"""The worker: one process, one job, no network. Holds the rows and CrypTen's state, and talks to its daemon only.

`python -m party.worker --fd N` with N an inherited socket; the daemon starts it (`party.job.launch`). What it is told,
it is told over that socket; its environment names no key and no address.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from party.rows import store
from party.worker.publish import publish
from party.worker.secure_rounds import SecureRounds
from party.worker.trainer import train
from veil.errors import StateError, VeilError
from veil.jobs.reports import steps
from veil.jobs.side import SideTrainer
from veil.jobs.spec import JobSpec, digest, parse
from veil.mpc.communicator import TensorCommunicator
from veil.mpc.faults import to_document
from veil.mpc.provider import DealerProvider
from veil.mpc.relay import RelayTransport
from veil.mpc.relay_divided import DividedRelay
from veil.mpc.session import Session
from veil.recsys.catalogue import Catalogue
from veil.trainers.registry import algorithm_of
from veil.trainers.seam import Publication

if TYPE_CHECKING:
    from party.worker.joint import Seat

_LOG = logging.getLogger("veil.party.worker")


Take = Callable[[TensorCommunicator, SecureRounds, RelayTransport], Publication]
"""What a kind of job does between the mesh and the publication."""


def run(source: socket.socket, rank: int, parties: int, messages: socket.socket | None = None) -> None:
    """Takes part in one job, start to end. Failures are reported to the daemon, then raised.

    messages: to what carries messages between parties, where that is not the daemon (`party.job.carrier`).
    """
    daemon = (
        RelayTransport(source, rank, parties) if messages is None else DividedRelay(source, messages, rank, parties)
    )
    try:
        job = daemon.request("init", {})
        job["started_at_s"] = time.monotonic() - float(job["running_s"])
        _take_part(daemon, job)
    except VeilError as error:
        try:
            daemon.request("failed", to_document(error))
        except VeilError:
            _LOG.warning("the daemon could not be told: %s", error)
        raise
    finally:
        daemon.close()


def _take_part(daemon: RelayTransport, job: dict[str, Any]) -> None:
    spec = parse(str(job["job_text"]))
    job_digest = digest(spec.text())
    party = str(job["party"])
    rank = spec.rank(party)
    if (rank, len(spec.parties)) != (daemon.rank, daemon.world_size):
        raise StateError(f"got rank {daemon.rank} of {daemon.world_size}, expected {rank} of {len(spec.parties)}")
    finished = _progress(daemon, spec)
    if spec.trainer.kind == "predictions":
        _predict(daemon, spec, job, finished)
        return

    makers = {"columns": _joint, "side": _side}
    take = makers.get(spec.trainer.kind, _rounds)(spec, job, finished)
    finished("load")

    seed = bytes.fromhex(job["seed"])
    provider = DealerProvider(rank, seed, daemon.correct if rank == 0 else None)
    communicator = TensorCommunicator(daemon, spec.parties, float(job["timeout_s"]))
    with Session(communicator, provider, job_digest=job_digest, releases=spec.releases) as session:
        finished("mesh")
        publication = take(communicator, SecureRounds(session, provider, spec, rank, daemon), daemon)
        manifest_digest = publish(
            spec,
            publication,
            session,
            rank=rank,
            sign=lambda manifest: daemon.request("sign", {"manifest": manifest}),
            directory=Path(job["model"]),
            authority_pem=str(job["authority_pem"]).encode("ascii"),
        )
        session.barrier()
    finished("publish")
    daemon.request("published", {"manifest_digest": manifest_digest.hex()})


def _rounds(spec: JobSpec, job: dict[str, Any], finished: Callable[[str], None]) -> Take:
    """Sums over users, opened round by round."""
    catalogue = Catalogue.load(Path(job["catalogue"]), expect_digest=spec.items.digest)
    rows = store.load_rows(Path(job["rows"]), catalogue.digest)
    algorithm = algorithm_of(spec, catalogue, modules={name: Path(path) for name, path in job["modules"].items()})

    def take(_: TensorCommunicator, rounds: SecureRounds, __: RelayTransport) -> Publication:
        return algorithm.publish(train(spec, algorithm, rows, rounds, finished))

    return take


def _joint(spec: JobSpec, job: dict[str, Any], finished: Callable[[str], None]) -> Take:
    """A model on columns of several parties, on shared numbers from the data to the weights."""
    # Here and not above: compiled kernels and the curve, which other jobs do not need.
    from party.worker.joint import JointRun

    def take(communicator: TensorCommunicator, rounds: SecureRounds, daemon: RelayTransport) -> Publication:
        joint = JointRun(spec, _seat(spec, job, communicator, rounds, daemon, finished))
        publication = joint.run(Path(job["columns"]))
        daemon.request("measured", joint.phases.measured())
        return publication

    return take


def _side(spec: JobSpec, job: dict[str, Any], finished: Callable[[str], None]) -> Take:
    """A recommender, with other parties' columns of its users."""
    from party.rows.identifiers import FILE, load
    from party.worker.side import HeldItems, SideRun

    catalogue = Catalogue.load(Path(job["catalogue"]), expect_digest=spec.items.digest)
    held = None
    if isinstance(spec.trainer, SideTrainer) and job["party"] == spec.trainer.items:
        rows = Path(job["rows"])
        interactions = store.load_rows(rows, catalogue.digest).need_interactions()
        held = HeldItems(interactions, load(rows.with_name(FILE)))

    def take(communicator: TensorCommunicator, rounds: SecureRounds, daemon: RelayTransport) -> Publication:
        run = SideRun(spec, _seat(spec, job, communicator, rounds, daemon, finished), rounds, catalogue)
        publication = run.run_columns(Path(job["columns"])) if held is None else run.run_items(held)
        daemon.request("measured", run.phases.measured())
        return publication

    return take


def _seat(
    spec: JobSpec,
    job: dict[str, Any],
    communicator: TensorCommunicator,
    rounds: SecureRounds,
    daemon: RelayTransport,
    finished: Callable[[str], None],
) -> Seat:
    """A place in a job on shared numbers."""
    from party.worker.joint import Seat
    from veil.mpc.engine.items import EngineItem
    from veil.mpc.engine.wire import to_wire

    def fetch(first: int, items: Sequence[EngineItem]) -> bytes:
        return daemon.correct(to_wire(first, items))

    return Seat(
        communicator=communicator,
        job_digest=digest(spec.text()),
        # Other labels than those of `DealerProvider` (veil.mpc.engine.expand): no key serves both.
        seed=bytes.fromhex(job["seed"]),
        rounds=rounds,
        pay=rounds.pay,
        fetch=fetch if rounds.rank == 0 else None,
        finished=finished,
        scratch=Path(job["rows"]).parent,
        started_at_s=job["started_at_s"],
    )


def _predict(daemon: RelayTransport, spec: JobSpec, job: dict[str, Any], finished: Callable[[str], None]) -> None:
    """Scores of new rows, to one party; nothing is published, and CrypTen is not needed."""
    from party.config import Predictions
    from party.worker.predictions import PredictionRun, PredictionSeat, load
    from veil.mpc.engine.items import EngineItem
    from veil.mpc.engine.wire import to_wire
    from veil.trainers.columns.prediction import statement

    given, job_digest = job["predictions"], digest(spec.text())
    section = Predictions.model_validate(given["section"])
    authority = str(job["authority_pem"]).encode("ascii")
    model, table = load(spec, str(job["party"]), section, models=Path(given["models"]), authority_pem=authority)
    finished("load")

    def fetch(first: int, items: Sequence[EngineItem]) -> bytes:
        return daemon.correct(to_wire(first, items))

    communicator = TensorCommunicator(daemon, spec.parties, float(job["timeout_s"]))
    seat = PredictionSeat(
        communicator=communicator,
        job_digest=job_digest,
        seed=bytes.fromhex(job["seed"]),
        fetch=fetch if communicator.rank == 0 else None,
        finished=finished,
        scratch=Path(job["rows"]).parent,
        started_at_s=job["started_at_s"],
    )
    finished("mesh")
    run = PredictionRun(spec, seat, model)
    scored = run.run(table)
    if scored is not None:
        scored.write(Path(given["out"]))
    outcome = statement(spec)
    # Nobody reports the end before the recipient has its file.
    communicator.agree(outcome)
    daemon.request("measured", run.phases.measured())
    finished("publish")
    daemon.request("published", {"manifest_digest": outcome.hex()})


def _progress(daemon: RelayTransport, spec: JobSpec) -> Callable[[str], None]:
    names = steps(spec)

    def finished(step: str) -> None:
        passed = asdict(daemon.meter.total())
        daemon.request("progress", {"step": step, "done": names.index(step) + 1, "passed": passed})

    return finished


def main() -> None:
    """Entry point of the process."""
    parser = argparse.ArgumentParser(prog="python -m party.worker")
    parser.add_argument("--fd", type=int, required=True, help="inherited socket to the daemon")
    parser.add_argument("--messages-fd", type=int, help="inherited socket to what carries messages")
    parser.add_argument("--rank", type=int, required=True, help="own rank in the job")
    parser.add_argument("--parties", type=int, required=True, help="number of parties of the job")
    arguments = parser.parse_args()
    logging.basicConfig(
        level=os.environ.get("VEIL_LOG", "INFO").upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    # A core dump would hold rows, shares and seeds.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(max(1, int(os.environ.get("OMP_NUM_THREADS", "0") or torch.get_num_threads())))
    try:
        source = socket.socket(fileno=arguments.fd)
        messages = None if arguments.messages_fd is None else socket.socket(fileno=arguments.messages_fd)
    except OSError as error:
        raise StateError(
            f"got file descriptor {arguments.fd}, expected an inherited socket: {error.strerror}"
        ) from None
    try:
        run(source, arguments.rank, arguments.parties, messages)
    except VeilError as error:
        _LOG.error("%s", error)
        sys.exit(1)


if __name__ == "__main__":
    main()
