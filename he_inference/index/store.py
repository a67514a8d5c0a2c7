"""An index that is read: mapped, never written, and checked.

Guarantee: `Index.open` returns what has the checksums that its header lists (`verify=True`) and residues below their
primes; its numbers are views of the mapped file, which the system may drop from memory and read again. A file that is
replaced stays valid for who has it open.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from he_inference.index.format import Front, block_check, read_front
from he_inference.index.geometry import block_bytes, block_shape, data_offset, file_bytes
from he_inference.index.threads import cores, in_threads
from he_inference.layouts.seam import Layout
from he_inference.ring.moduli import Words
from veil.errors import ArtifactError, StateError


class Index:
    """An open index. `close` gives up the file; the mapping goes when the last view of `blocks` is gone."""

    def __init__(self, front: Front, descriptor: int, name: str) -> None:
        """`descriptor` is owned from here on; use `Index.open`."""
        self._front = front
        self._descriptor = descriptor
        self.name = name
        layout = front.header.layout
        mapped = mmap.mmap(descriptor, file_bytes(layout), flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        words = np.frombuffer(mapped, np.uint32, layout.blocks * block_bytes(layout) // 4, data_offset(layout))
        self._blocks: Words | None = words.reshape(layout.blocks, *block_shape(layout))

    @classmethod
    def open(cls, source: Path | str | int, *, verify: bool = True) -> Index:
        """Opens a file, or takes an open one by its descriptor, which stays the caller's.

        verify: read all blocks and compare their checksums (about 1 s for each GB and core); without it only what
        stands in front of them is checked. Raises `ArtifactError`.
        """
        name = f"descriptor {source}" if isinstance(source, int) else str(source)
        try:
            # A pipe must not make us wait.
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
            descriptor = os.dup(source) if isinstance(source, int) else os.open(source, flags)
        except OSError as error:
            raise ArtifactError(
                f"got no readable index at {name}: {error.strerror}", hint="veil index build makes one"
            ) from None
        try:
            front = read_front(descriptor, name)
            index = cls(front, descriptor, name)
        except BaseException:
            os.close(descriptor)
            raise
        if verify:
            try:
                index.verify()
            except BaseException:
                index.close()
                raise
        return index

    @property
    def layout(self) -> Layout:
        """Layout of queries, items and results."""
        return self._front.header.layout

    @property
    def blocks(self) -> Words:
        """uint32[blocks, primes, tiles, terms, TILE], read-only. Raises `StateError` when the index is closed."""
        if self._blocks is None:
            raise StateError(f"got index {self.name}, which is closed, expected an open one")
        return self._blocks

    @property
    def item_norm(self) -> float:
        """What item vectors were divided by."""
        return self._front.header.item_norm

    @property
    def largest_norm(self) -> float:
        """No row is longer than this, at most 1: 1 / largest_norm is the headroom of items to come."""
        return self._front.header.largest_norm

    @property
    def model_digest(self) -> bytes:
        """Digest of the manifest of the model that the items are from, 32 bytes."""
        return self._front.header.model_digest

    @property
    def item_ids_digest(self) -> bytes:
        """`build.item_ids_digest` of the items' ids in order, 32 bytes."""
        return self._front.header.item_ids_digest

    @property
    def generation(self) -> int:
        """Rises by one with every change of the file."""
        return self._front.header.generation

    @property
    def removed(self) -> NDArray[np.int64]:
        """Numbers of removed items, ascending: their scores are noise around zero and must not be shown."""
        return np.flatnonzero(self._front.removed)

    @property
    def size_bytes(self) -> int:
        """Bytes of the file, which is what a server maps."""
        return file_bytes(self.layout)

    @property
    def front(self) -> Front:
        """Header and checksums."""
        return self._front

    def fileno(self) -> int:
        """Descriptor of the open file, to hand to another process."""
        if self._descriptor < 0:
            raise StateError(f"got index {self.name}, which is closed, expected an open one")
        return self._descriptor

    def verify(self, numbers: range | None = None) -> None:
        """Raises `ArtifactError` when a block differs from its checksum or holds a number that is no residue.

        numbers: of the blocks that are read, all unless given.
        """
        blocks, checks = self.blocks, self._front.checks
        primes = self.layout.parameters.data_primes

        def sound(number: int) -> bool:
            block = blocks[number]
            return block_check(block) == checks[number].tobytes() and all(
                int(block[p].max()) < prime for p, prime in enumerate(primes)
            )

        chosen = range(len(blocks)) if numbers is None else numbers
        good = in_threads(sound, chosen, cores())
        if not all(good):
            raise ArtifactError(
                f"got index {self.name} with {good.count(False)} damaged blocks, the first is"
                f" {chosen[good.index(False)]} of {len(blocks)}, expected their checksums",
                hint="build it again: veil index build --help",
            )

    def close(self) -> None:
        """Gives up the file; may be called again."""
        self._blocks = None
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        layout = self.layout
        return f"Index({self.name}, {layout.kind}, {layout.items} items, generation {self.generation})"
