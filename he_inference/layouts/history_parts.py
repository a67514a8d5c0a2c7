"""The two parts of a history index, each a layout of its own: `he_inference.layouts.history` has the whole.

Guarantee: rows of padding are zero; every number here is a function of parameter set, items, dimensions and packing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from he_inference.encoding.slots import slot_codec
from he_inference.layouts.seam import MAX_DIMENSIONS, Floats, Integers, checked_vector
from he_inference.layouts.session import SessionLayout
from he_inference.parameters import HISTORY, HISTORY_SCORES, Parameters
from veil.errors import CiphertextError, ConfigError

# A query of so many ciphertexts takes 2.7 MB.
MOST_CIPHERTEXTS = 32
MOST_ANSWERS = 4
# Of rotations in a row; the stated error is for so many.
MOST_BABY_STEPS = 16
# Outputs of a history as a whole, beside three for each further answer (`he_inference.layouts.tower`).
READOUTS = 5
# A rotation with three data primes costs about so many of one with two.
_FOLD_COST = 1.25


def padded_dimensions(dimensions: int) -> int:
    """D."""
    return max(4, 1 << (dimensions - 1).bit_length())


def readouts_of(answers: int) -> int:
    """Outputs that belong to no item."""
    return 0 if answers == 1 else READOUTS + 3 * (answers - 1)


def blocks_of(items: int, answers: int) -> int:
    """Results: readouts take a place in both halves of a block."""
    return -(-(answers * items + 2 * readouts_of(answers)) // HISTORY.degree)


def possible_baby_steps(padded: int) -> list[int]:
    """Powers of two of which there is more than one group."""
    return [1 << power for power in range(1, padded.bit_length() - 1) if 1 << power <= MOST_BABY_STEPS]


def baby_steps(items: int, dimensions: int, answers: int) -> int:
    """b, for the least work of both parts, which share the keys of steps 1 and b."""
    padded, ciphertexts = padded_dimensions(dimensions), -(-items // HISTORY.degree)

    def cost(b: int) -> tuple[float, int]:
        giants = padded // b - 1
        return _FOLD_COST * (ciphertexts * (b - 1) + giants) + b - 1 + blocks_of(items, answers) * giants, b

    return min(possible_baby_steps(padded), key=cost)


def check(parameters: Parameters, items: int, dimensions: int, answers: int) -> None:
    if parameters != HISTORY:
        raise ConfigError(f"got parameter set {parameters.name}, expected {HISTORY.name} for a history layout")
    if not 1 <= items <= MOST_CIPHERTEXTS * parameters.degree:
        raise ConfigError(f"got {items} items, expected 1 to {MOST_CIPHERTEXTS * parameters.degree}")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise ConfigError(f"got {dimensions} dimensions, expected 1 to {MAX_DIMENSIONS}")
    if not 1 <= answers <= MOST_ANSWERS:
        raise ConfigError(f"got {answers} answers for each item, expected 1 to {MOST_ANSWERS}")
    if answers > 1 and dimensions < 3:
        raise ConfigError(f"got {dimensions} dimensions, expected at least 3 where there are user terms")


@dataclass(frozen=True)
class FoldInLayout:
    """The part of the index that makes user vectors: block c holds the diagonals of ciphertext c.

    packing: answers for each item, as of the whole: the baby steps depend on it.
    """

    parameters: Parameters
    items: int
    dimensions: int
    packing: int

    kind = "history-fold-in"
    # Of rows; the columns that directions come from have a spectral norm of at most 1.
    norm_limit = 4.0

    def __post_init__(self) -> None:
        check(self.parameters, self.items, self.dimensions, self.packing)

    @property
    def padded(self) -> int:
        """D."""
        return padded_dimensions(self.dimensions)

    @property
    def block_items(self) -> int:
        """Items of one ciphertext, N."""
        return self.parameters.degree

    @property
    def blocks(self) -> int:
        """One for each ciphertext."""
        return -(-self.items // self.block_items)

    @property
    def query_ciphertexts(self) -> int:
        """ceil(items / N)."""
        return self.blocks

    @property
    def rotations(self) -> int:
        """b."""
        return baby_steps(self.items, self.dimensions, self.packing)

    @property
    def groups(self) -> int:
        """D / b."""
        return self.padded // self.rotations

    @property
    def group_step(self) -> int:
        """b."""
        return self.rotations

    @property
    def trace_steps(self) -> tuple[int, int]:
        """(A, B)."""
        images = 2 * self.parameters.slots // self.padded
        first = 1 << (images.bit_length() // 2)
        return first, images // first

    @property
    def galois_elements(self) -> tuple[int, ...]:
        """Of steps 1, b and D, and of step A D / 2 with conjugation."""
        parameters, (first, _) = self.parameters, self.trace_steps
        conjugated = 2 * parameters.degree - parameters.element(first // 2 * self.padded)
        return (
            parameters.element(1),
            parameters.element(self.rotations),
            parameters.element(self.padded),
            conjugated,
        )

    @property
    def used_coefficients(self) -> int:
        """None: user vectors stay on the server, encrypted."""
        return 0

    def coefficient_places(self) -> NDArray[np.int64] | None:
        """None travels."""
        return np.empty(0, np.int64)

    def query_polynomials(self, vector: Floats) -> Integers:
        """int64[ciphertexts, N] of the weights float64[items], of norm at most 1. Raises `InputError`."""
        slots = np.zeros((self.blocks, 2, self.parameters.slots))
        slots.reshape(-1)[: self.items] = checked_vector(vector, self.items)
        return slot_codec(self.parameters).encode_query(slots)

    def item_polynomials(self, rows: Floats, block: int) -> Integers:
        """int64[D, N] of fold-in rows float64[n, d], those of ciphertext `block`; the diagonals of giant step G rotated
        back by b G."""
        slots, b = self.parameters.slots, self.rotations
        if rows.ndim != 2 or rows.shape[1] != self.dimensions or not 1 <= len(rows) <= self.block_items:
            raise ConfigError(f"got rows of shape {rows.shape}, expected up to ({self.block_items}, {self.dimensions})")
        padded = np.zeros((self.block_items, self.padded))
        padded[: len(rows), : self.dimensions] = rows
        pair = padded.reshape(2, slots, self.padded)
        slot = np.arange(slots)
        diagonals = np.empty((self.padded, 2, slots))
        for giant in range(self.groups):
            column = (slot - b * giant) % self.padded
            for baby in range(b):
                # rotate(-bG, diagonal(bG + k))[s] = F[s - bG + bG + k, (s - bG) mod D]
                diagonals[giant * b + baby] = pair[:, (slot + baby) % slots, column]
        diagonals[:, 1] *= -1.0
        # The codec multiplies by the scale of items; the trace doubles.
        diagonals *= self.fold_in_scale / 2.0 ** (self.parameters.item_scale_bits + 1)
        return slot_codec(self.parameters).encode_items(diagonals, np.random.default_rng([block, 2]))

    @property
    def fold_in_scale(self) -> float:
        """What F is multiplied by, so that user vectors have the scale of `HISTORY_SCORES` queries at last."""
        bits = HISTORY_SCORES.query_scale_bits - self.parameters.query_scale_bits
        return self.parameters.data_primes[0] * 2.0**bits

    def scores(self, numbers: Integers, bits: int) -> Floats:
        """Never: raises `CiphertextError`."""
        raise CiphertextError("got results of a fold-in layout, which gives none")


@dataclass(frozen=True)
class OutputLayout(SessionLayout):
    """The part of the index that scores: a session layout of output rows. packing: b, the baby steps."""

    packing: int = 0

    kind = "history-scores"
    # Of rows; those of items are no longer than 1.
    norm_limit = 1024.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parameters != HISTORY_SCORES:
            raise ConfigError(f"got parameter set {self.parameters.name}, expected {HISTORY_SCORES.name}")
        if self.packing not in possible_baby_steps(self.padded):
            raise ConfigError(f"got {self.packing} baby steps, expected a power of two below {self.padded}")

    @property
    def rotations(self) -> int:
        """b."""
        return self.packing
