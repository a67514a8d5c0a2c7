"""Numbers of a few bits each as bytes, and back; plain numpy, for the client and for small messages of the server.

Guarantee: number i lies in bits [i b, (i + 1) b) of the run, least significant first; `unpack` refuses any other length
and bits set beyond the end, so that each sequence has one form only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from veil.errors import CiphertextError


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of `count` numbers of `bits` bits."""
    return -(-count * bits // 8)


def pack(values: NDArray[np.uint32], bits: int) -> bytes:
    """The run of bits of uint32[n], each below 2^bits."""
    flags = (values.astype(np.uint32)[:, None] >> np.arange(bits, dtype=np.uint32)) & np.uint32(1)
    return np.packbits(flags.astype(np.uint8).ravel(), bitorder="little").tobytes()


def unpack(data: bytes | memoryview, count: int, bits: int, what: str) -> NDArray[np.uint32]:
    """uint32[count]. Raises `CiphertextError` when the length is wrong or spare bits are set."""
    if len(data) != packed_bytes(count, bits):
        raise CiphertextError(f"got {what} of {len(data)} bytes, expected {packed_bytes(count, bits)}")
    spare = 8 * len(data) - count * bits
    if spare and data[-1] >> (8 - spare):
        raise CiphertextError(f"got {what} with bits set beyond its end, expected zeros")
    padded = np.zeros(len(data) + 8, np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    # Every number lies within the eight bytes from its first one on.
    windows: NDArray[np.uint64] = np.ndarray((len(data),), "<u8", padded.data, strides=(1,))
    first = np.arange(count, dtype=np.int64) * bits
    values = (windows[first >> 3] >> (first & 7).astype(np.uint64)) & np.uint64((1 << bits) - 1)
    result: NDArray[np.uint32] = values.astype(np.uint32)
    return result
