"""One side job at one party: align, train the recommender, open noised statistics, multiply rows that nobody sees.

Guarantee: what leaves this party is pseudonyms under a blinding of this job (`veil.align`), noised sums after the
ledger has paid for them, masked numbers, and its shares of the outer products with their noise, each after the ledger
has paid for it, the job's policy admits it and all parties state the same. The item party's rows and the side parties'
meet as shared numbers only.

Phases are those of the meter: "align", "rounds", "statistics" (moments too), "offline" (without a dealer), "outer",
"model".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from party.rows.columns import read_columns
from party.worker.correlations import correlations
from party.worker.joint import Seat
from party.worker.phases import Phases
from party.worker.trainer import Rounds, shared, train
from veil.align.protocol import align
from veil.errors import ConfigError
from veil.jobs.reports import ALIGN
from veil.jobs.spec import JobSpec, Release
from veil.mpc.engine.engine import Engine
from veil.mpc.engine.kernels import warm_up
from veil.mpc.engine.revealing import Revealing
from veil.mpc.engine.values import Value
from veil.mpc.policy import RevealPolicy
from veil.privacy.sources import draws, party_release
from veil.recsys.catalogue import Catalogue
from veil.recsys.interactions import Interactions
from veil.tabular.reading import PartyTable
from veil.tabular.rows import take_rows
from veil.tabular.statistics import Standardisation
from veil.tabular.statistics import release_name as statistics_name
from veil.trainers.columns.material import statement
from veil.trainers.columns.outer import OwnRows
from veil.trainers.columns.terms import noise_limit_bits
from veil.trainers.linear import model_of
from veil.trainers.rows import PartyRows
from veil.trainers.seam import PublicState
from veil.trainers.side.algorithm import SideAlgorithm
from veil.trainers.side.dry import dry_run, outer_releases, products
from veil.trainers.side.publication import SidePublication
from veil.trainers.side.terms import release_name

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, repr=False)
class HeldItems:
    """The item party's rows, and the identifier of each user; None for one who cannot be aligned."""

    interactions: Interactions
    identifiers: Sequence[str | None]

    def __post_init__(self) -> None:
        if len(self.identifiers) != self.interactions.users:
            raise ConfigError(
                f"got {len(self.identifiers)} identifiers for {self.interactions.users} users, expected one each",
                hint="restart the party so that it prepares its rows again",
            )

    def __repr__(self) -> str:
        return f"HeldItems({self.interactions!r})"


class SideRun:
    """One party's part; all run the same at the same time."""

    def __init__(self, spec: JobSpec, seat: Seat, rounds: Rounds, catalogue: Catalogue) -> None:
        self._spec = spec
        self._seat = seat
        self._rounds = rounds
        self._communicator = seat.communicator
        self._party = spec.parties[seat.communicator.rank]
        self._algorithm = SideAlgorithm(spec, catalogue)
        self._terms = self._algorithm.terms
        self.phases = Phases(seat.communicator, seat.started_at_s)

    def __repr__(self) -> str:
        return f"SideRun(party={self._party!r})"

    def run_items(self, held: HeldItems) -> SidePublication:
        """At the item party: from its rows to what is published."""
        warm_up()
        known = np.array([row for row, one in enumerate(held.identifiers) if one is not None], np.int64)
        with self.phases.phase("align"):
            order = self._aligned([one for one in held.identifiers if one is not None])
        positions = np.where(order >= 0, known[np.maximum(order, 0)] if len(known) else -1, -1)
        state = self._recommender(PartyRows(interactions=held.interactions))
        found, moments, _ = self._statistics(None, positions)
        rows = self._algorithm.item_rows(held.interactions, model_of(state), positions)
        return self._finish(state, found, moments, self._outer(rows))

    def run_columns(self, file: Path) -> SidePublication:
        """At a side party: from its prepared columns to what is published."""
        warm_up()
        whole = read_columns(file, self._terms.schema, self._party)
        with self.phases.phase("align"):
            order = self._aligned(whole.identifiers)
        table, positions = whole, order
        if self._terms.alignment.mode == "reveal":
            # What all hold takes part in the statistics too: a user outside of the intersection counts for nothing.
            table, positions = take_rows(whole, order), np.arange(len(order), dtype=np.int64)
        state = self._recommender(self._algorithm.no_rows())
        found, moments, grid = self._statistics(table, positions)
        rows = torch.from_numpy(grid)
        return self._finish(state, found, moments, self._outer(lambda start, stop: rows[start:stop]))

    def _aligned(self, identifiers: Sequence[str]) -> Int64:
        """For each aligned row the number of the own one, or -1."""
        order = align(self._communicator, identifiers, self._terms.alignment, self._seat.job_digest).rows
        self._seat.finished(ALIGN)
        return order

    def _recommender(self, rows: PartyRows) -> PublicState:
        algorithm = self._algorithm
        with self.phases.phase("rounds"):
            return train(algorithm.recommender_spec, algorithm.recommender, rows, self._rounds, self._seat.finished)

    def _statistics(
        self, table: PartyTable | None, positions: Int64
    ) -> tuple[dict[str, Standardisation], dict[str, Int64], Int64]:
        """Every side party's standardisation and opened moment, and the own rows on the grid (none at the item party).

        positions: of the table's rows in the shared order.
        """
        algorithm, none = self._algorithm, np.zeros((0, 0), np.int64)
        with self.phases.phase("statistics"):
            sums = None if table is None else algorithm.statistics(table)
            opened = {party: self._open(statistics_name(party), party, sums) for party in algorithm.side_parties}
            found = algorithm.standardisations(opened)
            # All must encode alike: a last place of another machine's arithmetic would make another model there.
            self._communicator.agree(self._seat.job_digest + statement(found, 0))
            grid = none if table is None else algorithm.side_rows(table, found[self._party], positions)
            own = None if table is None else algorithm.moment(grid)
            moments = {party: self._open(release_name("moment", party), party, own) for party in algorithm.side_parties}
        return found, moments, grid

    def _open(self, name: str, party: str, own: Int64 | None) -> Int64:
        """The noised sum of that party's numbers, to which all others add zeros."""
        release = self._spec.release(name)
        mine = own if own is not None and party == self._party else np.zeros(release.shape, np.int64)
        opened = self._rounds.open(release, mine)
        self._seat.finished(name)
        return opened

    def _outer(self, own: OwnRows) -> dict[str, Int64]:
        """The opened outer product of the item party's rows with each side party's, noise included."""
        spec, seat, rank = self._spec, self._seat, self._communicator.rank
        planned = dry_run(self._terms, spec.releases, spec.privacy.noise, rank=rank)
        releases = outer_releases(self._terms, spec.releases)
        policy = RevealPolicy((), {release.name: release.shape for release in releases})
        revealing = Revealing(self._communicator, policy, seat.job_digest)
        source = correlations(
            self._communicator,
            planned.items,
            triples=self._terms.trainer.triples,
            job_digest=seat.job_digest,
            seed=seat.seed,
            fetch=seat.fetch,
            scratch=seat.scratch,
            offline=lambda: self.phases.phase("offline"),
        )
        opened: dict[str, Int64] = {}
        with source as made, self.phases.phase("outer"):
            engine = Engine(self._communicator, made)
            values = products(self._terms, releases, engine, own)
            for party, release, value in zip(self._algorithm.side_parties, releases, values, strict=True):
                # Paid for before its noise is there, hence before anything of it can open.
                seat.pay((release,))()
                noised = value + self._noise(engine, release, value.bits)
                found = revealing.open(engine, release.name, noised, mechanism=release.mechanism)
                opened[party] = np.asarray(found.numpy(), dtype=np.int64)
                seat.finished(release.name)
        return opened

    def _noise(self, engine: Engine, release: Release, bits: int) -> Value:
        noise, parties = self._spec.privacy.noise, len(self._spec.parties)
        limit_bits = noise_limit_bits(release, draws(noise, parties))
        if noise.source == "dealer":
            return engine.noise(release.name, release.shape, bits=bits, limit_bits=limit_bits)
        return Value(self._seat.draw(party_release(release, noise, parties)), bits, limit_bits)

    def _finish(
        self,
        state: PublicState,
        found: Mapping[str, Standardisation],
        moments: Mapping[str, Int64],
        outers: Mapping[str, Int64],
    ) -> SidePublication:
        """The model, as the lead makes it of the openings: the same bytes everywhere."""
        leads = self._rounds.rank == 0
        with self.phases.phase("model"):
            whole = self._algorithm.state(state, found, moments, outers) if leads else None
            model = self._algorithm.model(shared(self._rounds, self._spec, whole), found)
        return SidePublication(model, self._algorithm.catalogue)
