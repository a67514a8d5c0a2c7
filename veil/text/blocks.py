"""Embeddings of a whole item table, phrasing by phrasing, and the linear map from them to a catalogue's text features.

Guarantee: functions of public item facts and of the encoder alone. `TextMap.fit` refuses an encoder that is not the one
that a catalogue's features were made with, so that new items land in the same space as the old ones.

The text features of a catalogue are a linear function of the joined embeddings (weighted phrasings side by side, less
their mean, projected on principal components, scaled: `veil.recsys.features.text_block`). The map is therefore found
again, exactly, by least squares from the catalogue's own features; nothing but the catalogue has to be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from veil.errors import ConfigError, DataError
from veil.text import phrasing as phrases

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Embed = Callable[[Sequence[str]], Float32]

MAX_FIT_ITEMS = 8192
"""Items that a map is fitted on: several times the width of the joined embeddings, evenly spaced in the catalogue."""

_WORST_RESIDUAL = 1e-2
# Directions in which the embeddings of the catalogue hardly vary say nothing of new items: rounding would be amplified.
_LEAST_SINGULAR_VALUE = 1e-5


def joined_embeddings(table: phrases.Items, embed: Embed, phrasing: str) -> Float64:
    """float64[items, phrasings x D]: the embeddings under each phrasing of the set times its weight, side by side.

    embed: texts in, float32[texts, D] out (`TextEncoder.encode`). Raises `ConfigError` on an unknown phrasing and
    `DataError` on embeddings of a wrong shape or not finite.
    """
    blocks = []
    for weight, texts in phrases.sentences(table, phrasing):
        vectors = np.asarray(embed(texts), dtype=np.float64)
        if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
            raise DataError(f"got embeddings of shape {vectors.shape}, expected {len(texts)} finite rows")
        blocks.append(weight * vectors)
    return np.concatenate(blocks, axis=1)


@dataclass(frozen=True, eq=False, repr=False)
class TextMap:
    """From joined embeddings to text features: (x - mean) @ matrix.

    Attributes:
        mean: float64[phrasings x D]; matrix: float64[phrasings x D, columns].
    """

    mean: Float64
    matrix: Float64

    @classmethod
    def fit(cls, joined: Float64, features: npt.NDArray[np.floating]) -> TextMap:
        """The map of which `features` are the image. Raises `ConfigError` when there is none.

        joined: float64[items, phrasings x D], features: real[items, columns], of the same items. With fewer items than
        embedding columns the shortest such map, which is that of the principal components.
        """
        mean = joined.mean(axis=0)
        offset = features.mean(axis=0, dtype=np.float64)
        centred, wanted = joined - mean, features.astype(np.float64) - offset
        matrix = np.linalg.lstsq(centred, wanted, rcond=_LEAST_SINGULAR_VALUE)[0]
        residual = float(np.linalg.norm(centred @ matrix - wanted)) / max(float(np.linalg.norm(wanted)), 1e-30)
        if residual > _WORST_RESIDUAL:
            raise ConfigError(
                f"got text features of which this encoder explains all but {residual:.0%}, expected all but 1% at most",
                hint="use the encoder and the phrasing that the catalogue names",
            )
        # A part of the catalogue need not be centred as the whole is: x - mean + offset's preimage is one more shift.
        shift = np.linalg.lstsq(matrix.T, offset, rcond=None)[0]
        return cls(mean - shift, matrix)

    def apply(self, joined: Float64) -> Float64:
        """float64[items, columns] for joined embeddings of any items."""
        return (joined - self.mean) @ self.matrix

    def __repr__(self) -> str:
        return f"TextMap({self.matrix.shape[0]} -> {self.matrix.shape[1]})"
