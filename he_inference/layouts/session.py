"""The session layout: one query ciphertext, rotated by the server with keys that it keeps for the client.

Halevi and Shoup's diagonals with baby and giant steps (eprint 2014/106, section 4.3; BSGS as in 2018/244): b is the
number of baby steps, g of giant steps, D = b * g >= d the padded length of a vector, S the slots (N/2). All powers of
two, so D divides S. Letters below are the ones of the code.

    query u (D = 4), tiled:          slot   0   1   2   3 | 4   5   6   7 | ...        S slots, both rows
                                            u0  u1  u2  u3 | u0  u1  u2  u3| ...
    rotated left by r:                      u(s + r mod D) in slot s

    items of one block:              slot s holds item s in row 0 and item S + s in row 1    2S = N items
    diagonal r:                      V[s][(s + r) mod D] in slot s: the entry of item s that meets the rotated query

    score in slot s  =  sum over r of  u(s + r) * V[s][s + r]  =  <u, V[s]> (row 0) and <u, V[S + s]> (row 1)

With r = b*G + k, all giant steps G share the b rotations of the query, each by one slot from the one before:

    result = sum over G of  rotate(b*G,  sum over k of  rotate(k, u) * rotate(-b*G, diagonal(b*G + k)) )

and Horner's rule makes the outer sum from rotations by b alone. So two Galois keys suffice, those of step 1 and step b.
In the CKKS encoding the rows are real and imaginary parts: the query must then be real, which it is (row 1 zero).

Guarantee: any number of items from 1 and any d from 1 to 1024; rows and entries of padding are zero, so that unused
slots of a response decrypt to zero and noise, never to a value of another slot.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from he_inference.encoding.slots import slot_codec
from he_inference.layouts.seam import MAX_DIMENSIONS, MAX_ITEMS, Floats, Integers, checked_vector
from he_inference.parameters import Parameters
from veil.errors import CiphertextError, ConfigError

# The noise of k rotations in a row lies on the k-th baby step; the bounds of the parameter sets hold up to these
# (encoding/deviation.py). Exact scores have a sum over all D of it, in which a wrong answer must stay out of reach
# (`deviation.log2_reached`): b D is limited as well.
_MOST_BABY_STEPS = {"ckks": 64, "bfv": 32}
_MOST_EXACT_TERMS = 8192
# Transforms of a rotation, and those of the division at the end of a sum of rotations (ring/switch.py). Steps in a row
# run on one thread; ends of baby steps, and blocks, on several at a time. The layout may not depend on a server's
# threads: two.
_STEP, _END, _LANES = 8, 4, 2


@dataclass(frozen=True)
class SessionLayout:
    """See the module."""

    parameters: Parameters
    items: int
    dimensions: int

    kind = "session"

    def __post_init__(self) -> None:
        if not 1 <= self.items <= MAX_ITEMS:
            raise ConfigError(f"got {self.items} items, expected 1 to {MAX_ITEMS}")
        if not 1 <= self.dimensions <= MAX_DIMENSIONS:
            raise ConfigError(f"got {self.dimensions} dimensions, expected 1 to {MAX_DIMENSIONS}")
        if not self.parameters.special_bits:
            raise ConfigError(f"got parameter set {self.parameters.name}, which has no rotations, for a session layout")

    @property
    def padded(self) -> int:
        """D: the dimensions, padded to a power of two of at least 4 (so that both kinds of step exist)."""
        return max(4, 1 << (self.dimensions - 1).bit_length())

    @property
    def block_items(self) -> int:
        """Two items for each slot."""
        return self.parameters.degree

    @property
    def blocks(self) -> int:
        """Results for one query."""
        return -(-self.items // self.block_items)

    @property
    def query_ciphertexts(self) -> int:
        """One."""
        return 1

    @property
    def rotations(self) -> int:
        """b, for the shortest time: b - 1 rotations of the query in a row, then g - 1 for each block."""
        powers = [1 << power for power in range(1, self.padded.bit_length() - 1)]
        most = _MOST_BABY_STEPS[self.parameters.scheme]
        if self.parameters.scheme == "bfv":
            most = min(most, _MOST_EXACT_TERMS // self.padded)
        choices = [baby for baby in powers if baby <= most]

        def transforms(baby: int) -> tuple[int, int]:
            blocks_in_a_row = -(-self.blocks // _LANES)
            giant = _STEP * (self.padded // baby - 1) + _END
            return (_STEP * _LANES + _END) * (baby - 1) + _LANES * blocks_in_a_row * giant, baby

        return min(choices, key=transforms)

    @property
    def groups(self) -> int:
        """g = D / b, at least 2."""
        return self.padded // self.rotations

    @property
    def group_step(self) -> int:
        """b."""
        return self.rotations

    @property
    def galois_elements(self) -> tuple[int, ...]:
        """Of step 1 and step b."""
        return (self.parameters.element(1), self.parameters.element(self.group_step))

    @property
    def used_coefficients(self) -> int:
        """All: every slot depends on every coefficient."""
        return self.parameters.degree

    def coefficient_places(self) -> NDArray[np.int64] | None:
        """All."""
        return None

    def query_polynomials(self, vector: Floats) -> Integers:
        """int64[1, N]: the tiled vector; in both rows for integers, in the real one for CKKS."""
        tile = np.zeros(self.padded)
        tile[: self.dimensions] = checked_vector(vector, self.dimensions)
        row = np.tile(tile, self.parameters.slots // self.padded)
        second = row if self.parameters.scheme == "bfv" else np.zeros_like(row)
        return slot_codec(self.parameters).encode_query(np.stack([row, second])[None])

    def item_polynomials(self, rows: Floats, block: int) -> Integers:
        """int64[D, N]: the diagonals of a block, those of giant step G already rotated back by b*G."""
        slots, b = self.parameters.slots, self.rotations
        if rows.ndim != 2 or rows.shape[1] != self.dimensions or not 1 <= len(rows) <= self.block_items:
            raise ConfigError(f"got rows of shape {rows.shape}, expected up to ({self.block_items}, {self.dimensions})")
        padded = np.zeros((self.block_items, self.padded))
        padded[: len(rows), : self.dimensions] = rows
        pair = padded.reshape(2, slots, self.padded)
        slot = np.arange(slots)
        diagonals = np.empty((self.padded, 2, slots))
        for giant in range(self.groups):
            # rotate(-b*G, diagonal)[s] = V[s - b*G][(s - b*G + b*G + k) mod D]
            row = (slot - b * giant) % slots
            for baby in range(b):
                diagonals[giant * b + baby] = pair[:, row, (slot + baby) % self.padded]
        return slot_codec(self.parameters).encode_items(diagonals, np.random.default_rng([block, 1]))

    def scores(self, numbers: Integers, bits: int) -> Floats:
        """float64[items] from int64[blocks, N]."""
        if numbers.shape != (self.blocks, self.parameters.degree):
            raise CiphertextError(f"got results of shape {numbers.shape}, expected ({self.blocks}, N)")
        return slot_codec(self.parameters).decode(numbers, bits).reshape(-1)[: self.items]
