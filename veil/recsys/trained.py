"""What training found, private or plaintext, on its way to a model.

Guarantee: a pure function of its fields; both trainers end here, so that their models have one form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from veil.recsys import postprocess
from veil.recsys.model import Model, score_bound

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class Trained:
    """What training found, private or plaintext, before mixing weights make a model of it.

    Attributes:
        counts: float64[items] > 0.
        power: a in D = c^-a.
        directions: what the public features span under these counts.
        content_dimensions: how many of them a user vector holds at most.
        basis: float64[items, d], orthonormal, and strength: float64[d] >= 0; None where there was no round.
        rarity: how much more a match counts for a rare item (`veil.recsys.postprocess.factor_terms`).
    """

    counts: Float64
    power: float
    directions: postprocess.Directions
    content_dimensions: int
    basis: Float64 | None
    strength: Float64 | None
    rarity: float = postprocess.RARITY

    def terms(self) -> dict[str, postprocess.Term]:
        """The summands of the item factors by name."""
        return postprocess.factor_terms(
            self.counts, self.directions, self.content_dimensions, self.basis, self.strength, self.rarity
        )

    def model(self, mixing: Mapping[str, float]) -> Model:
        """The model. mixing: a weight for each name in `terms()`; raises `ConfigError` when one is missing."""
        items = len(self.counts)
        weight, direction = postprocess.item_weights(self.counts, self.power)
        content = self.directions.vectors[:, : self.content_dimensions]
        used = content if self.basis is None else np.concatenate([self.basis, content], axis=1)
        collaborative = used.shape[1] - content.shape[1]
        columns = used.shape[1] + postprocess.USER_TERMS
        fold_in = np.zeros((items, columns))
        # y.w = (D x).(w - mu mu.w) / |y|: the client applies D and the projection per item, and divides once.
        fold_in[:, : used.shape[1]] = weight[:, None] * (used - np.outer(direction, direction @ used))
        log_count = np.log(self.counts)
        fold_in[:, -1] = log_count
        item_factors = postprocess.combine(self.terms(), mixing, columns).astype(np.float32)
        scale = np.nextafter(np.float32(score_bound(item_factors, collaborative)), np.float32(np.inf))
        return Model(
            item_factors=item_factors,
            fold_in=fold_in.astype(np.float32),
            norm_terms=np.stack([np.square(weight), weight * direction], axis=1).astype(np.float32),
            collaborative=collaborative,
            taste_centre=float(np.float32((self.counts @ log_count) / self.counts.sum())),
            score_scale=float(scale),
        )
