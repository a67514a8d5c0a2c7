"""A recommender with side information: what it scores for users with a history, with columns, with both, with neither.

Guarantee: score = <user vector, item vector> and nothing else; every entry of a user vector lies in [-1, 1] and every
score in [-score_scale, score_scale], whatever the history and the rows of columns. The arrays derive from openings and
public data alone.

    user vector    [history part of the recommender | r(n) g_1 | r(n) g_2 | ...]      g_p: the row of party p, 0 without
    item vector    [item factors of the recommender | side factors of each party]
    r(n)           half_length / (half_length + n) for a history of n items: 1 without a history

g_p is standardised and clipped exactly as in training, so |g_p| is at most its norm_share, which is at most 1. So a
client can score under encryption as it does with the recommender alone (`he_inference`): it makes the vector from its
own history and its own columns, or from those of whoever holds them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from veil.errors import ArtifactError, InputError
from veil.recsys.interactions import Interactions
from veil.recsys.model import Model
from veil.tabular.grid import encode_rows
from veil.tabular.reading import PartyTable
from veil.tabular.schema import ColumnsSchema
from veil.tabular.statistics import MOST_SCALE, Standardisation

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
_SLACK = 1.0 + 1e-5


@dataclass(frozen=True, eq=False, repr=False)
class SideModel:
    """A recommender and what other parties' columns add to it.

    Attributes:
        recommender: of interactions.
        schema: the columns, parties in rank order.
        factors: float32[items, width], parties' features in rank order.
        offset, scale: float64[width], z = (x - offset) * scale before clipping.
        half_length: a history of so many items halves what columns count.
    """

    recommender: Model
    schema: ColumnsSchema
    factors: Float32
    offset: Float64
    scale: Float64
    half_length: float

    def __post_init__(self) -> None:
        """Checks shapes, types and ranges; raises `ArtifactError`."""
        items, width = self.recommender.items, self.schema.width
        if self.factors.shape != (items, width) or self.factors.dtype != np.float32:
            raise ArtifactError(f"got side factors {self.factors.dtype}{self.factors.shape}, expected {items, width}")
        if not np.isfinite(self.factors).all():
            raise ArtifactError("got side factors that are not finite, expected finite numbers")
        # NaN fits no range.
        for name, low, high in (("offset", -1.0, 1.0), ("scale", 0.0, MOST_SCALE)):
            array = getattr(self, name)
            if array.shape != (width,) or array.dtype != np.float64 or not ((low <= array) & (array <= high)).all():
                raise ArtifactError(f"got another {name}, expected {width} numbers from {low:g} to {high:g}, float64")
        if not (math.isfinite(self.half_length) and self.half_length > 0):
            raise ArtifactError(f"got a half length of {self.half_length}, expected a positive number")

    def __repr__(self) -> str:
        return f"SideModel(items={self.items}, dimensions={self.dimensions})"

    @property
    def items(self) -> int:
        """Number of items."""
        return self.recommender.items

    @property
    def dimensions(self) -> int:
        """Length of a user vector."""
        return self.recommender.dimensions + self.schema.width

    @property
    def score_scale(self) -> float:
        """Bound on the magnitude of any score: the recommender's, and each party's by Cauchy and Schwarz."""
        total = np.zeros(self.items)
        for one in self.schema.parties:
            part = self.factors[:, self.schema.place(one.party)].astype(np.float64)
            total += one.norm_share * np.linalg.norm(part, axis=1)
        return (self.recommender.score_scale + float(total.max(initial=0.0))) * _SLACK

    def item_vectors(self) -> Float32:
        """float32[items, dimensions]: what a scoring server holds."""
        return np.concatenate([self.recommender.item_factors, self.factors], axis=1)

    def side_rows(self, table: PartyTable) -> Float32:
        """One party's rows as they stand in user vectors without a history, float32[rows, own width]."""
        place = self.schema.place(table.party.party)
        standardisation = Standardisation(self.offset[place], self.scale[place], None, 1.0)
        grid = encode_rows(self.schema, table, standardisation)
        return (grid / 2.0**self.schema.bits).astype(np.float32)

    def user_vector(self, history: npt.ArrayLike, side: Mapping[str, npt.ArrayLike] | None = None) -> Float32:
        """float32[dimensions] for one history, int[n] of item numbers, and rows of `side_rows` by party, some or none.

        Raises `InputError` for an item or a row that is not of this model.
        """
        met = np.unique(np.asarray(history, dtype=np.int64).reshape(-1))
        vector = self.recommender.user_vector(met)
        rows = {party: np.asarray(row, np.float32).reshape(1, -1) for party, row in (side or {}).items()}
        found: Float32 = self._joined(vector[None], np.array([len(met)]), rows)[0]
        return found

    def user_vectors(self, interactions: Interactions, side: Mapping[str, Float32] | None = None) -> Float32:
        """float32[users, dimensions]: the vector of every user; `side` as above, one row for each user, 0 for none."""
        vectors = self.recommender.user_vectors(interactions)
        return self._joined(vectors, interactions.lengths(), side or {})

    def scores(self, user_vectors: Float32, items: Sequence[int] | None = None) -> Float32:
        """float32[users, items], or for these items alone: in plaintext, what encrypted scoring reproduces."""
        vectors = self.item_vectors()
        chosen = vectors if items is None else vectors[np.asarray(items, np.int64)]
        return np.asarray(user_vectors @ chosen.T, dtype=np.float32)

    def _joined(self, history: Float32, lengths: npt.NDArray[np.int64], side: Mapping[str, Float32]) -> Float32:
        unknown = sorted(set(side) - {one.party for one in self.schema.parties})
        if unknown:
            raise InputError(f"got columns of {unknown[0]!r}, expected those of the model's parties")
        out = np.zeros((len(history), self.dimensions), np.float32)
        out[:, : self.recommender.dimensions] = history
        counts = (self.half_length / (self.half_length + lengths))[:, None].astype(np.float32)
        for party, rows in side.items():
            place = self.schema.place(party)
            if rows.shape != (len(history), place.stop - place.start):
                raise InputError(f"got columns of shape {rows.shape} for {party}, expected one row for each user")
            norms = np.sqrt(np.square(rows.astype(np.float64)).sum(axis=1))
            if not (norms <= self.schema.of(party).norm_share * _SLACK).all():
                raise InputError(f"got a row of {party} longer than its share of the norm, expected rows of side_rows")
            first = self.recommender.dimensions
            out[:, first + place.start : first + place.stop] = counts * rows
        return out
