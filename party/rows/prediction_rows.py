"""What a party lets published models score, how much of it each day, and whether a job on that may run.

Rows are read anew for each job, here to see whether they fit and in the worker to be scored.

Guarantee: without [predictions] nothing is scored; to another party than itself a party tells scores only if it lists
that party, no finer than it allows, and no more rows within 24 hours. Rows are counted, durably, before the job runs,
as many as the job declares: a crash can only leave rows counted that nobody learnt of. One job runs once.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from party.config import Columns, PartyConfig, Predictions
from party.rows.columns import check_names
from veil.errors import DataError, InputError, PolicyError, StateError
from veil.files import read_bounded
from veil.identity.names import Identity, Role
from veil.jobs.predictions import PredictionsTrainer
from veil.jobs.spec import JobSpec

if TYPE_CHECKING:
    from veil.tabular.reading import PartyTable
    from veil.tabular.schema import TabularSchema
    from veil.trainers.columns.publication import ColumnsModel

DAY_S: Final = 24 * 3600.0
_MOST_MANIFEST_BYTES: Final = 1024 * 1024
_MOST_MODELS: Final = 10_000
_BUSY_TIMEOUT_S: Final = 30.0


class PredictionRecord:
    """Jobs that have scored this party's rows, in an SQLite file of mode 0600; several processes may use it.

    clock: seconds since the epoch. A clock that is set back makes counted rows last longer, never shorter.
    """

    def __init__(self, path: Path, *, rows_a_day: int, clock: Callable[[], float] = time.time) -> None:
        """Makes the file when there is none. Raises `StateError` when it is no such file."""
        self._path, self._most, self._clock = path, rows_a_day, clock
        self._lock = threading.Lock()
        if not path.exists():
            path.touch(mode=0o600)
        with self._transaction() as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS scored (job TEXT PRIMARY KEY, at REAL, rows INTEGER)")

    def check(self, job_digest: bytes, rows: int) -> None:
        """Raises `PolicyError` when `rows` more would exceed the limit, `StateError` for a job that has run."""
        with self._transaction() as connection:
            self._check(connection, job_digest, rows)

    def record(self, job_digest: bytes, rows: int) -> None:
        """Counts a job that is about to run; on disk when this returns. Raises as `check`, and counts nothing then."""
        with self._transaction() as connection:
            self._check(connection, job_digest, rows)
            connection.execute("INSERT INTO scored VALUES (?, ?, ?)", (job_digest.hex(), self._clock(), rows))

    def _check(self, connection: sqlite3.Connection, job_digest: bytes, rows: int) -> None:
        if connection.execute("SELECT 1 FROM scored WHERE job = ?", (job_digest.hex(),)).fetchone() is not None:
            raise StateError("got a job that has run here before, expected a new one", hint="submit it anew")
        since = (self._clock() - DAY_S,)
        scored = connection.execute("SELECT COALESCE(SUM(rows), 0) FROM scored WHERE at > ?", since).fetchone()[0]
        if rows and scored + rows > self._most:
            raise PolicyError(
                f"got {rows} rows to score for another party after {scored} within 24 hours,"
                f" expected at most {self._most} in all",
                hint="[predictions] rows_a_day in the party's config; or wait, or declare fewer rows",
            )

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if not self._path.exists():
                raise StateError(f"got no {self._path.name}, expected the record of rows that were scored")
            try:
                with closing(sqlite3.connect(self._path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)) as connection:
                    connection.execute("PRAGMA synchronous = EXTRA")
                    connection.execute("BEGIN IMMEDIATE")
                    try:
                        yield connection
                    except BaseException:
                        if connection.in_transaction:
                            connection.execute("ROLLBACK")
                        raise
                    connection.execute("COMMIT")
            except sqlite3.Error as error:
                raise StateError(f"got {self._path.name} that cannot be used: {error}") from None


@dataclass(frozen=True)
class HeldPredictions:
    """The party's rows to be scored, its rules for them, its models, and the record of what was scored."""

    section: Predictions
    columns: Columns
    models: Path
    authority_pem: bytes
    record: PredictionRecord

    @classmethod
    def of(cls, config: PartyConfig, authority_pem: bytes) -> HeldPredictions | None:
        """As the configuration says; None where it has no [predictions]."""
        if config.predictions is None or config.columns is None:
            return None
        record = PredictionRecord(config.state / "predictions.sqlite", rows_a_day=config.predictions.rows_a_day)
        return cls(config.predictions, config.columns, config.state / "models", authority_pem, record)

    def check(self, spec: JobSpec, job_digest: bytes, party: str, *, consented: bool) -> None:
        """Raises a `VeilError` unless this party lets the job score its rows.

        consented: False: no row is looked at, since a refusal would tell something of rows (`party.job.review`).
        """
        # Here and not above: they bring torch along, which other jobs do not need in the daemon.
        from veil.trainers.columns.prediction import PredictionTerms, Public, dry_run

        terms = PredictionTerms.of(spec)
        recipient = terms.trainer.recipient
        if recipient != party and recipient not in self.section.recipients:
            raise PolicyError(
                f"got a job that tells {recipient} scores of the users of {party}, expected a recipient that it lists",
                hint="[predictions] recipients in the party's config; empty: nobody",
            )
        if recipient != party and terms.trainer.bits > self.section.most_bits:
            raise PolicyError(
                f"got scores with {terms.trainer.bits} fractional bits, expected at most {self.section.most_bits}",
                hint="[predictions] most_bits in the party's config; a finer score tells more of each user",
            )
        self.record.check(job_digest, terms.rows_told(party))
        model = published_model(self.models, spec, self.authority_pem)
        terms.check_model(model)
        dry_run(terms, Public.of(model, terms), rank=spec.rank(party))  # numbers fit, tensors are bounded
        labels = (model.schema.label.name,)  # which no prediction reads
        check_names(model.schema, party, self.columns.identifier, self.columns.use, labels)
        if consented:
            most = terms.alignment.sizes[spec.rank(party)]
            if read_rows(self.section, model.schema, party).rows > most:
                raise DataError(f"got more rows than the {most} that the job declares for {party}, expected at most so")


def count(record: PredictionRecord | None, spec: JobSpec, job_digest: bytes, party: str) -> None:
    """Counts the rows of a job on predictions that is about to run; nothing for other jobs. Raises as `record`.

    record: None at a party without [predictions].
    """
    if not isinstance(spec.trainer, PredictionsTrainer):
        return
    from veil.trainers.columns.prediction import PredictionTerms

    if record is None:
        raise StateError("got a job on predictions, expected one for which this party has rows")
    record.record(job_digest, PredictionTerms.of(spec).rows_told(party))


def published_model(models: Path, spec: JobSpec, authority_pem: bytes) -> ColumnsModel:
    """The model that the job names, of this party's own copies, signed by all parties of the job.

    Raises `PolicyError` when this party holds none of that digest, `ArtifactError` when its copy is not sound.
    """
    from veil.trainers.columns.publication import load_columns

    if not isinstance(spec.trainer, PredictionsTrainer):
        raise PolicyError(f"got a job of trainer {spec.trainer.kind}, expected predictions")
    for number, folder in enumerate(sorted(models.glob("*"))):
        if number >= _MOST_MODELS:
            break
        if _digest(folder / "manifest.json") == spec.trainer.model:
            signers = [Identity(spec.consortium, Role.PARTY, name) for name in spec.parties]
            # Read again there: what is verified and used must be what was asked for.
            expected = bytes.fromhex(spec.trainer.model.removeprefix("sha256:"))
            return load_columns(folder, authority_pem, require_signers=signers, expect_digest=expected)
    raise PolicyError(
        f"got model {spec.trainer.model[:23]}…, expected one that was published here",
        hint="model in the job is the SHA-256 of manifest.json in a party's state/models/JOB",
    )


def read_rows(section: Predictions, schema: TabularSchema, party: str) -> PartyTable:
    """The rows as they are now: the identifier and the columns of the model, nothing else of the file, no label."""
    from veil.tabular.reading import read_party
    from veil.tabular.schema import MOST_ROWS

    wide = schema.model_copy(update={"slots": MOST_ROWS})
    return read_party(section.source, wide, party, section.format, labelled=False)


def _digest(manifest: Path) -> str:
    """Empty where there is none that can be read: that is not the one which a job names."""
    try:
        if not manifest.is_file():  # a pipe would be waited for
            return ""
        return f"sha256:{hashlib.sha256(read_bounded(manifest, _MOST_MANIFEST_BYTES)).hexdigest()}"
    except (InputError, OSError):
        return ""
