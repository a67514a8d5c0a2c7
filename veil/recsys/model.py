"""The trained recommender: item factors for the scoring side, and what a client needs to turn a history into a vector.

Guarantee: `scores = item_factors @ user_vector(history)`; every entry of a user vector lies in [-1, 1] and every score
in [-score_scale, score_scale], whatever the history. The arrays derive from noised openings and public data alone.

The user vector q of a history H of n distinct items, all of it plaintext work at the client:

    (1) linear part   z = sum over i in H of fold_in[i, :L]          L = D - 3
    (2) its length    r^2 = sum norm_terms[i, 0] - (sum norm_terms[i, 1])^2
                      = |y|^2 for y = D x less its part along the popularity direction (`veil.trainers.subspace`)
    (3) q[:L] = z / r, or 0 when r^2 is below 1e-9 of its first summand (an empty history, for one)
    (4) q[L] = 1
    (5) q[L + 1] = clip((ln max(n, 1) - 4.6) / 0.95, -2, 2) / 2
    (6) q[L + 2] = clip((mean over H of fold_in[i, L + 2] - taste_centre) / 0.5, -2, 2) / 2, or 0 for no history

fold_in[:, L] and fold_in[:, L + 1] are 0; fold_in[:, L + 2] is the logarithm of the item's (noised) count. q[:L] has
two parts, the collaborative and the content directions, each orthonormal, so each part has norm at most 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from veil.errors import ArtifactError, InputError
from veil.recsys.interactions import Interactions
from veil.recsys.postprocess import LENGTH_CENTRE, LENGTH_SCALE, TASTE_SCALE, USER_TERM_LIMIT, USER_TERMS

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

MAX_DIMENSIONS = 128
"""Longest user vector; what the encrypted scoring packs into one ciphertext row."""

_SCALE_SLACK = 1.0 + 1e-5
_DEGENERATE = 1e-9
_USER_BLOCK = 4096


@dataclass(frozen=True, eq=False, repr=False)
class FoldIn:
    """The client's part of a model: from a history to a user vector. Raises `ArtifactError` when malformed.

    Attributes:
        fold_in: float32[items, D].
        norm_terms: float32[items, 2]: squared item weight, and weight times popularity direction.
        collaborative: how many of the first columns are collaborative; columns from there to D - 3 are content.
        taste_centre: the mean log count that step (6) subtracts.
    """

    fold_in: Float32
    norm_terms: Float32
    collaborative: int
    taste_centre: float

    def __post_init__(self) -> None:
        """Checks shapes, types and finiteness."""
        shape = self.fold_in.shape
        if len(shape) != 2 or shape[0] < 1 or not USER_TERMS <= shape[1] <= MAX_DIMENSIONS:
            raise ArtifactError(f"got fold-in of shape {shape}, expected (items, {USER_TERMS} to {MAX_DIMENSIONS})")
        _check_array("fold_in", self.fold_in, shape)
        _check_array("norm_terms", self.norm_terms, (shape[0], 2))
        if not 0 <= self.collaborative <= shape[1] - USER_TERMS:
            raise ArtifactError(
                f"got {self.collaborative} collaborative columns, expected 0 to {shape[1] - USER_TERMS}"
            )
        if not math.isfinite(self.taste_centre):
            raise ArtifactError("got a taste centre that is not finite")

    @property
    def items(self) -> int:
        """Number of items."""
        return int(self.fold_in.shape[0])

    @property
    def dimensions(self) -> int:
        """D, the length of a user vector."""
        return int(self.fold_in.shape[1])

    def user_vector(self, history: npt.ArrayLike) -> Float32:
        """float32[D] in [-1, 1] for one history, int[n] of item numbers; order and repeats do not matter.

        Raises `InputError` when an item number is out of range.
        """
        met = np.unique(np.asarray(history, dtype=np.int64).reshape(-1))
        if len(met) and (met[0] < 0 or met[-1] >= self.items):
            raise InputError(f"got an item number outside 0 to {self.items - 1}, expected items of this model")
        # Only the history's rows: a client folds in a few hundred items of perhaps millions.
        sums = self.fold_in[met].astype(np.float64).sum(axis=0, keepdims=True)
        norms = self.norm_terms[met].astype(np.float64).sum(axis=0, keepdims=True)
        vector: Float32 = self._vectors(sums, norms, np.array([len(met)]))[0]
        return vector

    def user_vectors(self, interactions: Interactions) -> Float32:
        """float32[users, D]: the vector of every user. Raises `InputError` when the items are not this model's."""
        if interactions.items != self.items:
            raise InputError(f"got interactions on {interactions.items} items, expected {self.items}")
        fold_in, norm_terms = self.fold_in.astype(np.float64), self.norm_terms.astype(np.float64)
        out = np.empty((interactions.users, self.dimensions), np.float32)
        for start in range(0, interactions.users, _USER_BLOCK):
            part = interactions.rows(slice(start, start + _USER_BLOCK))
            met = part.to_sparse(np.float64)
            out[start : start + part.users] = self._vectors(met @ fold_in, met @ norm_terms, part.lengths())
        return out

    def _vectors(self, sums: Float64, norms: Float64, counts: npt.NDArray[np.int64]) -> Float32:
        linear = self.dimensions - USER_TERMS
        squared = norms[:, 0] - np.square(norms[:, 1])
        sound = squared > _DEGENERATE * norms[:, 0]
        length = np.sqrt(np.where(sound, squared, 1.0))
        out = np.zeros_like(sums)
        out[:, :linear] = np.where(sound[:, None], sums[:, :linear] / length[:, None], 0.0)
        out[:, linear] = 1.0
        present = np.maximum(counts, 1)
        out[:, linear + 1] = _bounded((np.log(present) - LENGTH_CENTRE) / LENGTH_SCALE)
        taste = sums[:, linear + 2] / present
        out[:, linear + 2] = _bounded((taste - self.taste_centre) / TASTE_SCALE) * (counts > 0)
        return np.clip(out, -1.0, 1.0).astype(np.float32)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(items={self.items}, dimensions={self.dimensions})"


@dataclass(frozen=True, eq=False, repr=False)
class Model(FoldIn):
    """A published recommender: the client's part and the scoring side's.

    Attributes:
        item_factors: float32[items, D], the scoring side's part.
        score_scale: bound on the magnitude of any score.
    """

    item_factors: Float32
    score_scale: float

    def __post_init__(self) -> None:
        """Checks everything, the score bound included."""
        FoldIn.__post_init__(self)
        _check_array("item_factors", self.item_factors, self.fold_in.shape)
        bound = score_bound(self.item_factors, self.collaborative)
        if not (math.isfinite(self.score_scale) and self.score_scale >= bound):
            raise ArtifactError(f"got score scale {self.score_scale}, expected at least {bound:.6g}")

    def scores(self, user_vectors: Float32) -> Float32:
        """float32[users, items] for float32[users, D], in plaintext: what encrypted scoring reproduces."""
        return np.asarray(user_vectors @ self.item_factors.T, dtype=np.float32)


def score_bound(item_factors: Float32, collaborative: int) -> float:
    """Largest magnitude that a score can have: over items, |collaborative part| + |content part| + the user terms' sum.

    By Cauchy and Schwarz, since the two parts of a user vector have norm at most 1 and its last three entries lie in
    [-1, 1]; with 1e-5 on top for float32.
    """
    factors = item_factors.astype(np.float64)
    linear = factors.shape[1] - USER_TERMS
    bound = np.linalg.norm(factors[:, :collaborative], axis=1) + np.linalg.norm(
        factors[:, collaborative:linear], axis=1
    )
    return float((bound + np.abs(factors[:, linear:]).sum(axis=1)).max()) * _SCALE_SLACK


def _bounded(values: Float64) -> Float64:
    return np.clip(values, -USER_TERM_LIMIT, USER_TERM_LIMIT) / USER_TERM_LIMIT


def _check_array(name: str, array: Float32, shape: tuple[int, ...]) -> None:
    if array.dtype != np.float32 or array.shape != shape:
        raise ArtifactError(f"got {name} {array.dtype}{array.shape}, expected float32{shape}")
    if not bool(np.isfinite(array).all()):
        raise ArtifactError(f"got {name} with entries that are not finite, expected finite numbers")
