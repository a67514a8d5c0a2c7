"""An oblivious key-value store: a table from which every stored key decodes to its value, and which says no more.

Garbled cuckoo table with three hash functions and a dense part (Garimella, Pinkas, Rosulek, Trieu, Yanai, "Oblivious
key-value stores and amplification for private set intersection", 2021). Each key has one position in each third of the
table and a set of dense entries behind it; its value is the exclusive or of them all. The table is found by peeling: a
key that has a position of its own is set aside, again and again. The few that stay are solved for the dense entries,
then the positions of the peeled ones are filled in the reverse order.

Guarantee: when the values are uniform, so is the table, for entries that no key decides are drawn at random; hence the
table does not depend on the keys. Keys that were not stored decode to values that are uniform to whoever cannot compute
the keys that were: stored values are masked by a hash of their keys (SHAKE-256 as a random oracle).

With 1.3 entries a key and more, the keys that stay after peeling are some pairs at most; 64 dense entries solve 20 keys
but for one case in 2^44. So no table is ever tried a second time, which would say something about its keys.
"""

from __future__ import annotations

import hashlib
import math
import os

import numpy as np
import numpy.typing as npt

from veil.align.plan import Rows
from veil.align.sets import Bytes
from veil.errors import StateError

Words = npt.NDArray[np.uint64]
"""(count, width) uint64."""
SEED_BYTES = 16
DENSE = 64
_EXPANSION = 1.3
_SLACK = 300
_MOST_UNPEELED = 20
_LABEL_BYTES = 9
_DOMAIN = b"veil/align-okvs/v1\x00"


def entries(keys: int) -> int:
    """Rows of the table for that many keys, the dense ones included."""
    return 3 * math.ceil((_EXPANSION * keys + _SLACK) / 3) + DENSE


class Layout:
    """Where keys (count, bytes) have their values in a table of `size` rows, and how the values are masked.

    A table may be wider than memory allows at once: it is made and read in blocks of columns, numbered from 0, each
    under masks of its own.
    """

    def __init__(self, keys: Bytes, seed: bytes, size: int) -> None:
        self.seed = seed
        self.size = size
        self._keys = keys
        words = self._expand(b"places", 4)
        third = (size - DENSE) // 3
        self._positions: Rows = (words[:, :3] % np.uint64(third)).astype(np.int64) + third * np.arange(3)
        self._chosen = words[:, 3].copy()  # a bit for each dense entry

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self._keys)} keys, {self.size} rows)"

    def _expand(self, label: bytes, width: int) -> Words:
        prefix = _DOMAIN + self.seed + label.ljust(_LABEL_BYTES, b"\x00")
        data = b"".join(hashlib.shake_256(prefix + key.tobytes()).digest(8 * width) for key in self._keys)
        return np.frombuffer(data, dtype="<u8").reshape(-1, width).astype(np.uint64)

    def _masks(self, block: int, width: int) -> Words:
        return self._expand(b"masks" + block.to_bytes(4, "little"), width)

    def decode(self, table: Words, block: int) -> Words:
        """The values, (count, width), of one block (size, width): the stored ones for stored keys, others random."""
        values = self._masks(block, table.shape[1])
        values ^= _sparse_part(table, self._positions)
        values ^= _dense_part(table[self.size - DENSE :], self._chosen)
        return values


class Encoder(Layout):
    """A layout under a seed of its own, for keys that are to be stored."""

    def __init__(self, keys: Bytes) -> None:
        super().__init__(keys, os.urandom(SEED_BYTES), entries(len(keys)))
        self._rounds, self._stayed = _peel(self._positions, self.size - DENSE)

    def encode(self, values: Words, block: int) -> Words:
        """A table (size, width) from which every key decodes to its row of `values` (count, width).

        Raises `StateError` for keys that repeat, and else for one set in 2^44.
        """
        width = values.shape[1]
        table: Words = np.frombuffer(os.urandom(8 * self.size * width), dtype=np.uint64).reshape(-1, width).copy()
        masked = self._masks(block, width)
        masked ^= values
        dense = table[self.size - DENSE :]
        stayed = self._stayed
        targets = masked[stayed] ^ _sparse_part(table, self._positions[stayed])
        if len(stayed) > _MOST_UNPEELED or not _solve([int(each) for each in self._chosen[stayed]], targets, dense):
            raise StateError(
                f"got no table for {len(values)} keys, expected distinct keys", hint="run the job again: keys change"
            )
        masked ^= _dense_part(dense, self._chosen)
        for peeled, own in reversed(self._rounds):
            table[own] ^= _sparse_part(table, self._positions[peeled]) ^ masked[peeled]
        return table


def _sparse_part(table: Words, positions: Rows) -> Words:
    together: Words = table[positions[:, 0]] ^ table[positions[:, 1]] ^ table[positions[:, 2]]
    return together


def _dense_part(dense: Words, chosen: npt.NDArray[np.uint64]) -> Words:
    """Exclusive or of the chosen dense rows, eight at a time from tables of all their combinations."""
    total = np.zeros((len(chosen), dense.shape[1]), dtype=np.uint64)
    for first in range(0, DENSE, 8):
        combinations = np.zeros((256, dense.shape[1]), dtype=np.uint64)
        for bit in range(8):
            combinations[1 << bit : 2 << bit] = combinations[: 1 << bit] ^ dense[first + bit]
        total ^= combinations[((chosen >> np.uint64(first)) & np.uint64(255)).astype(np.int64)]
    return total


def _peel(positions: Rows, size: int) -> tuple[list[tuple[Rows, Rows]], Rows]:
    """Rounds of (keys, the position that each of them has for itself), and the keys that stay.

    No key of a round has a position that another of the same round has for itself, so a round is filled at once.
    """
    degree = np.bincount(positions.reshape(-1), minlength=size)
    # The exclusive or of the keys at a position: the key itself where only one is left.
    held = np.zeros(size, dtype=np.int64)
    numbers = np.arange(len(positions), dtype=np.int64)
    stays = np.ones(len(positions), dtype=np.bool_)
    for column in range(3):
        np.bitwise_xor.at(held, positions[:, column], numbers)
    rounds: list[tuple[Rows, Rows]] = []
    single = np.flatnonzero(degree == 1)
    while len(single):
        keys, first = np.unique(held[single], return_index=True)
        rounds.append((keys, single[first]))
        stays[keys] = False
        touched = positions[keys]
        for column in range(3):
            np.subtract.at(degree, touched[:, column], 1)
            np.bitwise_xor.at(held, touched[:, column], keys)
        candidates = np.unique(touched)
        single = candidates[degree[candidates] == 1]
    return rounds, np.flatnonzero(stays)


def _solve(rows: list[int], targets: Words, dense: Words) -> bool:
    """Sets dense entries so that each row (bits of entries) adds up to its target; false when rows depend on others.

    Gauss-Jordan elimination over bits. Entries that decide nothing keep their random values.
    """
    reduced: list[tuple[int, int, npt.NDArray[np.uint64]]] = []  # pivot, row, target
    for row, target in zip(rows, targets, strict=True):
        for pivot, other, theirs in reduced:
            if row >> pivot & 1:
                row, target = row ^ other, target ^ theirs
        if row == 0:
            return False
        pivot = row.bit_length() - 1
        reduced = [
            (at, other ^ row, theirs ^ target) if other >> pivot & 1 else (at, other, theirs)
            for at, other, theirs in reduced
        ]
        reduced.append((pivot, row, target))
    for pivot, row, target in reduced:
        free = [at for at in range(DENSE) if row >> at & 1 and at != pivot]
        dense[pivot] = target ^ np.bitwise_xor.reduce(dense[free], axis=0) if free else target
    return True
