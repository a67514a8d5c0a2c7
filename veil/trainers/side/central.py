"""A side job with all users in one place: for tests, and for evaluation on data that one holds anyway.

Guarantee: the same exact sums as a joint job and, with the same noise, the same openings and the same model, bit for
bit (`veil.trainers.side.algorithm`). Nothing is shared or charged here: what comes out is no release.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from veil.errors import InputError
from veil.jobs.spec import Release
from veil.privacy.mechanism import outer_sum
from veil.recsys.interactions import Interactions
from veil.tabular.reading import PartyTable
from veil.tabular.statistics import release_name as statistics_name
from veil.trainers.linear import model_of
from veil.trainers.rows import PartyRows
from veil.trainers.seam import central_state
from veil.trainers.side.algorithm import SideAlgorithm
from veil.trainers.side.model import SideModel
from veil.trainers.side.terms import release_name

Int64 = npt.NDArray[np.int64]
Noise = Callable[[Release], Int64]


@dataclass(frozen=True, repr=False)
class Side:
    """One side party's rows in one place. positions: for each slot, the number of the own row, or -1."""

    table: PartyTable
    positions: Int64

    def __repr__(self) -> str:
        return f"Side({self.table!r})"


def central_side(
    algorithm: SideAlgorithm,
    interactions: Interactions,
    item_positions: Int64,
    sides: Mapping[str, Side],
    noise: Noise,
    opened: dict[str, Int64] | None = None,
) -> SideModel:
    """The model. noise: called once for each release, in order; what is added to its sum, int64 of its shape.

    item_positions: for each slot, the row of `interactions`, or -1. opened: filled with every opening after the
    recommender's, by release. Raises `InputError` when a side party is missing.
    """
    if set(sides) != set(algorithm.side_parties):
        raise InputError(f"got rows of {', '.join(sides)}, expected those of {', '.join(algorithm.side_parties)}")
    spec, found = algorithm.spec, {} if opened is None else opened
    sides = {party: sides[party] for party in algorithm.side_parties}
    recommender = central_state(
        algorithm.recommender, algorithm.recommender_spec, PartyRows(interactions=interactions), noise
    )
    for party, side in sides.items():
        name = statistics_name(party)
        found[name] = algorithm.statistics(side.table) + noise(spec.release(name))
    standardised = algorithm.standardisations({party: found[statistics_name(party)] for party in sides})
    rows = {party: algorithm.side_rows(one.table, standardised[party], one.positions) for party, one in sides.items()}
    for party in sides:
        name = release_name("moment", party)
        found[name] = algorithm.moment(rows[party]) + noise(spec.release(name))
    items = algorithm.item_rows(interactions, model_of(recommender), item_positions)
    totals = {party: np.zeros(spec.release(release_name("outer", party)).shape, np.int64) for party in sides}
    for start, stop in algorithm.terms.program.blocks():
        block = items(start, stop).numpy()
        for party, total in totals.items():
            total += outer_sum(block, rows[party][start:stop])
    for party, total in totals.items():
        name = release_name("outer", party)
        found[name] = total + noise(spec.release(name))
    state = algorithm.state(
        recommender,
        standardised,
        {party: found[release_name("moment", party)] for party in sides},
        {party: found[release_name("outer", party)] for party in sides},
    )
    return algorithm.model(state, standardised)
