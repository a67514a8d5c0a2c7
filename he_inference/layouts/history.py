"""The history layout: the client sends what it has met, the server folds that into a user vector and scores with it.

Letters: N the ring degree, S = N/2 slots, x float64[items] the weights of a history (norm at most 1: 1/sqrt(n) at each
of n items), F float64[items, d] fold-in rows, V float64[outputs, d] output rows, D >= d the padded dimensions, a power
of two.

    outputs y = V u,   u = F^T x          linear in x throughout, and so one computation under encryption

Query: ceil(items / N) ciphertexts; slot s of ciphertext c has x[cN + s] as its real and x[cN + S + s] as its imaginary
part. Step 1, folding: with F laid out alike but conjugated, the real part of a product is the sum of both halves'.

    diagonal r of ciphertext c:     F[cN + s + r, s mod D] - i F[cN + S + s + r, s mod D]  in slot s     (s + r mod S)
    a = sum over c and r < D of  rotate(r, x_c) * diagonal(c, r)
    Re a(s) = sum of x_m F[m, s mod D] over the m with (m - s) mod S < D

Baby and giant steps are those of `he_inference.layouts.session`. The sum of a and its images under conjugation and
rotations by D, 2D, ... is 2u, tiled and real. These 2S/D automorphisms are the products of A powers of 3^D and B powers
of -3^(AD/2), with A B = 2S/D and A even: two keys, A + B - 2 rotations. (Shifts i + j A/2 modulo S/D, together with the
parity of j, take every pair of shift and conjugation once.)

Step 2: the first data prime is divided away, which brings u to the scale of a session's query, and where the tower has
user terms 1 is added to its last place but two (`he_inference.layouts.tower`). Step 3: a session's arithmetic.

Guarantee: rows of padding are zero; every number here is a function of parameter set, items, dimensions and packing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from he_inference.layouts.history_parts import (
    FoldInLayout,
    OutputLayout,
    baby_steps,
    blocks_of,
    check,
    padded_dimensions,
    readouts_of,
)
from he_inference.layouts.seam import Floats, Integers
from he_inference.parameters import HISTORY_SCORES, Parameters
from veil.errors import ConfigError


@dataclass(frozen=True)
class HistoryLayout:
    """Both parts together: what a server offers. See the module.

    items: of the catalogue. dimensions: d, columns of F and V. packing: answers for each item, 1 for a tower that is
    linear throughout, 1 + k for one with user terms of rank k (`he_inference.layouts.tower`).
    """

    parameters: Parameters
    items: int
    dimensions: int
    packing: int = 3

    kind = "history"

    def __post_init__(self) -> None:
        check(self.parameters, self.items, self.dimensions, self.packing)

    @property
    def readouts(self) -> int:
        """Outputs that belong to no item."""
        return readouts_of(self.packing)

    @property
    def answers(self) -> int:
        """Outputs that belong to items: answer 0 of all items, answer 1 of all items, ..."""
        return self.packing * self.items

    @property
    def readout_place(self) -> int:
        """Number of the first readout: they are the last real parts of the last block.

        Rows of readouts are long, so that the noise of the imaginary part of u, times such a row, would show in the
        other half of the slot: the last imaginary parts of that block stay empty.
        """
        last = (self.blocks - 1) * self.block_items
        return last + self.parameters.slots - self.readouts

    @property
    def outputs(self) -> int:
        """Rows of V: answers, with the readouts in their place among them."""
        return max(self.readout_place, self.answers) + self.readouts if self.readouts else self.answers

    def arranged(self, answers: Floats, readouts: Floats) -> Floats:
        """float64[outputs, d] of the rows of answers and of readouts."""
        rows = np.zeros((self.outputs, self.dimensions))
        place, count = self.readout_place, self.readouts
        before = min(place, self.answers) if count else self.answers
        rows[:before] = answers[:before]
        if count:
            rows[place : place + count] = readouts
            rows[place + count :][: self.answers - before] = answers[before:]
        return rows

    def parted(self, outputs: Floats) -> tuple[Floats, Floats]:
        """(float64[packing, items], float64[readouts]) of float64[outputs]."""
        if not self.readouts:
            return outputs.reshape(1, self.items), np.empty(0)
        place, count = self.readout_place, self.readouts
        answers = np.concatenate([outputs[:place], outputs[place + count :]])[: self.answers]
        return answers.reshape(self.packing, self.items), outputs[place : place + count]

    @property
    def baby_steps(self) -> int:
        """b."""
        return baby_steps(self.items, self.dimensions, self.packing)

    @property
    def fold_in(self) -> FoldInLayout:
        """The first part."""
        return FoldInLayout(self.parameters, self.items, self.dimensions, self.packing)

    @property
    def output(self) -> OutputLayout:
        """The second part."""
        return OutputLayout(HISTORY_SCORES, self.outputs, self.dimensions, self.baby_steps)

    @property
    def block_items(self) -> int:
        """Outputs that one result holds."""
        return self.parameters.degree

    @property
    def blocks(self) -> int:
        """Results for one query."""
        return blocks_of(self.items, self.packing)

    @property
    def query_ciphertexts(self) -> int:
        """ceil(items / N)."""
        return -(-self.items // self.parameters.degree)

    @property
    def rotations(self) -> int:
        """b."""
        return self.baby_steps

    @property
    def groups(self) -> int:
        """D / b."""
        return padded_dimensions(self.dimensions) // self.baby_steps

    @property
    def group_step(self) -> int:
        """b."""
        return self.baby_steps

    @property
    def galois_elements(self) -> tuple[int, ...]:
        """Those of the first part, which has all."""
        return self.fold_in.galois_elements

    @property
    def used_coefficients(self) -> int:
        """All."""
        return self.parameters.degree

    def coefficient_places(self) -> NDArray[np.int64] | None:
        """All."""
        return None

    def query_polynomials(self, vector: Floats) -> Integers:
        """int64[ciphertexts, N] of the weights float64[items] of a history, of norm at most 1. Raises `InputError`."""
        return self.fold_in.query_polynomials(vector)

    def fold_in_polynomials(self, rows: Floats, block: int) -> Integers:
        """int64[D, N] of the fold-in rows float64[n, d] of ciphertext `block`."""
        return self.fold_in.item_polynomials(rows, block)

    def item_polynomials(self, rows: Floats, block: int) -> Integers:
        """int64[D, N] of the output rows float64[n, d] of result `block`."""
        return self.output.item_polynomials(rows, block)

    def scores(self, numbers: Integers, bits: int) -> Floats:
        """float64[outputs]: y, not yet scores (`he_inference.layouts.tower.combined`)."""
        return self.output.scores(numbers, bits)


def whole_layout(fold_in: FoldInLayout, output: OutputLayout) -> HistoryLayout:
    """The layout of which these are the parts; raises `ConfigError` when there is none."""
    layout = HistoryLayout(fold_in.parameters, fold_in.items, fold_in.dimensions, fold_in.packing)
    if layout.output == output:
        return layout
    raise ConfigError(
        f"got a fold-in part of {fold_in.items} items and {output.items} outputs, expected parts of one index",
        hint="build both from the same model",
    )
