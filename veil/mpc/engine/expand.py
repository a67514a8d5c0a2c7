"""From seeds to shares, and from all seeds to the correction of the party of rank 0: pure functions of both ends.

Every part of every item is a stretch of AES-256 in counter mode: one key for each use (HKDF-SHA256), and the number of
the item as the upper half of the counter, so no two items share a block (an item has fewer than 2^64 blocks) and
deriving one costs no hash. Sharing and its proof are those of `veil.mpc.triples`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from torch import Tensor

from veil.errors import InputError, StateError
from veil.mpc.engine.items import SHARED, EngineItem
from veil.mpc.engine.kernels import matmul, waves
from veil.mpc.randomness import KEY_BYTES, derive_key

_BLOCK_BYTES = 16
_ZEROS = bytes(2**20)
# Up to here a cipher that is set up once and given its counters is faster than one that is set up for each stretch.
_FEW_BLOCKS = 4096
KEPT_BYTES: Final = 16 * 2**20
"""What the dealer of a job keeps of the masks that it has expanded."""
# A tensor and its place, next to its elements: a job may ask for a million rows of one element.
_PLACE_BYTES: Final = 1024


class _Stretches:
    """AES-256 in counter mode under one key. Not for several threads at a time."""

    def __init__(self, key: bytes) -> None:
        self._key = algorithms.AES(key)
        # Counter mode is the encryption of counters (NIST SP 800-38A, section 6.5).
        self._blocks = Cipher(self._key, modes.ECB()).encryptor()  # noqa: S305 - of counters, each once

    def ring(self, number: int, start: int, shape: Sequence[int]) -> Tensor:
        """Elements `start` and on of the item's stretch: 8 bytes each, little-endian, two in a block."""
        count = math.prod(shape)
        skipped = start % 2
        size_bytes = 8 * (count + skipped)
        # update_into wants room for one block more than it writes; the tail is cut off again below.
        out = np.empty(size_bytes + 2 * _BLOCK_BYTES, dtype=np.uint8)
        if 0 < count <= 2 * _FEW_BLOCKS:
            blocks = -(-size_bytes // _BLOCK_BYTES)
            counters = np.empty((blocks, 2), ">u8")
            counters[:, 0] = number
            counters[:, 1] = np.arange(start // 2, start // 2 + blocks, dtype=np.uint64)
            self._blocks.update_into(counters.data.cast("B"), out.data)
        else:
            counter = number.to_bytes(8, "big") + (start // 2).to_bytes(8, "big")
            encryptor = Cipher(self._key, modes.CTR(counter)).encryptor()
            view, done = out.data, 0
            while done < size_bytes:
                step = min(len(_ZEROS), size_bytes - done)
                encryptor.update_into(memoryview(_ZEROS)[:step], view[done : done + step + _BLOCK_BYTES - 1])
                done += step
        numbers = out[8 * skipped : size_bytes].view("<i8").astype(np.int64, copy=False)
        return torch.from_numpy(numbers).reshape(tuple(shape))


class Expander:
    """One party's shares of everything that its seed determines; for one thread at a time."""

    def __init__(self, rank: int, seed: bytes) -> None:
        if len(seed) != KEY_BYTES:
            raise InputError(f"got a seed of {len(seed)} bytes, expected {KEY_BYTES}")
        self.rank = rank
        self._independent = _Stretches(derive_key(seed, b"engine", b"independent"))
        self._dependent = _Stretches(derive_key(seed, b"engine", b"dependent"))

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
        return self._independent.ring(number, start, shape)

    def dependent(self, number: int, item: EngineItem) -> Tensor:
        """The share of what depends on masks, of any party but the one of rank 0."""
        if item.dependent_shape is None:
            raise InputError("got a mask, expected an item with a dependent part")
        return self._dependent.ring(number, 0, item.dependent_shape)


class Totals:
    """Masks as the sums of all parties' shares; for one thread at a time.

    The latest are kept, up to `KEPT_BYTES`: the two products of a step of descent take the same rows of the data.
    """

    def __init__(self, expanders: Sequence[Expander]) -> None:
        """expanders: of all parties, in rank order."""
        self.expanders = tuple(expanders)
        self._kept: OrderedDict[tuple[int, int, int | None], Tensor] = OrderedDict()
        self._kept_bytes = 0

    def __repr__(self) -> str:
        return f"Totals(parties={len(self.expanders)})"

    def total(self, number: int, item: EngineItem, first_row: int = 0, rows: int | None = None) -> Tensor:
        """int64, not to be written to: all of a mask, or `rows` rows of it from `first_row` on."""
        if item.kind != "mask":
            return self._sum(number, item, first_row, rows)  # no other item uses it
        place = (number, first_row, rows)
        found = self._kept.pop(place, None)
        if found is None:
            found = self._sum(number, item, first_row, rows)
            if found.nbytes + _PLACE_BYTES > KEPT_BYTES:
                return found  # or it would drive out all others, and then itself
            self._kept_bytes += found.nbytes + _PLACE_BYTES
        self._kept[place] = found
        while self._kept_bytes > KEPT_BYTES:
            self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes + _PLACE_BYTES
        return found

    def _sum(self, number: int, item: EngineItem, first_row: int, rows: int | None) -> Tensor:
        holders = self.expanders if item.owner == SHARED else [self.expanders[item.owner]]
        total = holders[0].independent(number, item, first_row, rows)
        for expander in holders[1:]:
            total += expander.independent(number, item, first_row, rows)
        return total


def correction(
    number: int,
    item: EngineItem,
    totals: Totals,
    masks: Mapping[int, EngineItem],
    noise: Tensor | None = None,
) -> Tensor:
    """What the party of rank 0 takes as its share of the dependent tensor: its value less all other shares, int64.

    masks: all asked for so far, by number; noise: the draw of a noise item.
    """
    value = _value(number, item, totals, masks, noise)
    for expander in totals.expanders[1:]:
        value -= expander.dependent(number, item)
    return value


def _value(
    number: int, item: EngineItem, totals: Totals, masks: Mapping[int, EngineItem], noise: Tensor | None
) -> Tensor:
    match item.kind:
        case "product":
            left = totals.total(item.left, masks[item.left], item.first_row, item.rows)
            right = totals.total(item.right, masks[item.right])
            if item.operation == "mul":
                return left * right
            return matmul(left.t() if item.transposed else left, right)
        case "truncation":
            root = totals.total(number, item)
            return torch.stack([logical_shift(root, item.shift), logical_shift(root, 63)])
        case "waves":
            return waves_of(totals.total(number, item), item)
        case "noise":
            if noise is None:
                raise StateError("got no draw for a noise item, expected one")
            return noise.reshape(item.shape).clone()
        case _:
            raise InputError("got a mask, expected an item with a dependent part")


def waves_of(masks: Tensor, item: EngineItem) -> Tensor:
    """int64[2 harmonics, *shape]: round(2^precision cos(k w r)) for each k, then the sines.

    Only one machine computes this, so the last digit of its floating point does not matter.
    """
    found = np.empty((2 * item.harmonics, masks.numel()), np.int64)
    waves(masks.numpy().ravel(), item.period_bits, float(1 << item.precision_bits), found)
    return torch.from_numpy(found).reshape(2 * item.harmonics, *masks.shape)


def logical_shift(tensor: Tensor, bits: int) -> Tensor:
    """The upper bits as an unsigned number: int64 in [0, 2^(64 - bits))."""
    return (tensor >> bits) & ((1 << (64 - bits)) - 1)
