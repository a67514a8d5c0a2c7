"""The scoring kernel: sums of products of encoded items with (rotated) query ciphertexts, at the speed of memory.

    index    uint32[blocks, primes, tiles, terms, TILE]      plaintext residues, TILE coefficients at a time
    queries  uint32[primes, tiles, queries, rotations, 2, TILE]
    result   uint32[blocks, groups, queries, 2, primes, N]   terms = groups * rotations

    result[block, group] = sum over k < rotations of  index[block, .., group * rotations + k] * queries[.., k]   mod q

Guarantee: exact modulo each prime for up to 2^8 rotations of 27-bit residues and 2^6 of 28-bit ones (sums stay below
2^63), and the same whatever the number of threads. Each number of the index is read from memory once for all queries.

How it is fast: a tile of all rotations of a query stays in the nearest cache while the blocks stream past it, each as
one contiguous run that is read from front to end; one reduction for each sum. Inner loops have one array to write, one
base for each array to read and a constant length, which is what compilers need to turn them into vectors.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from he_inference.ring.convert import reduced
from he_inference.ring.jit import kernel, parallel_kernel, threads
from he_inference.ring.moduli import TILE, Words

u32 = np.uint32
u64 = np.uint64
__all__ = ["MOST_ROTATIONS", "TILE", "accumulate", "tiled_queries"]
# Sums of so many products of 27-bit residues stay below 2^63, which `reduced` needs.
MOST_ROTATIONS = 256


def tiled_queries(rotated: Words) -> Words:
    """uint32[rotations, queries, 2, primes, N] -> uint32[primes, tiles, queries, rotations, 2, TILE]."""
    rotations, queries, halves, primes, n = rotated.shape
    tiles = rotated.reshape(rotations, queries, halves, primes, n // TILE, TILE)
    return np.ascontiguousarray(tiles.transpose(3, 4, 1, 0, 2, 5))


@kernel
def _sum_of_products(items, query, total) -> None:  # type: ignore[no-untyped-def]
    """items: uint32[rotations * TILE]; query: uint32[rotations * 2 * TILE]; total: uint64[2 * TILE]."""
    total[:] = u64(0)
    for k in range(items.size // TILE):
        p = items[k * TILE : (k + 1) * TILE]
        x = query[2 * k * TILE : 2 * (k + 1) * TILE]
        for j in range(TILE):
            v = u64(p[j])
            total[j] += v * u64(x[j])
            total[j + TILE] += v * u64(x[j + TILE])


@kernel
def _write_reduced(total, out, q, reciprocal) -> None:  # type: ignore[no-untyped-def]
    for j in range(TILE):
        out[j] = u32(reduced(total[j], q, reciprocal))


@kernel
def _tile_of_blocks(index, queries, result, prime, tile, first, last, q, reciprocal) -> None:  # type: ignore[no-untyped-def]
    count, rotations = queries.shape[:2]
    groups = index.shape[3] // rotations
    total = np.empty(2 * TILE, np.uint64)
    start = tile * TILE
    for block in range(first, last):
        terms = index[block, prime, tile].reshape(-1)
        for group in range(groups):
            items = terms[group * rotations * TILE : (group + 1) * rotations * TILE]
            for query in range(count):
                _sum_of_products(items, queries[query].reshape(-1), total)
                out = result[block, group, query]
                _write_reduced(total[:TILE], out[0, prime, start : start + TILE], q, reciprocal)
                _write_reduced(total[TILE:], out[1, prime, start : start + TILE], q, reciprocal)


@parallel_kernel
def _accumulate(index, queries, result, q, reciprocal, blocks_each) -> None:  # type: ignore[no-untyped-def]
    blocks, primes, tiles = index.shape[:3]
    runs = (blocks + blocks_each - 1) // blocks_each
    for unit in numba.prange(primes * tiles * runs):
        run = unit // (primes * tiles)
        p = unit % (primes * tiles) // tiles
        t = unit % tiles
        last = min(blocks, (run + 1) * blocks_each)
        _tile_of_blocks(index, queries[p, t], result, p, t, run * blocks_each, last, q[p], reciprocal[p])


def accumulate(index: Words, queries: Words, q: NDArray[np.uint64]) -> Words:
    """See the module; shapes as there, both contiguous. Returns uint32[blocks, groups, queries, 2, primes, N]."""
    blocks, primes, tiles, terms, tile_size = index.shape
    count, rotations = queries.shape[2:4]
    fits = queries.shape == (primes, tiles, count, rotations, 2, TILE) and rotations and terms % rotations == 0
    if not fits or tile_size != TILE or rotations > MOST_ROTATIONS:
        raise ValueError(f"got an index of shape {index.shape} and queries of {queries.shape}, expected ones that fit")
    # A read-only view of plain memory, whatever it is (a memory-mapped file, too): one compiled kernel for all.
    plain = index.view(np.ndarray)
    plain.flags.writeable = False
    result = np.empty((blocks, terms // rotations, count, 2, primes, tiles * TILE), np.uint32)
    # Enough pieces for every thread, each with as many blocks as possible to a tile of queries.
    runs = max(1, min(blocks, 4 * threads() // (primes * tiles) or 1))
    _accumulate(plain, queries, result, q, 1.0 / q.astype(np.float64), -(-blocks // runs))
    return result
