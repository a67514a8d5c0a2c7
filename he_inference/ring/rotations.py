"""All rotations of a query, and the sum of rotated groups: the two places where layouts rotate.

    baby    c, rotate(c), rotate(rotate(c)), ...                          each in a row with the one before
    giant   S[0] + rotate(S[1] + rotate(S[2] + ...))                      Horner's rule, for each block by itself

Guarantee: exact modular arithmetic; the same numbers whatever the number of threads or of queries that come together.
Rotations of one ciphertext run on one thread from first to last; several queries or blocks run side by side.
"""

from __future__ import annotations

import numba
import numpy as np

from he_inference.ring.jit import kernel, parallel_kernel
from he_inference.ring.moduli import TILE, Words
from he_inference.ring.switch import WORK, Places, Switching, divided, rotate_step

u32 = np.uint32


@kernel
def _tile(polynomial, tiled, k, query, half, prime) -> None:  # type: ignore[no-untyped-def]
    for t in range(tiled.shape[1]):
        tiled[prime, t, query, k, half, :] = polynomial[t * TILE : (t + 1) * TILE]


@kernel
def _chain(ciphertext, places, key, firsts, tiled, query, tables) -> None:  # type: ignore[no-untyped-def]
    """Second halves of all rotations -> tiled; first halves, not divided yet -> firsts uint32[rotations, 4, N]."""
    n = ciphertext.shape[2]
    work = np.empty((WORK, n), np.uint32)
    c1 = np.empty((2, 2, n), np.uint32)
    firsts[0, :2] = ciphertext[0]
    firsts[0, 2:] = 0
    c1[0] = ciphertext[1]
    for k in range(firsts.shape[0]):
        now = k & 1
        if k > 0:
            rotate_step(firsts[k - 1], c1[1 - now], firsts[k], c1[now], places, key, work, tables)
        for i in range(2):
            _tile(c1[now, i], tiled, k, query, 1, i)


@kernel
def _chain_end(firsts, k, tiled, query, tables) -> None:  # type: ignore[no-untyped-def]
    if k > 0:
        work = np.empty((WORK, firsts.shape[2]), np.uint32)
        divided(firsts[k], work, tables)
    for i in range(2):
        _tile(firsts[k, i], tiled, k, query, 0, i)


@parallel_kernel
def _baby(ciphertexts, places, keys, tiled, tables) -> None:  # type: ignore[no-untyped-def]
    queries, _, _, n = ciphertexts.shape
    rotations = tiled.shape[3]
    if queries == 1:
        firsts = np.empty((rotations, 4, n), np.uint32)
        _chain(ciphertexts[0], places, keys[0], firsts, tiled, 0, tables)
        for k in numba.prange(rotations):
            _chain_end(firsts, k, tiled, 0, tables)
    else:
        for query in numba.prange(queries):
            own = np.empty((rotations, 4, n), np.uint32)
            _chain(ciphertexts[query], places, keys[query], own, tiled, query, tables)
            for k in range(rotations):
                _chain_end(own, k, tiled, query, tables)


def baby_steps(ciphertexts: Words, places: Places, keys: Words, rotations: int, switch: Switching) -> Words:
    """uint32[2 primes, tiles, queries, rotations, 2, TILE] (`accumulate`) of uint32[queries, 2, 2, N].

    keys: uint32[queries, 2, 4, N], of one step, prepared; places: of one step.
    """
    queries, _, primes, n = ciphertexts.shape
    tiled = np.empty((primes, n // TILE, queries, rotations, 2, TILE), np.uint32)
    _baby(ciphertexts, places, keys, tiled, switch.tables)
    return tiled


@kernel
def _add(total, other, q) -> None:  # type: ignore[no-untyped-def]
    for i in range(2):
        prime = q[i]
        x = total[i]
        y = other[i]
        for j in range(x.size):
            v = u32(x[j] + y[j])
            x[j] = min(v, u32(v - prime))


@kernel
def _horner(sums, query, places, key, out, tables) -> None:  # type: ignore[no-untyped-def]
    n = out.shape[2]
    groups = sums.shape[0]
    work = np.empty((WORK, n), np.uint32)
    c0 = np.zeros((2, 4, n), np.uint32)
    c1 = np.empty((2, 2, n), np.uint32)
    c0[0, :2] = sums[groups - 1, query, 0]
    c1[0] = sums[groups - 1, query, 1]
    now = 0
    for step in range(1, groups):
        then = now
        now = 1 - now
        rotate_step(c0[then], c1[then], c0[now], c1[now], places, key, work, tables)
        _add(c0[now], sums[groups - 1 - step, query, 0], tables[0])
        _add(c1[now], sums[groups - 1 - step, query, 1], tables[0])
    divided(c0[now], work, tables)
    out[0] = c0[now, :2]
    out[1] = c1[now]


@parallel_kernel
def _giant(sums, places, keys, out, tables) -> None:  # type: ignore[no-untyped-def]
    queries = sums.shape[2]
    for unit in numba.prange(sums.shape[0] * queries):
        block = unit // queries
        query = unit % queries
        _horner(sums[block], query, places, keys[query], out[block, query], tables)


def giant_steps(sums: Words, places: Places, keys: Words, switch: Switching) -> Words:
    """uint32[blocks, queries, 2, 2, N] of uint32[blocks, groups, queries, 2, 2, N], groups at least 2.

    keys: uint32[queries, 2, 4, N], of the step between groups, prepared; places: of that step.
    """
    blocks, _, queries = sums.shape[:3]
    out = np.empty((blocks, queries, *sums.shape[3:]), np.uint32)
    _giant(sums, places, keys, out, switch.tables)
    return out
