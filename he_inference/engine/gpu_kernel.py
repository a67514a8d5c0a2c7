"""The sums of `he_inference.engine.gpu` as one Triton kernel: each number of the index is read once for eight queries.

Guarantee: as there. A program handles one tile of one block and group for some queries; sums of 64-bit products are
reduced every 64 terms, so that any number of rotations is exact: 64 products of 28-bit residues and one residue stay
below 2^63. Loaded only where a CUDA device and Triton are, or Triton's interpreter.

Sources: Triton's documentation, `triton.jit` (no variant for a number that happens to be 1 or a multiple of 16, since a
compiler in the middle of a batch would hold up clients) and `triton.language`.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]

from he_inference.ring.moduli import TILE

# Queries of a program: one, or so many. Both are compiled when a worker warms up with one query and two.
_TOGETHER = 8


@triton.jit(do_not_specialize=["primes", "tiles", "terms", "rotations", "groups", "count"])  # type: ignore[untyped-decorator, unused-ignore]
def _kernel(  # type: ignore[no-untyped-def]
    index, queries, q, out, primes, tiles, terms, rotations, groups, count, TILE: tl.constexpr, TOGETHER: tl.constexpr
):
    block = (tl.program_id(0) // groups).to(tl.int64)
    group = tl.program_id(0) % groups
    prime = tl.program_id(1) // tiles
    tile = tl.program_id(1) % tiles
    query = tl.program_id(2) * TOGETHER + tl.arange(0, TOGETHER)
    asked = (query < count)[:, None]
    lane = tl.arange(0, TILE)
    modulus = tl.load(q + prime)
    item = index + (((block * primes + prime) * tiles + tile) * terms + group * rotations) * TILE + lane
    start = ((prime * tiles + tile).to(tl.int64) * count + query) * rotations * 2 * TILE
    x = queries + start[:, None] + lane[None, :]
    first = tl.zeros((TOGETHER, TILE), dtype=tl.int64)
    second = tl.zeros((TOGETHER, TILE), dtype=tl.int64)
    for k in range(rotations):
        p = tl.load(item + k * TILE).to(tl.int64)[None, :]
        first += p * tl.load(x + 2 * k * TILE, mask=asked, other=0).to(tl.int64)
        second += p * tl.load(x + (2 * k + 1) * TILE, mask=asked, other=0).to(tl.int64)
        if k % 64 == 63:
            first = first % modulus
            second = second % modulus
    n = tiles * TILE
    row = (((block * groups + group) * count + query) * 2 * primes + prime) * n + tile * TILE
    to = out + row[:, None] + lane[None, :]
    tl.store(to, (first % modulus).to(tl.int32), mask=asked)
    tl.store(to + primes * n, (second % modulus).to(tl.int32), mask=asked)


def launch(index: Any, queries: Any, q: Any) -> Any:
    """int32[blocks, groups, queries, 2, primes, tiles, TILE] on the device of `index`.

    index: int32[blocks, primes, tiles, terms, TILE]; queries: int32[primes, tiles, queries, rotations, 2, TILE]; q:
    int64[primes]; all contiguous and on one device.
    """
    blocks, primes, tiles, terms, _ = index.shape
    count, rotations = queries.shape[2:4]
    groups = terms // rotations
    out = torch.empty((blocks, groups, count, 2, primes, tiles, TILE), dtype=torch.int32, device=index.device)
    together, warps = (1, 1) if count == 1 else (_TOGETHER, 4)
    # Triton starts programs on the current device, wherever the arrays are.
    with torch.cuda.device(index.device) if index.device.type == "cuda" else nullcontext():
        _kernel[(blocks * groups, primes * tiles, -(-count // together))](
            index,
            queries,
            q,
            out,
            primes,
            tiles,
            terms,
            rotations,
            groups,
            count,
            TILE=TILE,
            TOGETHER=together,
            num_warps=warps,
        )
    return out
