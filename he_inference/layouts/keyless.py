"""The keyless layout: several query ciphertexts, no rotation, no key at the server. For clients that ask once.

Coefficient packing (as in Gazelle, eprint 2018/073, section 4, and Cheetah, eprint 2022/207, section 3): g dimensions
share a ciphertext, so that a query has ceil(d / g) of them and a result holds N / g items.

    query ciphertext c:   u[cg] + u[cg+1] X + ... + u[cg+g-1] X^(g-1)
    item polynomial c:    for item i of the block, entry cg + j at X^(i g + (g - 1 - j))          j < g
    product at X^(i g + g - 1):  sum over j of u[cg+j] * V[i][cg+j]                              summed over c: <u,
    V[i]>

Why nothing else lands there: query exponents j < g and item exponents i' g + (g - 1 - j') add up to i g + g - 1 only
with i' = i, j' = j, or wrapped around N, which would need an exponent of at least N + g - 1, more than N - 1 + g - 1.

g = 1 is the constant-polynomial query: every coefficient of a result is a score. Larger g, smaller queries, larger
results: the second half of a result travels whole, of the first half only the N / g coefficients that hold scores. With
g >= d a query is one ciphertext, for few items with wide vectors (`he_inference.collection`: one item is a model).

Guarantee: any number of items from 1 and any d from 1 to 1024; unused places hold zero and noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from he_inference.layouts.seam import MAX_DIMENSIONS, MAX_ITEMS, Floats, Integers, checked_vector
from he_inference.parameters import Parameters
from veil.errors import CiphertextError, ConfigError

PACKINGS = tuple(1 << power for power in range(11))
# Results of one query, each some kilobytes: what a client takes of a server, at most 1.8 GB.
MOST_RESULTS = 1 << 17


@dataclass(frozen=True)
class KeylessLayout:
    """See the module. packing: g, a power of two from 1 to 1024."""

    parameters: Parameters
    items: int
    dimensions: int
    packing: int = 1

    kind = "keyless"

    def __post_init__(self) -> None:
        if not 1 <= self.items <= MAX_ITEMS:
            raise ConfigError(f"got {self.items} items, expected 1 to {MAX_ITEMS}")
        if not 1 <= self.dimensions <= MAX_DIMENSIONS:
            raise ConfigError(f"got {self.dimensions} dimensions, expected 1 to {MAX_DIMENSIONS}")
        if self.packing not in PACKINGS:
            raise ConfigError(f"got packing {self.packing}, expected a power of two from 1 to {PACKINGS[-1]}")
        if self.parameters.scheme != "ckks":
            raise ConfigError(f"got scheme {self.parameters.scheme}, expected ckks for a keyless layout")
        if self.blocks > MOST_RESULTS:
            raise ConfigError(
                f"got {self.blocks} results for a query, expected at most {MOST_RESULTS}", hint="take a smaller packing"
            )
        if self.rotations > 256:
            raise ConfigError(
                f"got {self.rotations} query ciphertexts, expected at most 256", hint="take a larger packing"
            )

    @property
    def block_items(self) -> int:
        """N / g."""
        return self.parameters.degree // self.packing

    @property
    def blocks(self) -> int:
        """Results for one query."""
        return -(-self.items // self.block_items)

    @property
    def query_ciphertexts(self) -> int:
        """ceil(d / g)."""
        return -(-self.dimensions // self.packing)

    @property
    def rotations(self) -> int:
        """The query's own ciphertexts; none is rotated."""
        return self.query_ciphertexts

    @property
    def groups(self) -> int:
        """One."""
        return 1

    @property
    def group_step(self) -> int:
        """None."""
        return 0

    @property
    def galois_elements(self) -> tuple[int, ...]:
        """None."""
        return ()

    @property
    def used_coefficients(self) -> int:
        """N / g."""
        return self.block_items

    def coefficient_places(self) -> NDArray[np.int64] | None:
        """i g + g - 1."""
        if self.packing == 1:
            return None
        return np.arange(self.block_items) * self.packing + self.packing - 1

    def query_polynomials(self, vector: Floats) -> Integers:
        """int64[ceil(d / g), N]."""
        values = np.zeros((self.query_ciphertexts, self.packing))
        values.reshape(-1)[: self.dimensions] = checked_vector(vector, self.dimensions)
        result = np.zeros((self.query_ciphertexts, self.parameters.degree), np.int64)
        result[:, : self.packing] = np.rint(values * 2.0**self.parameters.query_scale_bits)
        return result

    def item_polynomials(self, rows: Floats, block: int) -> Integers:
        """int64[ceil(d / g), N]."""
        if rows.ndim != 2 or rows.shape[1] != self.dimensions or not 1 <= len(rows) <= self.block_items:
            raise ConfigError(f"got rows of shape {rows.shape}, expected up to ({self.block_items}, {self.dimensions})")
        padded = np.zeros((self.block_items, self.query_ciphertexts, self.packing))
        padded.reshape(self.block_items, -1)[: len(rows), : self.dimensions] = rows
        # [item, ciphertext, j] -> [ciphertext, item, g - 1 - j]
        ordered = padded[:, :, ::-1].transpose(1, 0, 2).reshape(self.query_ciphertexts, self.parameters.degree)
        return np.rint(ordered * 2.0**self.parameters.item_scale_bits).astype(np.int64)

    def scores(self, numbers: Integers, bits: int) -> Floats:
        """float64[items] from int64[blocks, N / g]."""
        if numbers.shape != (self.blocks, self.block_items):
            raise CiphertextError(f"got results of shape {numbers.shape}, expected ({self.blocks}, {self.block_items})")
        half = 1 << (bits - 1)
        centred = ((numbers + half) & ((1 << bits) - 1)) - half
        modulus = float(self.parameters.data_primes[0] * self.parameters.data_primes[1])
        unit = modulus / 2.0 ** (bits + self.parameters.query_scale_bits + self.parameters.item_scale_bits)
        values: Floats = centred.astype(np.float64) * unit
        return values.reshape(-1)[: self.items]
