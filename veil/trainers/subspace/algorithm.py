"""Noisy subspace iteration: the trainer that parties run together, as pure functions on integers and public arrays.

Guarantee: what a party contributes to an opening is an exact integer sum over its own users, each of whose summands has
an L2 norm of at most the release's `sensitivity`; it does not depend on how users are split over parties or blocks, bit
for bit. Nothing here draws randomness, keeps state or touches the network; `advance` reads openings and public data
only, so all of it is post-processing.

Unit of privacy: one user, who is all rows of one pseudonym at one party. Neighbours: add or remove one user.
Mechanism: sum of bounded integer vectors plus rounded Gaussian noise (`veil.privacy.mechanism`).

Letters: x_u the 0/1 row of user u; c counts; D = c^-a; mu the unit popularity direction; E (items x d) the basis.

    counts    v_u = trunc(2^20 x_u / sqrt|x_u|), and 2^17          opens sum_u v_u            (items + 1)
    public    c by empirical Bayes; D, mu; the noise ratio; E_0 = first d directions that the public features span
    round-t   y_u = D x_u less its mu part, unit norm              trunc(2^16 y_u)
              h_u = clip(E^T y_u, C)                               trunc(2^16 h_u)
                                                                   opens sum_u y_u h_u^T      (items x d)
    public    E_t = left singular vectors of the shrunken opening
    publish   item factors = weighted sum of named terms (`veil.recsys.postprocess.factor_terms`)

Each round is one step of orthogonal iteration (Golub and Van Loan, "Matrix Computations", section 8.2.4) on the second
moment of the users' rows, with noise (Hardt and Price, "The Noisy Power Method", NeurIPS 2014); it maximises the
objective sum_u |E^T y_u|^2, that is, it fits a linear autoencoder of rank d.

The floor rule. The noise ratio is the noise multiplier of all releases together over the interactions per item, both
read off the opened counts. Above `noise-ratio-limit` a collaborative part would be mostly noise: then every round
carries the counts once more (`veil.trainers.subspace.counts`), the estimates are pooled, and the model is what the
whole budget would give for counts and public content alone. Which of the two a round carries depends on openings only,
and both have the round's norm bound, so the rule costs nothing (adaptive composition of Gaussians with fixed noise).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from veil.errors import ConfigError, InputError
from veil.jobs.spec import JobSpec, SubspaceTrainer
from veil.privacy.mechanism import outer_sensitivity, outer_sum, to_grid
from veil.privacy.sources import total_sd
from veil.recsys import postprocess
from veil.recsys.artifact import RecommenderPublication
from veil.recsys.catalogue import Catalogue
from veil.recsys.interactions import Interactions
from veil.recsys.kernel import design_rows
from veil.recsys.model import MAX_DIMENSIONS, Model
from veil.recsys.trained import Trained
from veil.trainers.linear import COUNT_BITS, COUNTS, array_of, model_of, model_state
from veil.trainers.rows import PartyRows
from veil.trainers.seam import Expected, PublicState, check_catalogue, check_releases
from veil.trainers.subspace.counts import (
    USER_STEPS,
    Estimate,
    counts_and_users,
    counts_sensitivity,
    interactions_per_item,
    repeated_counts,
)
from veil.trainers.subspace.options import LIMIT, OPTIONS, mixing_at

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

# 16 + 16 bits: 2^31 users of clip 1 fit a signed 64-bit sum, and the steps (1.5e-5) lie far below entries of a row
# (0.01) and below the noise (clip times multiplier). A float64 product of one block is exact far beyond a block.
ROW_BITS: Final = 16
PROJECTION_BITS: Final = 16
_BASIS_BITS: Final = 20
_BLOCK_ENTRIES: Final = 1 << 22
DEGENERATE: Final = 1e-9
"""A row of which the popularity direction leaves less than this share of the squared norm counts as empty."""
_MAX_BASIS_ENTRY: Final = 1.0 + 1e-3
_RARITY: Final = 0.5
_MOST_RATIO: Final = 1e6


def round_sensitivity(clip: float) -> int:
    """Bound on the Frobenius norm of one user's summand of a release "round-t", in grid steps."""
    return outer_sensitivity(1.0, ROW_BITS, clip, PROJECTION_BITS)


class SubspaceAlgorithm:
    """The trainer of one job. Raises `ConfigError` when job, releases and catalogue do not fit together.

    Steps run in the order of `steps`; for each, every party calls `contribution`, the sum is opened with noise, and one
    party calls `advance` and hands the new state to the others. After the last step `publish` makes the model.
    """

    def __init__(self, spec: JobSpec, catalogue: Catalogue) -> None:
        trainer = spec.trainer
        if not isinstance(trainer, SubspaceTrainer):
            raise ConfigError(f"got a job of trainer {trainer.kind!r}, expected subspace")
        check_catalogue(spec, catalogue)
        columns = trainer.dimensions * (trainer.rounds > 0) + trainer.content_dimensions + postprocess.USER_TERMS
        if columns > MAX_DIMENSIONS:
            raise ConfigError(f"got a user vector of {columns} entries, expected at most {MAX_DIMENSIONS}")
        if trainer.rounds and trainer.dimensions >= catalogue.items:
            raise ConfigError(
                f"got {trainer.dimensions} dimensions for {catalogue.items} items, expected fewer than items"
            )
        # All of them, though not every run needs each: a job must not fail after it has spent its budget.
        if set(trainer.options) != OPTIONS:
            got = ", ".join(sorted(trainer.options)) or "none"
            raise ConfigError(f"got trainer options {got}, expected {', '.join(sorted(OPTIONS))}")
        self.spec = spec
        self.trainer = trainer
        self.catalogue = catalogue
        self.steps: list[str] = [COUNTS, *(f"round-{t}" for t in range(1, trainer.rounds + 1))]
        check_releases(spec, self._expected())

    def _expected(self) -> Iterator[Expected]:
        items, trainer = self.catalogue.items, self.trainer
        yield Expected(COUNTS, (items + 1,), counts_sensitivity())
        for step in self.steps[1:]:
            yield Expected(step, (items, trainer.dimensions), round_sensitivity(trainer.clip))

    def contribution(self, step: str, rows: PartyRows, public_state: PublicState) -> Int64:
        """The exact sum over the given users, int64 of the release's shape, in grid steps.

        Raises `InputError` when the interactions are on another number of items or the state is malformed.
        """
        release = self.spec.release(step)
        interactions = rows.need_interactions()
        if interactions.items != self.catalogue.items:
            raise InputError(f"got interactions on {interactions.items} items, expected {self.catalogue.items}")
        if step == COUNTS:
            return counts_and_users(interactions)
        if "estimate" in public_state:
            return repeated_counts(interactions, release.shape, round_sensitivity(self.trainer.clip))
        counts, basis = self._training_state(public_state)
        weight, direction = postprocess.item_weights(counts, self.trainer.popularity_power)
        grid_basis = np.rint(basis * 2.0**_BASIS_BITS)
        total = np.zeros(release.shape, np.int64)
        step_users = max(1, _BLOCK_ENTRIES // self.catalogue.items)
        for start in range(0, interactions.users, step_users):
            block = interactions.rows(slice(start, start + step_users))
            # Sensitivity: `to_grid` lets no integer row longer than its norm through, whatever the state says, and the
            # Frobenius norm of an outer product is the product of the two norms (`outer_sensitivity`).
            gridded = to_grid(unit_rows(block, weight, direction), 1.0, ROW_BITS)
            # Exact: integers with |sum| and all partial sums at most 2^16 * 2^20 * sqrt(items), below 2^53 for items
            # below 2^34. Hence no dependence on the block or on the linear algebra library.
            projected = (gridded.astype(np.float64) @ grid_basis) * 2.0 ** -(ROW_BITS + _BASIS_BITS)
            total += outer_sum(gridded, to_grid(projected, self.trainer.clip, PROJECTION_BITS))
        return total

    def advance(self, step: str, opened: Int64, public_state: PublicState) -> PublicState:
        """The public state after an opening: int64 of the release's shape, noise included, in grid steps.

        After the last step the state holds the model's arrays. Raises `InputError` when opening or state is malformed.
        """
        found = self._found(step, opened, public_state)
        if step != self.steps[-1]:
            return found
        mixing = mixing_at(self.trainer.options, self._ratio(found), collaborative="strength" in found)
        return model_state(self._trained(found).model(mixing))

    def trained(self, step: str, opened: Int64, public_state: PublicState) -> Trained:
        """What is known after an opening, before mixing weights make a model of it. Arguments as for `advance`."""
        return self._trained(self._found(step, opened, public_state))

    def _found(self, step: str, opened: Int64, public_state: PublicState) -> PublicState:
        """The public state that an opening leads to: counts, noise ratio, and either an estimate or a basis."""
        release = self.spec.release(step)
        if opened.shape != release.shape or opened.dtype != np.int64:
            raise InputError(f"got an opening {opened.dtype}{opened.shape}, expected int64{release.shape}")
        noise_sd = total_sd(self.spec, release)
        if step == COUNTS:
            grid = 2.0**-COUNT_BITS
            estimate = Estimate(opened[:-1].astype(np.float64) * grid, noise_sd * grid)
            users, users_sd = float(opened[-1]) / USER_STEPS, noise_sd / USER_STEPS
            met = interactions_per_item(estimate.values, estimate.sd, users, users_sd)
            ratio = min(self._multiplier() / met, _MOST_RATIO) if met > 0 else _MOST_RATIO
            if not self.trainer.rounds or ratio > self.trainer.options[LIMIT]:
                return self._floor_state(estimate, ratio)
            counts = self._posterior(estimate)
            basis = self._directions(counts.astype(np.float64)).start(self.trainer.dimensions)
            return {"counts": counts, "ratio": np.array([ratio], np.float32), "basis": basis.astype(np.float32)}
        ratio = self._ratio(public_state)
        if "estimate" in public_state:
            grid = 1.0 / round_sensitivity(self.trainer.clip)
            again = Estimate(opened[:, 0].astype(np.float64) * grid, noise_sd * grid)
            return self._floor_state(self._estimate(public_state).pooled(again), ratio)
        known, _ = self._training_state(public_state)
        grid = 2.0 ** -(ROW_BITS + PROJECTION_BITS)
        total = opened.astype(np.float64) * grid
        found, strength = postprocess.shrink_sum(total, noise_sd * grid, known, self._directions(known))
        return {
            "counts": known.astype(np.float32),
            "ratio": np.array([ratio], np.float32),
            "basis": found.astype(np.float32),
            "strength": strength.astype(np.float32),
        }

    def _floor_state(self, estimate: Estimate, ratio: float) -> PublicState:
        return {
            "counts": self._posterior(estimate),
            "ratio": np.array([ratio], np.float32),
            "estimate": np.append(estimate.values, estimate.sd).astype(np.float32),
        }

    def _posterior(self, estimate: Estimate) -> npt.NDArray[np.float32]:
        return postprocess.posterior_counts(estimate.values, estimate.sd, self._design).astype(np.float32)

    def _trained(self, found: PublicState) -> Trained:
        counts = array_of(found, "counts").astype(np.float64)
        basis, strength = found.get("basis"), found.get("strength")
        return Trained(
            counts,
            self.trainer.popularity_power,
            self._directions(counts),
            self.trainer.content_dimensions,
            None if basis is None or strength is None else basis.astype(np.float64),
            None if basis is None or strength is None else strength.astype(np.float64),
            _RARITY,
        )

    def publish(self, public_state: PublicState) -> RecommenderPublication:
        """What is published: `model` with the catalogue's ids and titles."""
        return RecommenderPublication(self.model(public_state), self.catalogue)

    def model(self, public_state: PublicState) -> Model:
        """The model, from the state after the last step: a copy of arrays, so equal at every party."""
        return model_of(public_state)

    @cached_property
    def _design(self) -> Float64:
        return design_rows(self.catalogue.features, self.catalogue.blocks)

    def _directions(self, counts: Float64) -> postprocess.Directions:
        weight, direction = postprocess.item_weights(counts, self.trainer.popularity_power)
        return postprocess.public_directions(self._design, counts, weight, direction)

    def _multiplier(self) -> float:
        """Noise multiplier of all releases together, from what lies on the opened totals."""
        return 1.0 / math.sqrt(sum((one.sensitivity / total_sd(self.spec, one)) ** 2 for one in self.spec.releases))

    def _ratio(self, public_state: PublicState) -> float:
        """The noise ratio of a state: noise multiplier over interactions per item."""
        ratio = float(array_of(public_state, "ratio").flat[0])
        if not ratio > 0 or not math.isfinite(ratio):
            raise InputError(f"got noise ratio {ratio} in the public state, expected a positive number")
        return ratio

    def _estimate(self, public_state: PublicState) -> Estimate:
        both = array_of(public_state, "estimate").astype(np.float64)
        if both.shape != (self.catalogue.items + 1,) or not np.isfinite(both).all() or both[-1] < 0:
            raise InputError(f"got an estimate of {both.shape}, expected {self.catalogue.items + 1} finite numbers")
        return Estimate(both[:-1], float(both[-1]))

    def _training_state(self, public_state: PublicState) -> tuple[Float64, Float64]:
        items, dimensions = self.catalogue.items, self.trainer.dimensions
        counts, basis = array_of(public_state, "counts"), array_of(public_state, "basis")
        if counts.shape != (items,) or basis.shape != (items, dimensions):
            raise InputError(
                f"got a state of {counts.shape} and {basis.shape}, expected ({items},) and {items, dimensions}"
            )
        if not (np.isfinite(counts).all() and counts.min() > 0 and np.isfinite(basis).all()):
            raise InputError("got a state that is not finite or has counts that are not positive")
        if np.abs(basis).max() > _MAX_BASIS_ENTRY:
            raise InputError("got a basis with entries above 1, expected orthonormal columns")
        return counts.astype(np.float64), basis.astype(np.float64)


def unit_rows(interactions: Interactions, weight: Float64, direction: Float64) -> Float64:
    """y_u: D x_u less its part along mu, at unit norm; float64[users, items], 0 where nothing is left.

    Row by row in a fixed order of operations: a row does not depend on the users beside it.
    """
    row, met = interactions.row_of(), interactions.indices
    rows = np.zeros((interactions.users, interactions.items))
    rows[row, met] = weight[met]
    along = np.bincount(row, weights=(weight * direction)[met], minlength=interactions.users)
    total = np.bincount(row, weights=np.square(weight)[met], minlength=interactions.users)
    squared = total - np.square(along)
    sound = squared > DEGENERATE * total
    scale = np.where(sound, 1.0 / np.sqrt(np.where(sound, squared, 1.0)), 0.0)
    rows -= along[:, None] * direction
    rows *= scale[:, None]
    return rows
