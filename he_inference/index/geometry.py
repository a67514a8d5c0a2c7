"""How large things in an index file are, and what the numbers in it mean: all of it follows from the layout.

Guarantee: nothing here loads the compiler, so that a process which only reads headers does not either.
"""

from __future__ import annotations

import hashlib
import math
import sys
from typing import Final

from he_inference.layouts.seam import Layout
from he_inference.ring.moduli import TILE, moduli

PAGE_BYTES: Final = 4096
CHECK_BYTES: Final = 16
_NORM_SLACK: Final = 1.0 + 1e-6


def block_shape(layout: Layout) -> tuple[int, int, int, int]:
    """Shape of a block, uint32[primes, tiles, terms, TILE]: `Compute.block_shape` without the compiler."""
    parameters = layout.parameters
    return (len(parameters.data_primes), parameters.degree // TILE, layout.groups * layout.rotations, TILE)


def norm_limit(layout: Layout) -> float:
    """How long a row may be: 1, or the layout's own `norm_limit`, with room for rounding."""
    return float(getattr(layout, "norm_limit", 1.0)) * _NORM_SLACK


def block_bytes(layout: Layout) -> int:
    """Bytes of a block, a multiple of the page."""
    return 4 * math.prod(block_shape(layout))


def data_offset(layout: Layout) -> int:
    """Bytes in front of the blocks."""
    wanted = PAGE_BYTES + 2 * CHECK_BYTES * layout.blocks + -(-layout.items // 8)
    return -(-wanted // PAGE_BYTES) * PAGE_BYTES


def file_bytes(layout: Layout) -> int:
    """Bytes of the whole file."""
    return data_offset(layout) + layout.blocks * block_bytes(layout)


def transform_digest(layout: Layout) -> bytes:
    """Names what the numbers of a block mean, 16 bytes: the roots of the transform, and the order of its values."""
    parameters = layout.parameters
    ring = moduli(parameters.degree, parameters.data_primes)
    digest = hashlib.blake2b(digest_size=CHECK_BYTES, person=b"veil-index-ring")
    digest.update(ring.q.astype("<u8").tobytes())
    digest.update(ring.forward.astype("<u4").tobytes())
    digest.update(ring.order.astype("<i8").tobytes())
    return digest.digest()


if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("index files are little-endian and are read where they lie; this machine is big-endian")
