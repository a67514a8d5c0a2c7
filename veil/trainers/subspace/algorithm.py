"""Noisy subspace iteration: the trainer that parties run together, as pure functions on integers and public arrays.

Guarantee: what a party contributes to an opening is an exact integer sum over its own users, each of whose summands has
an L2 norm of at most the release's `sensitivity`; it does not depend on how users are split over parties or blocks, bit
for bit. Nothing here draws randomness, keeps state or touches the network; `advance` reads openings and public data
only, so all of it is post-processing.

Unit of privacy: one user, who is all rows of one pseudonym at one party. Neighbours: add or remove one user.
Mechanism: sum of bounded integer vectors plus rounded Gaussian noise (`veil.privacy.mechanism`).

Letters: x_u the 0/1 row of user u; c counts; D = c^-a; mu the unit popularity direction; E (items x d) the basis.

    counts    v_u = trunc(2^20 x_u / sqrt|x_u|)                      opens sum_u v_u            (items)
    public    c by empirical Bayes; D, mu; E_0 = first d directions that the public features span
    round-t   y_u = D x_u less its mu part, unit norm                trunc(2^16 y_u)
              h_u = clip(E^T y_u, C)                                 trunc(2^16 h_u)
                                                                     opens sum_u y_u h_u^T      (items x d)
    public    E_t = left singular vectors of the shrunken opening
    publish   item factors = weighted sum of named terms (`veil.recsys.postprocess.factor_terms`)

Each round is one step of orthogonal iteration (Golub and Van Loan, "Matrix Computations", section 8.2.4) on the second
moment of the users' rows, with noise (Hardt and Price, "The Noisy Power Method", NeurIPS 2014); it maximises the
objective sum_u |E^T y_u|^2, that is, it fits a linear autoencoder of rank d.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from veil.errors import ConfigError, InputError, StateError
from veil.jobs.spec import JobSpec, Release, SubspaceTrainer
from veil.privacy.mechanism import outer_sensitivity, outer_sum, to_grid, variance_factor, vector_sensitivity
from veil.recsys import postprocess
from veil.recsys.artifact import RecommenderPublication
from veil.recsys.catalogue import Catalogue
from veil.recsys.interactions import Interactions
from veil.recsys.model import MAX_DIMENSIONS, Model
from veil.recsys.trained import Trained
from veil.trainers.rows import PartyRows
from veil.trainers.seam import Expected, PublicState, check_releases

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

COUNT_BITS: Final = 20
# 16 + 16 bits: 2^31 users of clip 1 fit a signed 64-bit sum, and the steps (1.5e-5) lie far below entries of a row
# (0.01) and below the noise (clip times multiplier). A float64 product of one block is exact far beyond a block.
ROW_BITS: Final = 16
PROJECTION_BITS: Final = 16
_BASIS_BITS: Final = 20
_BLOCK_ENTRIES: Final = 1 << 22
DEGENERATE: Final = 1e-9
"""A row of which the popularity direction leaves less than this share of the squared norm counts as empty."""
_MAX_BASIS_ENTRY: Final = 1.0 + 1e-3

MIX_PREFIX: Final = "mix-"
COUNTS: Final = "counts"


def count_sensitivity() -> int:
    """Bound on the L2 norm of one user's summand of the release "counts", in grid steps."""
    return vector_sensitivity(1.0, COUNT_BITS)


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
        if (spec.catalogue.digest, spec.catalogue.items) != (catalogue.digest, catalogue.items):
            raise ConfigError(
                f"got catalogue {catalogue.digest} of {catalogue.items} items, expected {spec.catalogue.digest}"
                f" of {spec.catalogue.items}",
                hint="load the catalogue that the job names",
            )
        columns = trainer.dimensions * (trainer.rounds > 0) + trainer.content_dimensions + postprocess.USER_TERMS
        if columns > MAX_DIMENSIONS:
            raise ConfigError(f"got a user vector of {columns} entries, expected at most {MAX_DIMENSIONS}")
        if trainer.rounds and trainer.dimensions >= catalogue.items:
            raise ConfigError(
                f"got {trainer.dimensions} dimensions for {catalogue.items} items, expected fewer than items"
            )
        # All of them, though a catalogue without text needs fewer: a job must not fail after it has spent its budget.
        options = {MIX_PREFIX + name for name in postprocess.TERMS}
        if set(trainer.options) != options:
            got = ", ".join(sorted(trainer.options)) or "none"
            raise ConfigError(f"got trainer options {got}, expected {', '.join(sorted(options))}")
        self.spec = spec
        self.trainer = trainer
        self.catalogue = catalogue
        self.steps: list[str] = [COUNTS, *(f"round-{t}" for t in range(1, trainer.rounds + 1))]
        self._mixing = {name.removeprefix(MIX_PREFIX): weight for name, weight in trainer.options.items()}
        check_releases(spec, self._expected())

    def _expected(self) -> Iterator[Expected]:
        items, trainer = self.catalogue.items, self.trainer
        yield Expected(COUNTS, (items,), count_sensitivity())
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
            return _count_sum(interactions)
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
        trained = self.trained(step, opened, public_state)
        if step != self.steps[-1]:
            if trained.basis is None:
                raise StateError("got no basis after a step that is not the last, expected one")
            return {"counts": trained.counts.astype(np.float32), "basis": trained.basis.astype(np.float32)}
        model = trained.model(self._mixing)
        return {
            "item_factors": model.item_factors,
            "fold_in": model.fold_in,
            "norm_terms": model.norm_terms,
            "collaborative": np.array([model.collaborative], np.int64),
            "taste_centre": np.array([model.taste_centre], np.float32),
            "score_scale": np.array([model.score_scale], np.float32),
        }

    def trained(self, step: str, opened: Int64, public_state: PublicState) -> Trained:
        """What is known after an opening, before mixing weights make a model of it. Arguments as for `advance`."""
        release = self.spec.release(step)
        if opened.shape != release.shape or opened.dtype != np.int64:
            raise InputError(f"got an opening {opened.dtype}{opened.shape}, expected int64{release.shape}")
        trainer = self.trainer
        basis: Float64 | None = None
        strength: Float64 | None = None
        if step == COUNTS:
            noise_sd = self._noise_sd(release) * 2.0**-COUNT_BITS
            counts = postprocess.posterior_counts(opened.astype(np.float64) * 2.0**-COUNT_BITS, noise_sd, self._design)
            # As the state carries them, so that later steps see the same numbers.
            counts = counts.astype(np.float32).astype(np.float64)
            directions = self._directions(counts)
            if trainer.rounds:
                basis = directions.start(trainer.dimensions)
        else:
            counts, _ = self._training_state(public_state)
            directions = self._directions(counts)
            grid = 2.0 ** -(ROW_BITS + PROJECTION_BITS)
            total = opened.astype(np.float64) * grid
            basis, strength = postprocess.shrink_sum(total, self._noise_sd(release) * grid, counts, directions)
        return Trained(counts, trainer.popularity_power, directions, trainer.content_dimensions, basis, strength)

    def publish(self, public_state: PublicState) -> RecommenderPublication:
        """What is published: `model` with the catalogue's ids and titles."""
        return RecommenderPublication(self.model(public_state), self.catalogue)

    def model(self, public_state: PublicState) -> Model:
        """The model, from the state after the last step: a copy of arrays, so equal at every party."""
        if "item_factors" not in public_state:
            raise StateError("got a training that is not finished, expected the state after the last opening")
        return Model(
            item_factors=_array(public_state, "item_factors"),
            fold_in=_array(public_state, "fold_in"),
            norm_terms=_array(public_state, "norm_terms"),
            collaborative=int(_array(public_state, "collaborative", np.int64).flat[0]),
            taste_centre=float(_array(public_state, "taste_centre").flat[0]),
            score_scale=float(_array(public_state, "score_scale").flat[0]),
        )

    @cached_property
    def _design(self) -> Float64:
        return postprocess.feature_design(self.catalogue.features)

    def _directions(self, counts: Float64) -> postprocess.Directions:
        weight, direction = postprocess.item_weights(counts, self.trainer.popularity_power)
        return postprocess.public_directions(self._design, counts, weight, direction)

    def _noise_sd(self, release: Release) -> float:
        # What lies on the opened total, which for the source "parties" is more than what the accounting counts.
        return release.sigma * math.sqrt(variance_factor(self.spec.privacy.noise.source, len(self.spec.parties)))

    def _training_state(self, public_state: PublicState) -> tuple[Float64, Float64]:
        items, dimensions = self.catalogue.items, self.trainer.dimensions
        counts, basis = _array(public_state, "counts"), _array(public_state, "basis")
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


def central_trained(
    spec: JobSpec,
    catalogue: Catalogue,
    interactions: Interactions,
    noise: Callable[[Release], Int64],
) -> Trained:
    """As `central_run` (`veil.trainers.registry`), but stops before mixing weights make a model of what was found: for
    fitting those (`baseline.mixing`)."""
    algorithm = SubspaceAlgorithm(spec, catalogue)
    rows = PartyRows(interactions)
    state: PublicState = {}
    for step in algorithm.steps[:-1]:
        total = algorithm.contribution(step, rows, state) + noise(spec.release(step))
        state = algorithm.advance(step, total, state)
    step = algorithm.steps[-1]
    return algorithm.trained(step, algorithm.contribution(step, rows, state) + noise(spec.release(step)), state)


def _count_sum(interactions: Interactions) -> Int64:
    # Sensitivity: all n entries of a user's row are one integer v with n v^2 <= 2^40, so the norm is at most 2^20.
    lengths = interactions.lengths()
    present = np.maximum(lengths, 1)
    value = np.floor(2.0**COUNT_BITS / np.sqrt(present)).astype(np.int64)
    bound = np.int64(count_sensitivity()) ** 2
    value -= (present * np.square(value) > bound).astype(np.int64)
    if bool((present * np.square(value) > bound).any()):
        raise StateError("got a row above its norm, expected none")
    total = np.zeros(interactions.items, np.int64)
    np.add.at(total, interactions.indices, np.repeat(value, lengths))
    return total


def _array(state: PublicState, name: str, dtype: type[np.generic] = np.float32) -> npt.NDArray[Any]:
    array = state.get(name)
    if array is None or array.dtype != dtype or not array.size:
        raise InputError(f"got no {np.dtype(dtype)} array {name!r} in the public state, expected one")
    return array
