"""The session layout: how a user vector and a block of items lie in the slots, and how scores come back.

Halevi and Shoup's diagonals with baby and giant steps (eprint 2014/106, section 4.3; BSGS as in 2018/244): b is the
number of baby steps, g of giant steps, D = b * g >= d the padded length of a vector, S the slots (N/2). All powers of
two, so D divides S. Letters below are the ones of the code.

    query u (D = 4), tiled:          slot   0   1   2   3 | 4   5   6   7 | ...        S slots
                                            u0  u1  u2  u3 | u0  u1  u2  u3| ...
    rotated left by r:                      u(s + r mod D) in slot s

    items of one block, complex:     slot s holds item s in Re and item S + s in Im    2S = N items
    diagonal r:                      V[s][(s + r) mod D] in slot s: the entry of item s that meets the rotated query

    score in slot s  =  sum over r of  u(s + r) * V[s][s + r]  =  <u, V[s]> (Re) and <u, V[S + s]> (Im)

With r = b*G + k, all giant steps G share the b rotations of the query, each by one slot from the one before:

    result = sum over G of  rotate(b*G,  sum over k of  rotate(k, u) * rotate(-b*G, diagonal(b*G + k)) )

and Horner's rule makes the outer sum from rotations by b alone. So two Galois keys suffice, those of step 1 and step b;
the query is real, hence Re and Im never mix. The inverse rotation of a diagonal is done once, before it is encoded.

Guarantee: any number of items from 1 and any d from 1 to 1024; rows and entries of padding are zero, so that unused
slots of a response decrypt to zero and noise, never to a value of another slot.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from he_inference.parameters import Parameters
from he_inference.seam import ComplexVector
from veil.errors import CiphertextError, ConfigError, InputError

MAX_DIMENSIONS = 1024
# All scores go back to the client, 15 bytes each: beyond this another protocol is wanted, not a longer answer.
MAX_ITEMS = 4_000_000
# The noise of k rotations in a row lies on the k-th baby step; beyond this the score error bound was not measured.
_MOST_BABY_STEPS = 64


@dataclass(frozen=True, slots=True)
class SessionLayout:
    """Where everything lies, as a function of the parameter set, the number of items and their dimensions."""

    parameters: Parameters
    items: int
    dimensions: int

    def __post_init__(self) -> None:
        if not 1 <= self.items <= MAX_ITEMS:
            raise ConfigError(f"got {self.items} items, expected 1 to {MAX_ITEMS}")
        if not 1 <= self.dimensions <= MAX_DIMENSIONS:
            raise ConfigError(f"got {self.dimensions} dimensions, expected 1 to {MAX_DIMENSIONS}")

    @property
    def slots(self) -> int:
        """S, the slots of one ciphertext."""
        return self.parameters.slots

    @property
    def padded(self) -> int:
        """D: the dimensions, padded to a power of two of at least 4 (so that both kinds of step exist)."""
        return max(4, 1 << (self.dimensions - 1).bit_length())

    @property
    def block_items(self) -> int:
        """Items in one ciphertext: two for each slot."""
        return 2 * self.slots

    @property
    def blocks(self) -> int:
        """Ciphertexts in one response."""
        return -(-self.items // self.block_items)

    @property
    def baby_steps(self) -> int:
        """b, for the fewest rotations: b - 1 for the query, g - 1 for each block; the smaller one when two tie."""
        choices = [1 << power for power in range(1, self.padded.bit_length() - 1) if 1 << power <= _MOST_BABY_STEPS]
        return min(choices, key=lambda baby: (baby - 1 + self.blocks * (self.padded // baby - 1), baby))

    @property
    def giant_steps(self) -> int:
        """g = D / b, at least 2."""
        return self.padded // self.baby_steps

    @property
    def galois_elements(self) -> tuple[int, ...]:
        """The elements that a client makes keys for: of step 1 and of step b."""
        return (self.parameters.element(1), self.parameters.element(self.baby_steps))

    @property
    def max_key_bytes(self) -> int:
        """Largest accepted evaluation keys, bytes."""
        return self.parameters.max_key_bytes(len(self.galois_elements))

    def pack_query(self, vector: NDArray[np.float64]) -> NDArray[np.float64]:
        """float64[S] from a unit (or zero) vector float64[d]. Raises `InputError` when it is longer or not finite."""
        vector = np.asarray(vector, dtype=np.float64)
        if vector.shape != (self.dimensions,):
            raise InputError(f"got a user vector of shape {vector.shape}, expected ({self.dimensions},)")
        if not np.all(np.isfinite(vector)):
            raise InputError("got a user vector with NaN or infinity, expected finite numbers")
        if float(np.linalg.norm(vector)) > 1.0 + 1e-6:
            raise InputError("got a user vector longer than 1, expected one of norm 1 (scale it, and the scores back)")
        tile = np.zeros(self.padded)
        tile[: self.dimensions] = vector
        return np.tile(tile, self.slots // self.padded)

    def block(self, factors: NDArray[np.float64], index: int) -> NDArray[np.complex128]:
        """complex128[S, D]: rows of block `index` of `factors` float64[items, d], two items to a row, zero-padded."""
        if factors.shape != (self.items, self.dimensions) or not 0 <= index < self.blocks:
            raise ConfigError(
                f"got factors of shape {factors.shape}, block {index}; expected ({self.items}, {self.dimensions}), "
                f"block 0 to {self.blocks - 1}"
            )
        rows = np.zeros((self.block_items, self.padded))
        part = factors[index * self.block_items : (index + 1) * self.block_items]
        rows[: len(part), : self.dimensions] = part
        return rows[: self.slots] + 1j * rows[self.slots :]

    def diagonal(self, block: NDArray[np.complex128], giant: int, baby: int) -> ComplexVector:
        """complex128[S]: diagonal b*giant + baby of a block, already rotated back by b*giant."""
        slot = np.arange(self.slots)
        # rotate(-b*G, diagonal)[s] = diagonal[s - b*G] = V[s - b*G][(s - b*G + b*G + k) mod D]
        row = (slot - self.baby_steps * giant) % self.slots
        values: ComplexVector = block[row, (slot + baby) % self.padded]
        return values

    def unpack(self, blocks: list[ComplexVector]) -> NDArray[np.float64]:
        """float64[items]: scores of all items from the decrypted complex128[S] of each block."""
        if len(blocks) != self.blocks:
            raise CiphertextError(f"got {len(blocks)} blocks of scores, expected {self.blocks}")
        scores = np.concatenate([part for block in blocks for part in (block.real, block.imag)])[: self.items]
        if not np.all(np.isfinite(scores)):
            raise CiphertextError("got scores that are not finite", hint="the response does not belong to this key")
        return scores
