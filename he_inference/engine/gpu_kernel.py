"""The sums of `he_inference.engine.gpu` as one Triton kernel: every number of the index is read once for some queries.

Guarantee: as there. A program handles one tile of one block and group for one query; sums of 64-bit products are
reduced every 64 terms, so that any number of rotations is exact. Loaded only where a CUDA device and Triton are.
"""

from __future__ import annotations

from typing import Any

import torch
import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]

from he_inference.ring.moduli import TILE


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _kernel(  # type: ignore[no-untyped-def]
    index, queries, q, out, primes, tiles, terms, rotations, groups, count, TILE: tl.constexpr
):
    block = tl.program_id(0) // groups
    group = tl.program_id(0) % groups
    prime = tl.program_id(1) // tiles
    tile = tl.program_id(1) % tiles
    query = tl.program_id(2)
    lane = tl.arange(0, TILE)
    modulus = tl.load(q + prime)
    item = index + (((block.to(tl.int64) * primes + prime) * tiles + tile) * terms + group * rotations) * TILE
    x = queries + (((prime * tiles + tile).to(tl.int64) * count + query) * rotations) * 2 * TILE
    first = tl.zeros((TILE,), dtype=tl.int64)
    second = tl.zeros((TILE,), dtype=tl.int64)
    for k in range(rotations):
        p = tl.load(item + k * TILE + lane).to(tl.int64)
        first += p * tl.load(x + 2 * k * TILE + lane).to(tl.int64)
        second += p * tl.load(x + (2 * k + 1) * TILE + lane).to(tl.int64)
        if k % 64 == 63:
            first = first % modulus
            second = second % modulus
    n = tiles * TILE
    row = (((block.to(tl.int64) * groups + group) * count + query) * 2 * primes + prime) * n + tile * TILE
    tl.store(out + row + lane, (first % modulus).to(tl.int32))
    tl.store(out + row + primes * n + lane, (second % modulus).to(tl.int32))


def launch(index: Any, queries: Any, q: Any) -> Any:
    """int32[blocks, groups, queries, 2, primes, tiles, TILE] on the device of `index`; shapes as in `Accumulator`."""
    blocks, primes, tiles, terms, _ = index.shape
    count, rotations = queries.shape[2:4]
    groups = terms // rotations
    out = torch.empty((blocks, groups, count, 2, primes, tiles, TILE), dtype=torch.int32, device=index.device)
    _kernel[(blocks * groups, primes * tiles, count)](
        index, queries, q, out, primes, tiles, terms, rotations, groups, count, TILE=TILE
    )
    return out
