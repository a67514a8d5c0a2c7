"""What a layout decides: where query and items lie in polynomials, and where scores come out.

Guarantee: nothing here computes under encryption. The server multiplies, adds and rotates (`he_inference.engine`), for
every layout in the same way:

    for each block, for each group from the last to the first:
        total = rotate(total, group_step) + sum over k < rotations of  item polynomial [group * rotations + k] *
        ciphertext k

where ciphertexts are the query's own, or its rotations by 0, 1, 2, ... slots when there is one of them and several
rotations.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from he_inference.parameters import Parameters

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

MAX_DIMENSIONS = 1024
# All scores go back to the client, about 7 bytes each: beyond this another protocol is wanted, not a longer answer.
MAX_ITEMS = 4_000_000


class Layout(Protocol):
    """The seam. All numbers are functions of the parameter set, the number of items and their dimensions."""

    @property
    def kind(self) -> str:
        """Name of the layout, as in messages."""

    @property
    def parameters(self) -> Parameters:
        """The parameter set."""

    @property
    def items(self) -> int:
        """Number of items."""

    @property
    def dimensions(self) -> int:
        """Entries of a vector."""

    @property
    def block_items(self) -> int:
        """Items that one result holds."""

    @property
    def blocks(self) -> int:
        """Results for one query."""

    @property
    def query_ciphertexts(self) -> int:
        """Ciphertexts of one query."""

    @property
    def rotations(self) -> int:
        """Ciphertexts that a group of item polynomials meets."""

    @property
    def groups(self) -> int:
        """Groups in a block; terms = groups * rotations item polynomials."""

    @property
    def group_step(self) -> int:
        """Rotation between groups, slots; 0 when there is one group."""

    @property
    def galois_elements(self) -> tuple[int, ...]:
        """Elements that a client makes keys for: of step 1 and of `group_step`; none without rotations."""

    @property
    def used_coefficients(self) -> int:
        """Coefficients of the first half of a result that travel: N, or the few that hold scores."""

    def query_polynomials(self, vector: Floats) -> Integers:
        """int64[query_ciphertexts, N] of a vector float64[dimensions] of norm at most 1. Raises `InputError`."""

    def item_polynomials(self, rows: Floats, block: int) -> Integers:
        """int64[groups * rotations, N] of float64[n, dimensions], the rows of one block, n at most `block_items`."""

    def coefficient_places(self) -> NDArray[np.int64] | None:
        """int64[used_coefficients]: which coefficients of the first half travel; None for all."""

    def scores(self, numbers: Integers, bits: int) -> Floats:
        """float64[items] of decrypted results int64[blocks, used_coefficients] modulo 2^bits."""


def checked_vector(vector: Floats, dimensions: int) -> Floats:
    """float64[dimensions]; raises `InputError` when the shape differs, a number is not finite or the norm above 1."""
    from veil.errors import InputError

    values = np.asarray(vector, dtype=np.float64)
    if values.shape != (dimensions,):
        raise InputError(f"got a user vector of shape {values.shape}, expected ({dimensions},)")
    if not np.all(np.isfinite(values)):
        raise InputError("got a user vector with NaN or infinity, expected finite numbers")
    if float(np.linalg.norm(values)) > 1.0 + 1e-6:
        raise InputError("got a user vector longer than 1, expected one of norm 1 (scale it, and the scores back)")
    return values
