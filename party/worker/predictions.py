"""One predictions job at one party: align new rows, compute on shared parts, open the scores to the recipient alone.

Guarantee: what leaves this party is pseudonyms under a blinding of this job (`veil.align`), masked numbers, and at the
end its share of the scores under a share of zero, to the recipient only, once the job's policy admits it and all
parties state the same (`veil.mpc.engine.revealing`). The recipient alone writes a file, mode 0600, of its own users.

Phases are those of the meter, and "start" before them: "align", "offline" (without a dealer), "prepare", "predict",
"reveal".
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from party.config import Predictions
from party.rows.prediction_rows import published_model, read_rows
from party.worker.correlations import correlations
from party.worker.phases import Phases
from veil.align.protocol import align
from veil.errors import DataError, StateError
from veil.files import write_atomic
from veil.jobs.predictions import SCORES
from veil.jobs.reports import ALIGN, PREDICT, REVEAL
from veil.jobs.spec import JobSpec
from veil.mpc.communicator import TensorCommunicator
from veil.mpc.engine.engine import Engine
from veil.mpc.engine.kernels import warm_up
from veil.mpc.engine.pool import Fetch
from veil.mpc.engine.revealing import PairwiseZeros, Revealing
from veil.mpc.policy import RevealPolicy
from veil.tabular.reading import PartyTable
from veil.trainers.columns.prediction import Prediction, PredictionTerms, Public, dry_run, own_parts
from veil.trainers.columns.publication import ColumnsModel

_LOG = logging.getLogger("veil.party.predictions")
MECHANISM: Final = "no mechanism: exact scores of the recipient's own users"
HEADER: Final = ("identifier", "probability")

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, repr=False)
class PredictionSeat:
    """One party's place in one job.

    fetch: at rank 0, the dealer's corrections. finished: told the name of each step. scratch: folder for correlations
    without a dealer. started_at_s: when the worker began, on this machine's monotonic clock; None: now.
    """

    communicator: TensorCommunicator
    job_digest: bytes
    seed: bytes
    fetch: Fetch | None
    finished: Callable[[str], None]
    scratch: Path
    started_at_s: float | None = None

    def __repr__(self) -> str:
        return f"PredictionSeat(rank={self.communicator.rank})"


class PredictionRun:
    """One party's part; all run the same at the same time."""

    def __init__(self, spec: JobSpec, seat: PredictionSeat, model: ColumnsModel) -> None:
        """model: this party's copy, verified. Raises `ConfigError` when it does not fit the job."""
        self._seat, self._model = seat, model
        self._communicator = seat.communicator
        self._rank = seat.communicator.rank
        self._terms = PredictionTerms.of(spec)
        self._terms.check_model(model)
        self.phases = Phases(seat.communicator, seat.started_at_s)

    def __repr__(self) -> str:
        return f"PredictionRun(rank={self._rank})"

    def run(self, table: PartyTable) -> Scored | None:
        """The recipient's users and their probabilities, at the recipient; None elsewhere."""
        seat, terms = self._seat, self._terms
        if terms.trainer.correlated:
            warm_up()  # compiled loops are loaded here and not in the first round
        self.phases.ready()
        with self.phases.phase("align"):
            positions = align(self._communicator, table.identifiers, terms.alignment, seat.job_digest).rows
        seat.finished(ALIGN)
        opened = self._opened(table, positions)
        return None if opened is None else _scored(table, positions, opened)

    def _opened(self, table: PartyTable, positions: Int64) -> Float64 | None:
        """Scores of all slots, float64, at the recipient."""
        seat, terms = self._seat, self._terms
        public = Public.of(self._model, terms)
        planned = dry_run(terms, public, rank=self._rank)
        policy = RevealPolicy((), {SCORES: (terms.slots,)}, {SCORES: terms.trainer.recipient})
        own = own_parts(terms, self._model, table, positions, self._rank)
        with correlations(
            self._communicator,
            planned.items,
            triples=terms.trainer.triples,
            job_digest=seat.job_digest,
            seed=seat.seed,
            fetch=seat.fetch,
            scratch=seat.scratch,
            offline=lambda: self.phases.phase("offline"),
        ) as source:
            engine = Engine(self._communicator, source)
            with self.phases.phase("prepare"):
                zeros = PairwiseZeros(self._communicator, seat.job_digest)
                engine.start()
            with self.phases.phase("predict"):
                value = Prediction(terms, public).run(engine, own)
            seat.finished(PREDICT)
            with self.phases.phase("reveal"):
                revealing = Revealing(self._communicator, policy, seat.job_digest, zeros=zeros)
                opened = revealing.open_to(engine, SCORES, value, terms.recipient, mechanism=MECHANISM)
            seat.finished(REVEAL)
        return None if opened is None else np.asarray(opened.numpy() / 2.0**value.bits, dtype=np.float64)


@dataclass(frozen=True, eq=False, repr=False)
class Scored:
    """Some of the recipient's rows, in the order of its file, and the probability of the positive outcome for each."""

    identifiers: tuple[str, ...]
    probabilities: Float64

    def __repr__(self) -> str:
        return f"Scored(rows={len(self.identifiers)})"

    def write(self, path: Path) -> None:
        """CSV: identifier, probability; whole or not at all, mode 0600. Raises `StateError`.

        A file that is there stays: job ids come from the coordinator, which could give one twice.
        """
        if path.exists():
            raise StateError(
                f"got predictions/{path.name}, which exists, expected a job of a new id", hint="move it away"
            )
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(HEADER)
        writer.writerows((name, f"{one:.6f}") for name, one in zip(self.identifiers, self.probabilities, strict=True))
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            write_atomic(path, text.getvalue().encode(), mode=0o600)
        except OSError as error:
            raise StateError(
                f"got no room for predictions/{path.name}: {error.strerror}, expected a folder that takes it",
                hint="make room in the state folder, then submit the job anew: one job runs once",
            ) from None
        _LOG.info("wrote %d predictions", len(self.identifiers))


def _scored(table: PartyTable, positions: Int64, scores: Float64) -> Scored:
    slots = np.flatnonzero(positions >= 0)
    # In the order of the own file: the shared one is the alignment's secret.
    slots = slots[np.argsort(positions[slots], kind="stable")]
    names = tuple(table.identifiers[row] for row in positions[slots].tolist())
    return Scored(names, np.asarray(0.5 * (1 + np.tanh(scores[slots] / 2))))


def load(
    spec: JobSpec, party: str, section: Predictions, *, models: Path, authority_pem: bytes
) -> tuple[ColumnsModel, PartyTable]:
    """The model, verified, and this party's rows as they are now. Raises a `VeilError` before anything is sent."""
    model = published_model(models, spec, authority_pem)
    table, most = read_rows(section, model.schema, party), PredictionTerms.of(spec).alignment.sizes[spec.rank(party)]
    if table.rows > most:
        raise DataError(f"got {table.rows} rows, expected at most the {most} that the job declares for {party}")
    return model, table
