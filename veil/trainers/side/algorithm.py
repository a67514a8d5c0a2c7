"""A recommender with side information as pure functions: what each party sums, and what is made of the openings.

Guarantee: every sum is an exact integer sum over own users, each of whose summands keeps the norm that the release
states (`veil.trainers.side.terms`), whatever the public state says; it does not depend on blocks or on the order of
users, so a job of several parties opens bit for bit what one place opens with the same noise. Nothing here draws
randomness or touches the network; `state` and `model` read openings and public data only.

In order, at each party: the recommender's releases on the interactions (others contribute zeros), statistics of each
side party's columns, its moment, and for each the outer product of the item party's rows with its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from veil.errors import ConfigError, InputError
from veil.jobs.spec import JobSpec
from veil.privacy.mechanism import outer_sum, to_grid
from veil.privacy.sources import total_sd
from veil.recsys import postprocess
from veil.recsys.catalogue import Catalogue
from veil.recsys.interactions import Interactions
from veil.recsys.kernel import design_rows
from veil.recsys.model import Model
from veil.tabular import statistics
from veil.tabular.grid import arrange, encode_rows
from veil.tabular.reading import PartyTable
from veil.tabular.statistics import Standardisation, standardise
from veil.trainers.columns.outer import OwnRows
from veil.trainers.linear import array_of, model_of
from veil.trainers.rows import PartyRows
from veil.trainers.seam import PublicState
from veil.trainers.side.estimate import side_factors
from veil.trainers.side.model import SideModel
from veil.trainers.side.terms import SideTerms, recommender_spec, release_name
from veil.trainers.subspace.algorithm import SubspaceAlgorithm, unit_rows

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
FACTORS = "side_factors"


class SideAlgorithm:
    """The trainer of one job. Raises `ConfigError` when job, releases and catalogue do not fit together."""

    def __init__(self, spec: JobSpec, catalogue: Catalogue) -> None:
        self.spec = spec
        self.terms = SideTerms.of(spec)
        self.recommender_spec = recommender_spec(spec, self.terms)
        self.recommender = SubspaceAlgorithm(self.recommender_spec, catalogue)
        self.catalogue = catalogue

    @property
    def side_parties(self) -> tuple[str, ...]:
        """Who brings columns, in rank order."""
        return tuple(one.party for one in self.terms.schema.parties)

    def no_rows(self) -> PartyRows:
        """What a party without interactions brings to the recommender's releases."""
        empty = Interactions.from_pairs([], [], users=0, items=self.catalogue.items)
        return PartyRows(interactions=empty)

    # What is summed ---------------------------------------------------------------------------------------------

    def item_rows(self, interactions: Interactions, model: Model, positions: Int64) -> OwnRows:
        """y of the users in the shared order, by blocks: int64[rows, items] over 2^row_bits, zeros where there is none.

        positions: int64, at most as many as the job has slots; the own row's number, or -1. Raises `InputError`.
        """
        if interactions.items != self.catalogue.items:
            raise InputError(f"got interactions on {interactions.items} items, expected {self.catalogue.items}")
        placed = self.placed(positions, interactions.users)
        weight, direction = postprocess.item_weights(counts_of(model), self.terms.trainer.recommender.popularity_power)

        def rows(start: int, stop: int) -> torch.Tensor:
            part = placed[start:stop]
            held = part >= 0
            block = interactions.rows(part[held])
            out = np.zeros((stop - start, self.catalogue.items), np.int64)
            # Sensitivity: `to_grid` lets no integer row longer than 2^row_bits through, whatever the model says.
            out[held] = to_grid(unit_rows(block, weight, direction), 1.0, self.terms.trainer.row_bits)
            return torch.from_numpy(out)

        return rows

    def side_rows(self, table: PartyTable, standardisation: Standardisation, positions: Int64) -> Int64:
        """g of the users in the shared order, int64[slots, width] over 2^bits, zeros where there is none."""
        schema = self.terms.schema
        # Sensitivity: `encode_rows` clips every row to the party's share, in integers; `arrange` uses none twice.
        return arrange(encode_rows(schema, table, standardisation), self.placed(positions, table.rows), schema.slots)

    def placed(self, positions: Int64, rows: int) -> Int64:
        """Positions filled up to the job's slots with -1. Raises `InputError` unless each row is used at most once."""
        slots = self.terms.schema.slots
        used = positions[positions >= 0]
        if positions.shape != (len(positions),) or len(positions) > slots or used.max(initial=-1) >= rows:
            raise InputError(f"got {len(positions)} positions, expected at most {slots}, of rows that there are")
        # Sensitivity: a user in two slots would count twice.
        if len(np.unique(used)) != len(used):
            raise InputError("got a row in two slots, expected each row once")
        placed = np.full(slots, -1, dtype=np.int64)
        placed[: len(positions)] = positions
        return placed

    def statistics(self, table: PartyTable) -> Int64:
        """A side party's sums for its release of statistics."""
        return statistics.contribution(self.terms.schema, table)

    def moment(self, rows: Int64) -> Int64:
        """sum g g^T of `side_rows`, int64[width, width]."""
        return outer_sum(rows, rows)

    # What is made of openings -----------------------------------------------------------------------------------

    def standardisations(self, opened: Mapping[str, Int64]) -> dict[str, Standardisation]:
        """Every side party's, from the opened sums of its statistics."""
        trainer = self.terms.trainer
        return {
            party: standardise(
                self.terms.schema, party, opened[party], fill=trainer.fill, least_users=trainer.least_users
            )
            for party in self.side_parties
        }

    def state(
        self,
        recommender: PublicState,
        found: Mapping[str, Standardisation],
        moments: Mapping[str, Int64],
        outers: Mapping[str, Int64],
    ) -> PublicState:
        """All arrays of the model, from the recommender's last state and the openings of each side party."""
        model, terms = model_of(recommender), self.terms
        counts, power = counts_of(model), terms.trainer.recommender.popularity_power
        directions = postprocess.public_directions(self._design, counts, *postprocess.item_weights(counts, power))
        parts = []
        for one in terms.schema.parties:
            outer_release = self.spec.release(release_name("outer", one.party))
            moment_release = self.spec.release(release_name("moment", one.party))
            outer, moment = outers[one.party], moments[one.party]
            if outer.shape != outer_release.shape or moment.shape != moment_release.shape:
                raise InputError(f"got openings of {outer.shape} and {moment.shape} for {one.party}, expected others")
            product_grid, square_grid = 2.0**-terms.product_bits, 4.0**-terms.schema.bits
            parts.append(
                side_factors(
                    outer.astype(np.float64) * product_grid,
                    total_sd(self.spec, outer_release) * product_grid,
                    moment.astype(np.float64) * square_grid,
                    total_sd(self.spec, moment_release) * square_grid,
                    users=found[one.party].users,
                    norm=one.norm_share,
                    counts=counts,
                    power=power,
                    directions=directions,
                    ridge=terms.trainer.ridge,
                    mixing=terms.trainer.mixing,
                )
            )
        return {**recommender, FACTORS: np.concatenate(parts, axis=1).astype(np.float32)}

    def model(self, state: PublicState, found: Mapping[str, Standardisation]) -> SideModel:
        """The model: a copy of arrays, so equal at every party. Raises `InputError`, `ArtifactError`."""
        parts = [found[party] for party in self.side_parties]
        return SideModel(
            recommender=model_of(state),
            schema=self.terms.schema,
            factors=array_of(state, FACTORS),
            offset=np.concatenate([one.offset for one in parts]),
            scale=np.concatenate([one.scale for one in parts]),
            half_length=self.terms.trainer.mixing.half_length,
        )

    @cached_property
    def _design(self) -> Float64:
        return design_rows(self.catalogue.features, self.catalogue.blocks)


def counts_of(model: Model) -> Float64:
    """The model's noised counts, float64[items] > 0: public, as the fold-in holds their logarithms."""
    counts: Float64 = np.exp(model.fold_in[:, -1].astype(np.float64))
    if not (np.isfinite(counts).all() and counts.min() > 0):
        raise ConfigError("got a model whose counts are no positive numbers, expected those of a finished training")
    return counts
