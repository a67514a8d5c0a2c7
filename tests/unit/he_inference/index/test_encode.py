"""What stands in a block: the evaluator's encoding, the same with every version that has this file format."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from he_inference.engine.compute import Compute
from he_inference.index import geometry
from he_inference.index.encode import encoded
from he_inference.layouts.catalogue import layout_of
from he_inference.ring import accumulate

# SHA-256 of a block of fixed rows. A block that comes out otherwise is another format: raise
# `he_inference.index.format.VERSION` with it, so that files of before are built again and not misread.
FROZEN = {
    ("session", "fast", 5000, 12, 0): "ceb4d206cd86627196b774bab28ccd6c01e92d92ef113f519d1fd9415823d180",
    ("session", "pq", 100, 3, 0): "209711961a88cc740f2f3077220b78d86a2c4a240e6d1d90775f515d914dda0f",
    ("session", "exact", 100, 8, 0): "cc868b45e2c5c46b8c1ea8a8115db6d671c41d1aad08eb73bbed36cd1c2cd575",
    ("keyless", "keyless", 3000, 10, 2): "63a941e73535c6199d5ccd5bc567c6ff54478d786f984e6ba43116739ed7844e",
    ("keyless", "keyless-small", 70, 65, 64): "2933d7028c83cb0b3e23c0aaa5c357ddd463647195065edbc4f1c0d3c66f92a1",
}


def rows_of(items: int, dimensions: int) -> np.ndarray:
    rows = np.arange(items * dimensions) * 48271 % 65521 / 65536.0 - 0.5
    return rows.reshape(items, dimensions) / dimensions


@pytest.mark.parametrize("case", FROZEN)
def test_blocks_are_what_this_format_says(case: tuple[str, str, int, int, int]) -> None:
    layout = layout_of(*case)
    rows = rows_of(min(layout.items, layout.block_items), layout.dimensions)
    block = encoded(layout, rows, 0)
    assert block.dtype == np.uint32 and block.flags.c_contiguous
    assert hashlib.sha256(block.tobytes()).hexdigest() == FROZEN[case]


@pytest.mark.parametrize("case", FROZEN)
def test_blocks_are_those_of_the_evaluator(case: tuple[str, str, int, int, int]) -> None:
    layout = layout_of(*case)
    compute = Compute(layout)
    assert geometry.block_shape(layout) == compute.block_shape
    assert geometry.block_bytes(layout) == 4 * np.prod(compute.block_shape) and geometry.block_bytes(layout) % 4096 == 0
    rows = rows_of(layout.items, layout.dimensions)
    for block in range(layout.blocks):
        part = rows[block * layout.block_items : (block + 1) * layout.block_items]
        np.testing.assert_array_equal(
            encoded(layout, part, block), compute.encode(layout.item_polynomials(part, block))
        )


def test_the_tile_is_the_kernels() -> None:
    # Two definitions, since readers of a file must not load the compiler.
    assert geometry.TILE == accumulate.TILE
