"""What trials of encrypted scoring are about: random items, random questions, and what plaintext says to them.

Guarantee: items and questions follow from seeds; `truth` is computed in plaintext, from the same numbers and by nothing
that encryption uses: of vectors by a product of matrices, of histories by the model's own formulas
(`veil.recsys.model`), or by folding in and scoring where a model is linear throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from he_inference.encoding.deviation import stated_error
from he_inference.engine.blocks import HostBlocks, Place
from he_inference.layouts.history import HistoryLayout
from he_inference.layouts.seam import Floats, Layout
from he_inference.layouts.tower import Tower, combined, linear_tower, split, weights
from he_inference.ring.moduli import Words
from he_inference.tuning.stages import Evaluator, StagedCompute, StagedHistory
from veil.errors import ConfigError
from veil.recsys.model import MAX_DIMENSIONS, Model, score_bound
from veil.recsys.postprocess import USER_TERMS

# Vectors float64[dimensions], or histories int64[n].
Question = NDArray[Any]
# Items of the longest random history.
_LONGEST = 500


@dataclass(frozen=True, eq=False)
class Decrypted:
    """What a client has after decryption.

    scores: float64[items]. bound: stated of |score - plaintext score|. outputs: what decrypted, before a history's
    parts were put together.
    """

    scores: Floats = field(repr=False)
    bound: float
    outputs: Floats = field(repr=False)


class Subject(Protocol):
    """The seam between kinds of questions."""

    @property
    def layout(self) -> Layout:
        """The layout as a whole."""

    @property
    def rows(self) -> Floats:
        """float64[items, dimensions]: items as somebody scores them with `vector`."""

    @property
    def item_norm(self) -> float:
        """What an offer of it states."""

    @property
    def parts(self) -> Sequence[tuple[Layout, Floats]]:
        """Layout and rows of each file of its index."""

    def compute(self, parts: Sequence[Words], place: Place = HostBlocks) -> Evaluator:
        """The evaluator, given the blocks of each part; the last part is what it scores.

        place: where products with the other parts are summed up.
        """

    def questions(self, generator: np.random.Generator, count: int) -> list[Question]:
        """Random ones."""

    def entries(self, question: Question) -> Floats:
        """What is encrypted, for `Layout.query_polynomials`."""

    def decrypted(self, question: Question, outputs: Floats) -> Decrypted:
        """From what `Layout.scores` gives."""

    def vector(self, question: Question) -> Floats:
        """float64[dimensions]: the user vector, for those who score it with `rows`."""

    def truth(self, question: Question) -> Floats:
        """float64[items]: plaintext scores."""

    def unit_errors(self, question: Question, decrypted: Decrypted) -> Floats:
        """float64[n]: errors before any scaling, which `he_inference.encoding.deviation` is about."""

    def user_norm(self, question: Question) -> float:
        """The norm that those errors depend on."""


def subject_of(layout: Layout, seed: int) -> Subject:
    """Random items for a layout, scored with vectors or histories as it takes them. Raises `ConfigError`."""
    return Histories.of(layout, seed) if layout.kind == "history" else Vectors.of(layout, seed)


def unit_rows(generator: np.random.Generator, count: int, dimensions: int) -> Floats:
    """float64[count, dimensions]: directions drawn uniformly."""
    rows = generator.standard_normal((count, dimensions))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


@dataclass(frozen=True, eq=False)
class Vectors:
    """Items and users are random unit vectors."""

    layout: Layout
    rows: Floats = field(repr=False)
    item_norm: float = 1.0

    @classmethod
    def of(cls, layout: Layout, seed: int) -> Vectors:
        """Random items for that layout."""
        rows = unit_rows(np.random.default_rng([seed, 0]), layout.items, layout.dimensions)
        # The longest of many unit vectors is longer than 1 by a rounding error.
        rows /= max(1.0, float(np.linalg.norm(rows, axis=1).max()))
        return cls(layout, rows)

    @property
    def parts(self) -> Sequence[tuple[Layout, Floats]]:
        """See `Subject`."""
        return ((self.layout, self.rows),)

    def compute(self, parts: Sequence[Words], place: Place = HostBlocks) -> Evaluator:
        """See `Subject`."""
        return StagedCompute(self.layout)

    def questions(self, generator: np.random.Generator, count: int) -> list[Question]:
        """See `Subject`."""
        return list(unit_rows(generator, count, self.layout.dimensions))

    def entries(self, question: Question) -> Floats:
        """See `Subject`."""
        return question

    def decrypted(self, question: Question, outputs: Floats) -> Decrypted:
        """See `Subject`."""
        return Decrypted(outputs, stated_error(self.layout), outputs)

    def vector(self, question: Question) -> Floats:
        """See `Subject`."""
        return question

    def truth(self, question: Question) -> Floats:
        """See `Subject`."""
        scores: Floats = self.rows @ question
        return scores

    def unit_errors(self, question: Question, decrypted: Decrypted) -> Floats:
        """See `Subject`."""
        return decrypted.scores - self.truth(question)

    def user_norm(self, question: Question) -> float:
        """See `Subject`."""
        return float(np.linalg.norm(question))


@dataclass(frozen=True, eq=False)
class Histories:
    """Users are random histories of a random model, whose items are unit vectors.

    tower: the server's part. rows, vector_of: the same model in plaintext, item vectors and user vectors.
    """

    tower: Tower
    rows: Floats = field(repr=False)
    vector_of: Callable[[Question], NDArray[Any]] = field(repr=False)

    @classmethod
    def of(cls, layout: Layout, seed: int) -> Histories:
        """A random model for that layout: of the published form, with user terms of as many properties of items as the
        layout has answers beside the first; linear throughout for one answer. Raises `ConfigError`."""
        if not isinstance(layout, HistoryLayout):
            raise ConfigError(f"got layout {layout.kind}, expected one that takes histories")
        generator = np.random.default_rng([seed, 0])
        if layout.packing == 1:
            factors, fold_in = (unit_rows(generator, layout.items, layout.dimensions) for _ in range(2))
            tower = linear_tower(fold_in, factors)
            return cls(tower, factors, lambda history: fold_in[np.unique(history)].sum(axis=0))
        model = _model(generator, layout)
        tower = split(model.fold_in, model.norm_terms, model.item_factors, model.taste_centre)
        return cls(tower, model.item_factors.astype(np.float64), model.user_vector)

    @property
    def layout(self) -> HistoryLayout:
        """See `Subject`."""
        return self.tower.layout

    @property
    def item_norm(self) -> float:
        """See `Subject`."""
        return self.tower.item_norm

    @property
    def parts(self) -> Sequence[tuple[Layout, Floats]]:
        """See `Subject`."""
        return ((self.layout.fold_in, self.tower.fold_in), (self.layout.output, self.tower.rows))

    def compute(self, parts: Sequence[Words], place: Place = HostBlocks) -> Evaluator:
        """See `Subject`."""
        return StagedHistory(self.layout, parts[0], place)

    def questions(self, generator: np.random.Generator, count: int) -> list[Question]:
        """Any items, each as likely; the logarithm of how many is uniform."""
        items = self.layout.items
        sizes = np.exp(generator.uniform(0.0, np.log(min(items, _LONGEST) + 1), count)).astype(int)
        return [generator.choice(items, size, replace=False) for size in sizes]

    def entries(self, question: Question) -> Floats:
        """See `Subject`."""
        return weights(question, self.layout.items)[0]

    def decrypted(self, question: Question, outputs: Floats) -> Decrypted:
        """See `Subject`."""
        made = combined(self.layout, outputs, len(np.unique(question)), self.item_norm)
        return Decrypted(made.scores, float(made.error), outputs)

    def vector(self, question: Question) -> Floats:
        """See `Subject`."""
        return np.asarray(self.vector_of(question), np.float64)

    def truth(self, question: Question) -> Floats:
        """See `Subject`."""
        scores: Floats = self.rows @ self.vector(question)
        return scores

    def unit_errors(self, question: Question, decrypted: Decrypted) -> Floats:
        """Of the outputs that belong to items."""
        answers, _ = self.layout.parted(decrypted.outputs - self.tower.rows @ self._user(question))
        return answers.reshape(-1)

    def user_norm(self, question: Question) -> float:
        """See `Subject`."""
        return float(np.linalg.norm(self._user(question)))

    def _user(self, question: Question) -> Floats:
        """u, in plaintext."""
        user: Floats = self.tower.fold_in.T @ self.entries(question)
        if self.layout.packing > 1:
            user[-USER_TERMS] += 1.0
        return user


def _model(generator: np.random.Generator, layout: HistoryLayout) -> Model:
    """Of the published form, with counts, directions and terms drawn at random."""
    items, linear = layout.items, layout.dimensions - USER_TERMS
    if not 1 <= linear <= min(items, MAX_DIMENSIONS - USER_TERMS):
        raise ConfigError(
            f"got {layout.dimensions} dimensions and {items} items, expected {1 + USER_TERMS} to {MAX_DIMENSIONS} for a"
            " model with user terms, and no more than there are items",
            hint="packing 1 is for a model that is linear throughout",
        )
    counts = np.exp(generator.normal(3.0, 1.2, items))
    weight = counts**-0.25
    direction = counts * weight / np.linalg.norm(counts * weight)
    used = np.linalg.qr(generator.standard_normal((items, linear)))[0]
    fold_in = np.zeros((items, layout.dimensions))
    fold_in[:, :linear] = weight[:, None] * (used - np.outer(direction, direction @ used))
    fold_in[:, -1] = np.log(counts)
    rank = layout.packing - 1
    terms = 0.1 * generator.standard_normal((items, rank)) @ generator.standard_normal((rank, USER_TERMS))
    factors = np.concatenate([unit_rows(generator, items, linear), terms], axis=1).astype(np.float32)
    return Model(
        fold_in=fold_in.astype(np.float32),
        norm_terms=np.stack([weight**2, weight * direction], axis=1).astype(np.float32),
        collaborative=linear,
        taste_centre=float(np.log(counts).mean()),
        item_factors=factors,
        score_scale=score_bound(factors, linear),
    )
