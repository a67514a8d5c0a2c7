"""Decrypted scores, which remember where they came from and do not show themselves.

Guarantee: a `Scores` that has an `origin` holds exactly what was decrypted: it is read-only, and whatever is computed
from it (a copy, a slice, a product) has no origin. So `he_inference.client.release` knows the key and the error of
what it is given, or refuses it. `repr` and `str` show the number of scores, never their values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from he_inference.exchange import Offer
from he_inference.layouts.seam import Integers


@dataclass(frozen=True, eq=False)
class Origin:
    """What scores were decrypted from.

    scale: what the score of a unit vector against unit items was multiplied by, |u| times the norm of the longest item.
    unit_scores: float64[items] at full precision. unit_error: bound of their difference from the plaintext's. margin:
    for exact sets, the largest distance of a coefficient from the integer that it was rounded to, at most 1/2; 0 for
    approximate ones.
    """

    offer: Offer
    key_id: str
    scale: float
    unit_error: float
    margin: float
    unit_scores: NDArray[np.float64] = field(repr=False)


class Scores(np.ndarray[tuple[int], np.dtype[np.float32]]):
    """float32[items]: scores of all items, in the order of the catalogue. Read-only; `copy()` to change them.

    For this process only: they must not be sent back to the server, or logged where its operator reads, but through
    `ScoringClient.release` (docs/threat-model.md says why).
    """

    origin: Origin | None

    def __new__(cls, origin: Origin) -> Self:
        """Scores of that origin."""
        made = np.asarray(origin.unit_scores * origin.scale, np.float32).view(cls)
        made.origin = origin
        made.flags.writeable = False
        return made

    @property
    def error(self) -> float | None:
        """Bound of |score - plaintext score|; None for what was computed from scores."""
        return None if self.origin is None else self.origin.unit_error * self.origin.scale

    def __array_finalize__(self, source: object) -> None:
        self.origin = None

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        # What is computed from scores is an ordinary array.
        plain = [np.asarray(value) if isinstance(value, Scores) else value for value in inputs]
        return getattr(ufunc, method)(*plain, **options)

    def argsort(self, *arguments: Any, **options: Any) -> Any:
        """Numbers of items, as an ordinary array."""
        return np.asarray(self).argsort(*arguments, **options)

    def __repr__(self) -> str:
        return f"Scores({self.size} items)"

    __str__ = __repr__

    def __format__(self, specification: str) -> str:
        return format(repr(self), specification)


def exact_margin(plain_modulus: int, numbers: Integers, bits: int) -> float:
    """Largest distance from an integer of numbers t / 2^bits: what an exact decryption rounded away, at most 1/2."""
    values = numbers * (plain_modulus / 2.0**bits)
    return float(np.abs(values - np.rint(values)).max(initial=0.0))
