"""One columns job at one party: align, open noised statistics, descend on shared numbers, open the weights.

Guarantee: what leaves this party is pseudonyms under a blinding of this job (`veil.align`), masked numbers, noised
statistics after the ledger has paid for them, and, once the job's policy admits it and all parties state the same, its
share of the weights. Every step's noise is added to the sum while it is shared, after the ledger has paid for the step.

Phases are those of the meter, and "start" before them: "align", "statistics", "offline" (without a dealer), "prepare",
"descend", "reveal".
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from party.rows.columns import read_columns
from party.worker.correlations import correlations
from party.worker.payments import Pay, Payments
from party.worker.phases import Phases
from veil.align.protocol import align
from veil.jobs.reports import ALIGN, REVEAL
from veil.jobs.spec import JobSpec, Release
from veil.mpc.communicator import TensorCommunicator
from veil.mpc.engine.correlations import Correlations
from veil.mpc.engine.engine import Engine
from veil.mpc.engine.items import EngineItem
from veil.mpc.engine.kernels import warm_up
from veil.mpc.engine.pool import Fetch
from veil.mpc.engine.revealing import Revealing
from veil.mpc.engine.values import Value
from veil.mpc.policy import RevealPolicy
from veil.mpc.provider import party_noise
from veil.privacy.sources import draws, party_release
from veil.tabular.reading import PartyTable
from veil.tabular.rows import take_rows
from veil.tabular.statistics import Standardisation, contribution, release_name
from veil.trainers.columns.dry import dry_run
from veil.trainers.columns.layout import OwnColumns
from veil.trainers.columns.material import base_rate, own_columns, standardisations, statement
from veil.trainers.columns.publication import ColumnsModel, ColumnsPublication
from veil.trainers.columns.terms import OFFSET_BITS, WEIGHTS, ColumnsTerms, noise_limit_bits, step_name

_LOG = logging.getLogger("veil.party.joint")
Int64 = npt.NDArray[np.int64]
Draw = Callable[[Release], torch.Tensor]


class Opens(Protocol):
    """`party.worker.trainer.Rounds`, as far as it is needed: noised sums of integers."""

    def open(self, release: Release, own: Int64) -> Int64:
        """See `party.worker.trainer.Rounds.open`."""
        ...


@dataclass(frozen=True, repr=False)
class Seat:
    """One party's place in one job.

    pay: asks the daemon, which pays at the ledger or refuses. fetch: at rank 0, the dealer's corrections. finished:
    told the name of each step. scratch: folder for correlations without a dealer. draw: one party's own noise, for the
    source "parties". started_at_s: when the worker began, on this machine's monotonic clock; None: now.
    """

    communicator: TensorCommunicator
    job_digest: bytes
    seed: bytes
    rounds: Opens
    pay: Pay
    fetch: Fetch | None
    finished: Callable[[str], None]
    scratch: Path
    draw: Draw = party_noise
    started_at_s: float | None = None

    def __repr__(self) -> str:
        return f"Seat(rank={self.communicator.rank})"


class JointRun:
    """One party's part; all run the same at the same time."""

    def __init__(self, spec: JobSpec, seat: Seat) -> None:
        self._spec = spec
        self._seat = seat
        self._communicator = seat.communicator
        self._rank = seat.communicator.rank
        self._party = spec.parties[self._rank]
        self._terms = ColumnsTerms.of(spec)
        steps = range(self._terms.descent.steps)
        self._payments = Payments(seat.pay, [spec.release(step_name(step)) for step in steps])
        self.phases = Phases(seat.communicator, seat.started_at_s)

    def __repr__(self) -> str:
        return f"JointRun(party={self._party!r})"

    def run(self, file: Path) -> ColumnsPublication:
        """From the prepared columns to what is published."""
        warm_up()  # compiled loops are loaded here and not in the first step
        whole = read_columns(file, self._terms.schema, self._party)
        self.phases.ready()
        with self.phases.phase("align"):
            table, positions = self._aligned(whole)
        with self.phases.phase("statistics"):
            found, offset = self._statistics(table)
        with self.phases.phase("prepare"):
            own = own_columns(self._terms, table, found[self._party], positions)
        del whole, table
        weights, bits = self._descend(own, offset)
        parts = [found[party] for party in self._spec.parties]
        return ColumnsPublication(
            ColumnsModel(
                schema=self._terms.schema,
                weights=weights.astype(np.float64) / 2.0**bits,
                offset=np.concatenate([one.offset for one in parts]),
                scale=np.concatenate([one.scale for one in parts]),
                intercept=offset / 2.0**OFFSET_BITS,
                hidden=self._terms.trainer.hidden,
            )
        )

    def _aligned(self, whole: PartyTable) -> tuple[PartyTable, Int64]:
        """The rows that take part, and where they stand: for each aligned row the number of the own one, or -1."""
        plan = self._terms.alignment
        order = align(self._communicator, whole.identifiers, plan, self._seat.job_digest).rows
        self._seat.finished(ALIGN)
        if plan.mode == "hidden":
            return whole, order
        # What all hold takes part in the statistics too: a user outside of the intersection counts for nothing.
        return take_rows(whole, order), np.arange(len(order), dtype=np.int64)

    def _statistics(self, table: PartyTable) -> tuple[dict[str, Standardisation], int]:
        """Every party's standardisation and the offset of scores, from opened sums."""
        opened = {}
        mine = contribution(self._terms.schema, table)  # first: all parties do this at the same time
        for party in self._spec.parties:
            release = self._spec.release(release_name(party))
            own = mine if party == self._party else np.zeros(release.shape, np.int64)
            opened[party] = self._seat.rounds.open(release, own)
            self._seat.finished(release.name)
        found = standardisations(self._terms, opened)
        offset = self._terms.offset(base_rate(found, self._terms.schema.label_party))
        # All must encode alike: a last place of another machine's arithmetic would make another model there.
        self._communicator.agree(self._seat.job_digest + statement(found, offset))
        return found, offset

    def _descend(self, own: OwnColumns, offset: int) -> tuple[Int64, int]:
        """The opened weights, int64[features, 1 + hidden units], and their fractional bits."""
        spec, seat = self._spec, self._seat
        planned = dry_run(self._terms, spec.releases, spec.privacy.noise, rank=self._rank)
        policy = RevealPolicy((), {one.name: one.shape for one in self._terms.trainer.openings})
        revealing = Revealing(self._communicator, policy, seat.job_digest)
        with self._correlations(planned.items) as source:
            engine = Engine(self._communicator, source)
            program = self._terms.program(lambda step, gradient: self._noised(engine, step, gradient), offset=offset)
            with self.phases.phase("prepare"):
                engine.start()
                descending = program.start(engine, own)
            for step in range(self._terms.descent.steps):
                with self.phases.phase("descend"):
                    # Rounds pass before the noise: the ledger's disk is asked to write while they do.
                    self._payments.begin(step)
                    descending.step(step)
                seat.finished(step_name(step))
            with self.phases.phase("reveal"):
                value = descending.weights()
                weights = revealing.open(engine, WEIGHTS, value, mechanism="post-processing of noised releases")
            seat.finished(REVEAL)
        return np.asarray(weights.numpy(), dtype=np.int64), value.bits

    def _correlations(self, items: Sequence[EngineItem]) -> AbstractContextManager[Correlations]:
        """What the plan asks for (`party.worker.correlations`)."""
        seat = self._seat
        return correlations(
            self._communicator,
            items,
            triples=self._terms.trainer.triples,
            job_digest=seat.job_digest,
            seed=seat.seed,
            fetch=seat.fetch,
            scratch=seat.scratch,
            offline=lambda: self.phases.phase("offline"),
        )

    def _noised(self, engine: Engine, step: int, gradient: Value) -> Value:
        """A step's sum with the noise of its release, which is paid for first."""
        spec, parties = self._spec, len(self._spec.parties)
        release, noise = spec.release(step_name(step)), self._spec.privacy.noise
        self._payments.settle(step)
        limit_bits = noise_limit_bits(release, draws(noise, parties))
        if noise.source == "dealer":
            drawn = engine.noise(release.name, release.shape, bits=gradient.bits, limit_bits=limit_bits)
        else:
            share = self._seat.draw(party_release(release, noise, parties))
            drawn = Value(share, gradient.bits, limit_bits)
        return gradient + drawn.reshape(*gradient.shape)
