"""From seeds to shares, and from all seeds to the correction of the party of rank 0: pure functions of both ends.

Every part of every item is a stretch of AES-256 in counter mode: one key for each use (HKDF-SHA256), and the number of
the item as the upper half of the counter, so no two items share a block (an item has fewer than 2^64 blocks) and
deriving one costs no hash. Sharing and its proof are those of `veil.mpc.triples`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

from veil.errors import InputError, StateError
from veil.mpc.engine.items import SHARED, EngineItem
from veil.mpc.engine.kernels import matmul
from veil.mpc.randomness import KEY_BYTES, derive_key

_BLOCK_BYTES = 16
_ZEROS = bytes(2**20)


class Expander:
    """One party's shares of everything that its seed determines."""

    def __init__(self, rank: int, seed: bytes) -> None:
        if len(seed) != KEY_BYTES:
            raise InputError(f"got a seed of {len(seed)} bytes, expected {KEY_BYTES}")
        self.rank = rank
        self._independent = algorithms.AES(derive_key(seed, b"engine", b"independent"))
        self._dependent = algorithms.AES(derive_key(seed, b"engine", b"dependent"))

    def __repr__(self) -> str:
        return f"Expander(rank={self.rank})"

    def independent(self, number: int, item: EngineItem, first_row: int = 0, rows: int | None = None) -> Tensor:
        """The share of a mask, or of `rows` rows of it from `first_row` on; int64. Zeros where another owns it."""
        shape, start = item.shape, 0
        if rows is not None:
            width = math.prod(shape[1:])
            shape, start = (rows, *shape[1:]), first_row * width
        if item.owner not in (SHARED, self.rank):
            return torch.zeros(shape, dtype=torch.int64)
        return _ring(self._independent, number, start, shape)

    def dependent(self, number: int, item: EngineItem) -> Tensor:
        """The share of what depends on masks, of any party but the one of rank 0."""
        if item.dependent_shape is None:
            raise InputError("got a mask, expected an item with a dependent part")
        return _ring(self._dependent, number, 0, item.dependent_shape)


def _ring(key: algorithms.AES, number: int, start: int, shape: Sequence[int]) -> Tensor:
    """Elements `start` and on of the item's stretch: 8 bytes each, little-endian, two in a block."""
    count = math.prod(shape)
    skipped = start % 2
    size_bytes = 8 * (count + skipped)
    counter = number.to_bytes(8, "big") + (start // 2).to_bytes(8, "big")
    encryptor = Cipher(key, modes.CTR(counter)).encryptor()
    # update_into wants room for one block more than it writes; the tail is cut off again below.
    out = np.empty(size_bytes + _BLOCK_BYTES, dtype=np.uint8)
    view, done = out.data, 0
    while done < size_bytes:
        step = min(len(_ZEROS), size_bytes - done)
        encryptor.update_into(memoryview(_ZEROS)[:step], view[done : done + step + _BLOCK_BYTES - 1])
        done += step
    numbers = out[8 * skipped : size_bytes].view("<i8").astype(np.int64, copy=False)
    return torch.from_numpy(numbers).reshape(tuple(shape))


def correction(
    number: int,
    item: EngineItem,
    expanders: Sequence[Expander],
    masks: Mapping[int, EngineItem],
    noise: Tensor | None = None,
) -> Tensor:
    """What the party of rank 0 takes as its share of the dependent tensor: its value less all other shares, int64.

    expanders: of all parties, in rank order; masks: all asked for so far, by number; noise: the draw of a noise item.
    """
    value = _value(number, item, expanders, masks, noise)
    for expander in expanders[1:]:
        value -= expander.dependent(number, item)
    return value


def _value(
    number: int,
    item: EngineItem,
    expanders: Sequence[Expander],
    masks: Mapping[int, EngineItem],
    noise: Tensor | None,
) -> Tensor:
    match item.kind:
        case "product":
            left = _total(item.left, masks[item.left], expanders, item.first_row, item.rows)
            right = _total(item.right, masks[item.right], expanders)
            if item.operation == "mul":
                return left * right
            return matmul(left.t() if item.transposed else left, right)
        case "truncation":
            root = _total(number, item, expanders)
            return torch.stack([logical_shift(root, item.shift), logical_shift(root, 63)])
        case "waves":
            return torch.from_numpy(waves_of(_total(number, item, expanders).numpy(), item))
        case "noise":
            if noise is None:
                raise StateError("got no draw for a noise item, expected one")
            return noise.reshape(item.shape).clone()
        case _:
            raise InputError("got a mask, expected an item with a dependent part")


def waves_of(
    masks: np.ndarray[tuple[int, ...], np.dtype[np.int64]], item: EngineItem
) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """int64[2 harmonics, *shape]: round(2^precision cos(k w r)) for each k, then the sines.

    Only one machine computes this, so the last digit of its floating point does not matter.
    """
    period = 1 << item.period_bits
    angle = (masks & (period - 1)).astype(np.float64) * (2 * math.pi / period)
    # Powers of one rotation: a product for each harmonic in place of a sine and a cosine. Errors stay near 1e-15.
    turns = np.empty((item.harmonics, *masks.shape), np.complex128)
    turns[0] = np.exp(1j * angle)
    for harmonic in range(1, item.harmonics):
        np.multiply(turns[harmonic - 1], turns[0], out=turns[harmonic, ...])  # a view, also of a single mask
    values = np.concatenate([turns.real, turns.imag])
    values *= float(1 << item.precision_bits)
    rounded: np.ndarray[tuple[int, ...], np.dtype[np.int64]] = np.rint(values, out=values).astype(np.int64)
    return rounded


def logical_shift(tensor: Tensor, bits: int) -> Tensor:
    """The upper bits as an unsigned number: int64 in [0, 2^(64 - bits))."""
    return (tensor >> bits) & ((1 << (64 - bits)) - 1)


def _total(
    number: int, item: EngineItem, expanders: Sequence[Expander], first_row: int = 0, rows: int | None = None
) -> Tensor:
    holders = expanders if item.owner == SHARED else [expanders[item.owner]]
    total = holders[0].independent(number, item, first_row, rows)
    for expander in holders[1:]:
        total += expander.independent(number, item, first_row, rows)
    return total
