"""What a canary asks and how an answer is judged: random vectors or histories, against plaintext scores.

Guarantee: questions are drawn afresh from the system's randomness and are of nobody. An answer holds when every score
is within its stated bound and the ten best are plaintext's but among scores closer than that. The bound of a history's
scores follows from the answer itself, so a wrong answer might state one that it keeps: bounds that leave much of the
scores open do not hold. All is for items scaled to a longest norm of 1.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from he_inference.encoding.deviation import stated_error
from he_inference.exchange import Offer
from he_inference.layouts import tower
from he_inference.layouts.history import HistoryLayout

TOP = 10
# Items of a history, where the catalogue has as many: the bound of a shorter one is wider.
_HISTORY_ITEMS = (8, 64)
# Largest bound of a history's scores, as a share of their range in plaintext; for items that a model has learned from
# it is a hundredth at most (measured on MovieLens).
_WIDEST = 0.1
_Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Comparison:
    """error: the largest of a score. recall: share of plaintext's ten best that were found. held: as it should be."""

    error: float
    bound: float
    recall: float
    held: bool


@dataclass(frozen=True, slots=True)
class Question:
    """A random user. entries: what is encrypted, for `Layout.query_polynomials`: a vector of norm 1, or the weights of
    `history`, int64[n] numbers of items."""

    entries: _Floats = field(repr=False)
    history: NDArray[np.int64] | None = field(repr=False, default=None)


def question(offer: Offer, items: NDArray[np.int64] | None = None) -> Question:
    """A fresh one, as that offer takes it. items: int64[n], those that a history may have; None for all."""
    generator = np.random.default_rng(int.from_bytes(secrets.token_bytes(16), "big"))
    layout = offer.layout
    if isinstance(layout, HistoryLayout):
        allowed = np.arange(layout.items) if items is None else items
        least, most = (min(len(allowed), size) for size in _HISTORY_ITEMS)
        size = int(generator.integers(least, most, endpoint=True))
        history = generator.choice(allowed, size, replace=False)
        return Question(tower.weights(history, layout.items)[0], history)
    vector = generator.standard_normal(layout.dimensions)
    vector /= np.linalg.norm(vector)
    return Question(vector)


def answered(offer: Offer, asked: Question, outputs: _Floats) -> tuple[_Floats, float]:
    """Scores float64[items] and their stated bound, from what `Layout.scores` gave. Raises `CiphertextError`."""
    if isinstance(offer.layout, HistoryLayout):
        met = 0 if asked.history is None else len(asked.history)
        made = tower.combined(offer.layout, outputs, met, offer.item_norm)
        return made.scores / offer.item_norm, float(made.error) / offer.item_norm
    return outputs, stated_error(offer.layout)


def judged(offer: Offer, asked: Question, outputs: _Floats, expected: _Floats) -> Comparison:
    """What `Layout.scores` gave against plaintext scores float64[items]. Raises `CiphertextError`."""
    scores, bound = answered(offer, asked, outputs)
    found = compare(scores, expected, bound)
    if asked.history is None:
        return found
    return replace(found, held=found.held and bound <= _WIDEST * float(np.ptp(expected)))


def compare(scores: _Floats, expected: _Floats, bound: float, top: int = TOP) -> Comparison:
    """Decrypted scores float64[items] against plaintext's.

    held: every error is within the bound, and whichever of plaintext's best is missing is as good as the last of them
    but for twice the bound, since scores that close may change places.
    """
    error = float(np.max(np.abs(scores - expected)))
    count = min(top, len(expected))
    best = np.argpartition(-expected, count - 1)[:count]
    found = np.argpartition(-scores, count - 1)[:count]
    missing = np.setdiff1d(best, found)
    least = float(np.min(expected[best]))
    close = bool(np.all(expected[missing] - least <= 2 * bound)) if len(missing) else True
    # a score that is not a number is no score
    held = bool(np.all(np.isfinite(scores))) and error <= bound and close
    return Comparison(error, bound, 1.0 - len(missing) / count, held)
