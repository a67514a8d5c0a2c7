"""What a user adds to an opening of alternating least squares: exact integer sums, and back to real numbers.

Guarantee: a user's summand has an L2 norm of at most the sensitivity stated beside it, in integers, whatever the rows
and the public fold-in map; sums are exact, so they depend neither on blocks nor on the linear algebra library.

`rows` are the users' y_u on their grid, `folded` the integers P^T y_u before scaling (`veil.trainers.als.algorithm`).
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from veil.privacy.mechanism import outer_sum, to_grid, vector_sensitivity
from veil.recsys.interactions import Interactions
from veil.trainers.seam import Int64

Float64 = npt.NDArray[np.float64]

# As for the subspace trainer: far below rows and noise, and 2^30 users fit a signed 64-bit sum.
ROW_BITS: Final = 16
FACTOR_BITS: Final = 16
GRAM_DIVISOR: Final = 4
"""h_u / 4 stands beside y_u: of a round's budget the Gram matrix gets 1/17."""
ITEM_BITS: Final = 12
ITEM_FACTOR_BITS: Final = 10
ON_DIAGONAL: Final = 5
BESIDE_DIAGONAL: Final = 7

ROUND_STEP: Final = 2.0 ** -(ROW_BITS + FACTOR_BITS)
ITEM_GRAM_STEP: Final = 2.0 ** -(ITEM_BITS + 2 * ITEM_FACTOR_BITS)


def round_sensitivity() -> int:
    """Bound on the Frobenius norm of one user's summand of a release "round-t", in grid steps."""
    # Sensitivity: with integer y, h of norms at most Y, H, the integers (y, trunc(h / 4)) have a squared norm of at
    # most Y^2 + (H / 4)^2; its root, rounded up, times H bounds the norm of the outer product with h, which is the
    # product of the two norms. `to_grid` lets no y above Y and no h above H through.
    rows, factors = vector_sensitivity(1.0, ROW_BITS), vector_sensitivity(1.0, FACTOR_BITS)
    squared = rows**2 + -(-(factors**2) // GRAM_DIVISOR**2)
    return (math.isqrt(squared - 1) + 1) * factors


def item_gram_sensitivity() -> int:
    """Bound on the Frobenius norm of one user's summand of a release "item-gram-t", in grid steps."""
    # Sensitivity: with g = h_u on its grid, |g| <= G, the vector p of 5 g_j^2 and 7 g_j g_k (j < k) has
    # |p|^2 = 25 sum_j g_j^4 + 49 sum_{j<k} g_j^2 g_k^2 <= 25 (sum_j g_j^2)^2 <= (5 G^2)^2, as 49 <= 2 * 25. The summand
    # is the outer product of the item weights, of norm at most W, and p: at most W * 5 G^2. Integers throughout.
    factor = vector_sensitivity(1.0, ITEM_FACTOR_BITS)
    return vector_sensitivity(1.0, ITEM_BITS) * ON_DIAGONAL * factor * factor


def triangle_size(dimensions: int) -> int:
    """Entries of a symmetric matrix on and above its diagonal."""
    return dimensions * (dimensions + 1) // 2


def round_sum(rows: Int64, folded: Float64) -> Int64:
    """B over A / 4 for a block of users, int64[items + d, d] in steps of `ROUND_STEP`."""
    factors = to_grid(folded, 1.0, FACTOR_BITS)
    quarter = np.sign(factors) * (np.abs(factors) // GRAM_DIVISOR)  # toward zero, so that no norm grows
    return np.concatenate([outer_sum(rows, factors), outer_sum(quarter, factors)])


def item_gram_sum(block: Interactions, folded: Float64) -> Int64:
    """A_i for each item, weighted and packed, for a block of users; int64[items, d (d + 1) / 2] of `ITEM_GRAM_STEP`."""
    present = block.dense(slice(None)).astype(np.float64)
    present /= np.sqrt(np.maximum(block.lengths(), 1))[:, None]
    factors = to_grid(folded, 1.0, ITEM_FACTOR_BITS)
    first, second = np.triu_indices(folded.shape[1])
    scale = np.where(first == second, ON_DIAGONAL, BESIDE_DIAGONAL).astype(np.int64)
    return outer_sum(to_grid(present, 1.0, ITEM_BITS), factors[:, first] * factors[:, second] * scale)


def round_statistics(total: Float64, items: int) -> tuple[Float64, Float64]:
    """(B, A) from a round in real units, float64[items + d, d]; A symmetric, as both its halves are averaged.

    Noise of standard deviation s on each entry becomes s on B's, 4 s on A's diagonal and 4 s / sqrt 2 beside it.
    """
    gram = total[items:] * GRAM_DIVISOR
    return total[:items], (gram + gram.T) / 2.0


def item_grams(packed: Float64, dimensions: int) -> Float64:
    """Symmetric float64[items, d, d] from packed ones in real units.

    Noise of standard deviation s on each packed entry becomes s / 5 on the diagonals and s / 7 beside them.
    """
    first, second = np.triu_indices(dimensions)
    entries = packed / np.where(first == second, ON_DIAGONAL, BESIDE_DIAGONAL)
    grams = np.empty((len(packed), dimensions, dimensions))
    grams[:, first, second] = entries
    grams[:, second, first] = entries
    return grams
