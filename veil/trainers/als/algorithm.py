"""Private alternating least squares: noised sufficient statistics of the items, users folded in where they are.

Guarantee: what a party contributes to an opening is an exact integer sum over its own users, each of whose summands has
an L2 norm of at most the release's `sensitivity`, whatever the public state says; it does not depend on how users are
split over parties or blocks, bit for bit. `advance` reads openings and public data only, so all of it is
post-processing.

Unit of privacy: one user, who is all rows of one pseudonym at one party. Neighbours: add or remove one user.
Mechanism: sum of bounded integer vectors plus rounded Gaussian noise (`veil.privacy.mechanism`).

Letters: x_u the 0/1 row of user u; c counts; D = c^-a; y_u = D x_u less its part along the popularity direction, at
unit norm; V (items x d) the item factors; P the public fold-in map of V (`solve.fold_map`); h_u = P^T y_u at unit norm.

    counts         trunc(2^20 x_u / sqrt|x_u|)                                      opens sum_u of it       (items)
    item-gram-t    trunc(2^12 x_u / sqrt|x_u|) g_u^T, g_u the entries 5 h_j^2 and 7 h_j h_k, j < k, of h_u on 2^-10
                                                         only with gram = "item"    opens sum_u  (items x d (d + 1) / 2)
    round-t        (trunc(2^16 y_u), trunc(2^14 h_u)) trunc(2^16 h_u)^T             opens sum_u           (items + d, d)
    public         V, then P, from the statistics of all rounds so far, newer ones weighing more

The first `items` rows of a round are B = sum_u y_u h_u^T, the last d the global Gram matrix A = sum_u h_u h_u^T: one
opening carries both, with 1/17 of its budget for the Gram matrix. h_u has unit norm and not only a bounded one: a user
who is folded in weakly would cost the same budget and add less.

The scheme is that of Chien et al. 2021 ("Private Alternating Least Squares: Practical Private Matrix Completion with
Tighter Rates", ICML, arXiv 2107.09802), which releases B and a Gram matrix for each item; `gram = "global"` replaces
those by one matrix, exact where every user counts for every item, and leaves their budget to B. The prior on V is that
of Curmei et al. 2023 ("Private Matrix Factorization with Public Item Features", RecSys, arXiv 2309.11516). Averaging
the statistics of rounds is ours: rounds describe the same users in nearly the same coordinates, so that budget spent on
an earlier one is not lost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from veil.errors import ConfigError, InputError
from veil.jobs.spec import AlsTrainer, JobSpec
from veil.privacy.mechanism import to_grid
from veil.privacy.sources import total_sd
from veil.recsys import postprocess
from veil.recsys.artifact import RecommenderPublication
from veil.recsys.catalogue import Catalogue
from veil.recsys.model import MAX_DIMENSIONS, Model
from veil.recsys.trained import Trained
from veil.trainers.als import solve
from veil.trainers.als.statistics import (
    BESIDE_DIAGONAL,
    GRAM_DIVISOR,
    ITEM_GRAM_STEP,
    ON_DIAGONAL,
    ROUND_STEP,
    ROW_BITS,
    item_gram_sensitivity,
    item_gram_sum,
    item_grams,
    round_sensitivity,
    round_statistics,
    round_sum,
    triangle_size,
)
from veil.trainers.linear import COUNT_BITS, COUNTS, array_of, count_sensitivity, count_sum, model_of, model_state
from veil.trainers.rows import PartyRows
from veil.trainers.seam import Expected, Int64, PublicState, check_catalogue, check_releases
from veil.trainers.subspace.algorithm import unit_rows

Float64 = npt.NDArray[np.float64]

_MAP_BITS: Final = 20
_BLOCK_ENTRIES: Final = 1 << 22
_MAX_MAP_ENTRY: Final = 1.0 + 1e-3
# What an earlier round's statistics count beside the next one's.
_FORGETTING: Final = 0.8
# sqrt of a usual history length: how counts, in which a user's n entries weigh 1 / sqrt n, hint at the number of users.
_COUNTS_PER_USER: Final = 10.0

# Noise of an entry of the pooled B, for each item's mean share of the users: where each set of mixing weights holds.
MIXING_NOISE: Final = (0.48, 1.1, 3.4, 12.0)


def mixing_option(level: int, term: str) -> str:
    """Name of the option that holds a term's mixing weight at `MIXING_NOISE[level]`."""
    return f"mix-{level + 1}-{term}"


MIXING_OPTIONS: Final = frozenset(
    mixing_option(level, term) for level in range(len(MIXING_NOISE)) for term in postprocess.TERMS
)
"""Every option that a job must give: for each noise level, one weight a term."""


class AlsAlgorithm:
    """The trainer of one job. Raises `ConfigError` when job, releases and catalogue do not fit together."""

    def __init__(self, spec: JobSpec, catalogue: Catalogue) -> None:
        trainer = spec.trainer
        if not isinstance(trainer, AlsTrainer):
            raise ConfigError(f"got a job of trainer {trainer.kind!r}, expected als")
        check_catalogue(spec, catalogue)
        columns = trainer.dimensions + trainer.content_dimensions + postprocess.USER_TERMS
        if columns > MAX_DIMENSIONS:
            raise ConfigError(f"got a user vector of {columns} entries, expected at most {MAX_DIMENSIONS}")
        if trainer.dimensions >= catalogue.items:
            raise ConfigError(
                f"got {trainer.dimensions} dimensions for {catalogue.items} items, expected fewer than items"
            )
        if set(trainer.options) != MIXING_OPTIONS:
            got = ", ".join(sorted(trainer.options)) or "none"
            raise ConfigError(f"got trainer options {got}, expected {', '.join(sorted(MIXING_OPTIONS))}")
        self.spec = spec
        self.trainer = trainer
        self.catalogue = catalogue
        self.steps: list[str] = [expected.name for expected in self._expected()]
        check_releases(spec, self._expected())

    def _expected(self) -> Iterator[Expected]:
        items, trainer = self.catalogue.items, self.trainer
        d = trainer.dimensions
        yield Expected(COUNTS, (items,), count_sensitivity())
        for number in range(1, trainer.rounds + 1):
            if trainer.gram == "item":
                yield Expected(f"item-gram-{number}", (items, triangle_size(d)), item_gram_sensitivity())
            yield Expected(f"round-{number}", (items + d, d), round_sensitivity())

    def contribution(self, step: str, rows: PartyRows, public_state: PublicState) -> Int64:
        """The exact sum over the given users, int64 of the release's shape, in grid steps.

        Raises `InputError` when the interactions are on another number of items or the state is malformed.
        """
        release = self.spec.release(step)
        interactions = rows.need_interactions()
        if interactions.items != self.catalogue.items:
            raise InputError(f"got interactions on {interactions.items} items, expected {self.catalogue.items}")
        if step == COUNTS:
            return count_sum(interactions)
        counts, fold_map = self._counts(public_state), self._map(public_state)
        weight, direction = postprocess.item_weights(counts, self.trainer.popularity_power)
        grid_map = np.rint(fold_map * 2.0**_MAP_BITS)
        total = np.zeros(release.shape, np.int64)
        step_users = max(1, _BLOCK_ENTRIES // self.catalogue.items)
        for start in range(0, interactions.users, step_users):
            block = interactions.rows(slice(start, start + step_users))
            gridded = to_grid(unit_rows(block, weight, direction), 1.0, ROW_BITS)
            # Exact: integers with |sum| and all partial sums at most 2^16 * 2^20 * sqrt(items), below 2^53 for items
            # below 2^34. Hence no dependence on the block or on the linear algebra library. As integers, rows that are
            # not 0 have a norm of 1 at least, so that clipping to norm 1 brings every one of them to it.
            folded = gridded.astype(np.float64) @ grid_map
            total += item_gram_sum(block, folded) if step.startswith("item-gram-") else round_sum(gridded, folded)
        return total

    def advance(self, step: str, opened: Int64, public_state: PublicState) -> PublicState:
        """The public state after an opening: int64 of the release's shape, noise included, in grid steps.

        After the last step the state holds the model's arrays. Raises `InputError` when opening or state is malformed.
        """
        self._check_opening(step, opened)
        if step == COUNTS:
            return self._after_counts(opened)
        if step.startswith("item-gram-"):
            return self._added("item_grams", step, opened.astype(np.float64) * ITEM_GRAM_STEP, public_state)
        if step == self.steps[-1]:
            trained, noise = self._after_last(step, opened, public_state)
            return model_state(trained.model(self._mixing(noise)))
        state = self._added("statistics", step, opened.astype(np.float64) * ROUND_STEP, public_state)
        factors, _, ratio = self._solved(step, state)
        return {**state, "map": solve.fold_map(factors, ratio).astype(np.float32)}

    def trained(self, step: str, opened: Int64, public_state: PublicState) -> Trained:
        """What is known after the last opening, before mixing weights make a model of it. As `advance` otherwise."""
        self._check_opening(step, opened)
        return self._after_last(step, opened, public_state)[0]

    def publish(self, public_state: PublicState) -> RecommenderPublication:
        """What is published: `model` with the catalogue's ids and titles."""
        return RecommenderPublication(self.model(public_state), self.catalogue)

    def model(self, public_state: PublicState) -> Model:
        """The model, from the state after the last step."""
        return model_of(public_state)

    def _check_opening(self, step: str, opened: Int64) -> None:
        shape = self.spec.release(step).shape
        if opened.shape != shape or opened.dtype != np.int64:
            raise InputError(f"got an opening {opened.dtype}{opened.shape}, expected int64{shape}")

    def _after_counts(self, opened: Int64) -> PublicState:
        noise_sd = total_sd(self.spec, self.spec.release(COUNTS)) * 2.0**-COUNT_BITS
        counts = postprocess.posterior_counts(opened.astype(np.float64) * 2.0**-COUNT_BITS, noise_sd, self._design)
        # As the state carries them, so that later steps see the same numbers.
        counts = counts.astype(np.float32).astype(np.float64)
        factors = solve.start_factors(self._directions(counts), self.trainer.dimensions)
        users = float(counts.sum()) / _COUNTS_PER_USER
        ratio = solve.noise_ratio(self._pooled_sd("round-1"), self.catalogue.items, users)
        return {"counts": counts.astype(np.float32), "map": solve.fold_map(factors, ratio).astype(np.float32)}

    def _after_last(self, step: str, opened: Int64, public_state: PublicState) -> tuple[Trained, float]:
        state = self._added("statistics", step, opened.astype(np.float64) * ROUND_STEP, public_state)
        factors, gram_root, _ = self._solved(step, state)
        counts, trainer = self._counts(state), self.trainer
        basis, strength = solve.predictor(factors, gram_root)
        trained = Trained(
            counts=counts,
            power=trainer.popularity_power,
            directions=self._directions(counts),
            content_dimensions=trainer.content_dimensions,
            basis=basis,
            strength=strength,
        )
        return trained, self._pooled_sd(step) * self.catalogue.items / self._users(step, state)

    def _solved(self, step: str, state: PublicState) -> tuple[Float64, Float64, float]:
        """(V, A^(1/2), noise ratio of the round to come) from the pooled statistics."""
        items, counts = self.catalogue.items, self._counts(state)
        cross, gram = self._statistics(step, state)
        noise_sd = self._pooled_sd(step)
        directions = self._directions(counts)
        users = self._users(step, state)
        factors, gram_root = solve.solve_items(
            cross, gram, cross_sd=noise_sd, gram_sd=noise_sd * GRAM_DIVISOR, counts=counts, directions=directions
        )
        if self.trainer.gram == "item":
            packed = self._array(state, "item_grams", self.spec.release(f"item-gram-{_number(step)}").shape)
            packed_sd = self._pooled_sd(step, "item-gram", ITEM_GRAM_STEP)
            factors = solve.solve_each_item(
                factors @ gram_root @ gram_root,
                gram_root,
                item_grams(packed / self._pooled_weight(step), self.trainer.dimensions),
                users=users,
                item_gram_sd=(packed_sd / ON_DIAGONAL, packed_sd / BESIDE_DIAGONAL),
                counts=counts,
            )
        return (
            factors,
            gram_root,
            solve.noise_ratio(total_sd(self.spec, self.spec.release(step)) * ROUND_STEP, items, users),
        )

    def _statistics(self, step: str, state: PublicState) -> tuple[Float64, Float64]:
        total = self._array(state, "statistics", self.spec.release(step).shape)
        return round_statistics(total / self._pooled_weight(step), self.catalogue.items)

    def _users(self, step: str, state: PublicState) -> float:
        # |h_u| = 1, so the trace of the Gram matrix is the number of users who were folded in, with the noise's error.
        return max(float(np.trace(self._statistics(step, state)[1])), 1.0)

    def _added(self, name: str, step: str, new: Float64, public_state: PublicState) -> PublicState:
        """The state with an opening added to the forgetting sum of its kind."""
        if _number(step) > 1:
            new = new + _FORGETTING * self._array(public_state, name, new.shape)
        return {**public_state, name: new.astype(np.float32)}

    def _pooled_sd(self, step: str, kind: str = "round", grid: float = ROUND_STEP) -> float:
        variance = 0.0
        for number in range(1, _number(step) + 1):
            # What lies on the opened total, which for the source "parties" is more than what the accounting counts.
            noise_sd = total_sd(self.spec, self.spec.release(f"{kind}-{number}")) * grid
            variance = _FORGETTING**2 * variance + noise_sd**2
        return math.sqrt(variance) / self._pooled_weight(step)

    def _pooled_weight(self, step: str) -> float:
        return sum(_FORGETTING**age for age in range(_number(step)))

    def _mixing(self, noise: float) -> dict[str, float]:
        """Mixing weights for this much noise: linear in its logarithm between the levels, constant beyond them."""
        levels, options = np.log(MIXING_NOISE), self.trainer.options
        return {
            term: float(
                np.interp(
                    math.log(max(noise, 1e-300)),
                    levels,
                    [options[mixing_option(level, term)] for level in range(len(levels))],
                )
            )
            for term in postprocess.TERMS
        }

    @cached_property
    def _design(self) -> Float64:
        return postprocess.feature_design(self.catalogue.features)

    def _directions(self, counts: Float64) -> postprocess.Directions:
        weight, direction = postprocess.item_weights(counts, self.trainer.popularity_power)
        return postprocess.public_directions(self._design, counts, weight, direction)

    def _counts(self, state: PublicState) -> Float64:
        counts = self._array(state, "counts", (self.catalogue.items,))
        if counts.min() <= 0:
            raise InputError("got a state with counts that are not positive")
        return counts

    def _map(self, state: PublicState) -> Float64:
        fold_map = self._array(state, "map", (self.catalogue.items, self.trainer.dimensions))
        if np.abs(fold_map).max() > _MAX_MAP_ENTRY:
            raise InputError("got a fold-in map with entries above 1, expected at most 1")
        return fold_map

    def _array(self, state: PublicState, name: str, shape: tuple[int, ...]) -> Float64:
        array = array_of(state, name)
        if array.shape != shape:
            raise InputError(f"got a state with {name} of {array.shape}, expected {shape}")
        if not np.isfinite(array).all():
            raise InputError(f"got a state whose {name} are not finite")
        return array.astype(np.float64)


def _number(step: str) -> int:
    return int(step.rpartition("-")[2])
