"""Blocks on a GPU: the sums of `he_inference.ring.accumulate` in torch, in Triton where that is installed.

Guarantee: exact modular arithmetic on 64-bit integers, the same residues as the kernel for processors, number for
number. A device is used only after it has shown that on an example (`place_on`). Chosen by name only (`kind = "cuda"`);
where there is no such device a `ConfigError` says so, and nothing falls back silently.

The index is moved to the device once, block by block, and stays there; queries and sums travel. torch has no products
of unsigned numbers, but residues have 28 bits and sums of 128 products stay below 2^63: more are reduced in between.

Sources: torch's documentation, "CUDA semantics" (`torch.cuda.device_count`, `mem_get_info`, asynchronous execution: a
copy to the host waits for what was started before it).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from he_inference.engine.blocks import Place
from he_inference.ring.accumulate import accumulate
from he_inference.ring.moduli import TILE, Words, find_primes
from veil.errors import ConfigError

Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
# 2^7 products of 28-bit residues are below 2^63.
_MOST_PRODUCTS = 128
# Numbers of 64 bits that are held at a time.
_WORKING_NUMBERS = 1 << 25


def place_on(number: int) -> Place:
    """What moves indexes to CUDA device `number`, which was found to sum up exactly.

    Raises `ConfigError` without the device, and for one that cannot run the arithmetic or does it wrongly; the `Place`
    raises it for an index that the device has no memory for.
    """
    device = cuda_device(number)

    def place(index: Words, q: NDArray[np.uint64]) -> DeviceBlocks:
        return DeviceBlocks.moved(index, q, device)

    require_exact(place, str(device))
    return place


def cuda_device(number: int) -> torch.device:
    """CUDA device `number`. Raises `ConfigError` when torch finds none of that number."""
    if not torch.cuda.is_available():
        raise ConfigError(
            f"got engine cuda, device {number}, but torch finds no CUDA device, expected one",
            hint='install a CUDA build of torch and its driver, or choose engine "process"',
        )
    count = torch.cuda.device_count()
    if not 0 <= number < count:
        raise ConfigError(
            f"got engine cuda, device {number}, expected a number below {count}",
            hint="engine.cuda.device; nvidia-smi lists the devices, CUDA_VISIBLE_DEVICES may hide some",
        )
    return torch.device("cuda", number)


def require_exact(place: Place, name: str) -> None:
    """Raises `ConfigError` unless sums at `place` (called `name`) are those of the processor, on an example of both."""
    generator = np.random.default_rng(0)
    primes = find_primes(2048, (27, 27))
    q = np.array(primes, np.uint64)
    # More terms than either kernel adds up without a reduction, and residues near the largest ones, which add up most.
    index = generator.integers(min(primes) - 1000, min(primes), (2, 2, 2, 2 * 130, TILE)).astype(np.uint32)
    for count in (1, 11):
        queries = generator.integers(min(primes) - 1000, min(primes), (2, 2, count, 130, 2, TILE)).astype(np.uint32)
        try:
            got = np.concatenate(list(place(index, q).sums(queries, 2)))
        except Exception as error:
            # Compilers and drivers fail with errors of any kind; each means that this device is of no use here.
            raise ConfigError(
                f"got device {name}, which does not run the arithmetic: {type(error).__name__}: {str(error)[:200]}",
                hint="Triton needs a C compiler; where Triton is not installed, torch does the same by itself",
            ) from error
        if not np.array_equal(got, accumulate(index, queries, q)):
            raise ConfigError(
                f"got wrong sums from device {name}, expected those of the processor",
                hint="do not serve with this device; its driver, Triton or its memory is at fault",
            )


@dataclass(frozen=True)
class DeviceBlocks:
    """`Blocks` of one index on one device."""

    words: torch.Tensor = field(repr=False)
    q: torch.Tensor
    kernel: Kernel | None = field(repr=False)

    @classmethod
    def moved(cls, index: Words, q: NDArray[np.uint64], device: torch.device) -> DeviceBlocks:
        """Copies uint32[blocks, primes, tiles, terms, TILE]; q: the primes. Raises `ConfigError` without memory."""
        if index.ndim != 5 or index.shape[4] != TILE or index.shape[1] != len(q):
            raise ValueError(f"got an index of shape {index.shape}, expected [blocks, {len(q)}, tiles, terms, {TILE}]")
        try:
            # Residues have 28 bits, so signed words hold them.
            words = torch.empty(index.shape, dtype=torch.int32, device=device)
        except torch.OutOfMemoryError:
            free, total = torch.cuda.mem_get_info(device)
            raise ConfigError(
                f"got an index of {index.nbytes} bytes for device {device}, where {free} of {total} are free",
                hint="while indexes are exchanged both sets lie there; serve fewer offers, or from another device",
            ) from None
        for block, words_of_block in enumerate(index):
            # A copy, since torch warns of arrays that cannot be written; one block of it at a time.
            words[block].copy_(torch.from_numpy(np.array(words_of_block).view(np.int32)))
        return cls(words, torch.from_numpy(q.astype(np.int64)).to(device), _kernel_of(device))

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, blocks: slice) -> DeviceBlocks:
        return DeviceBlocks(self.words[blocks], self.q, self.kernel)

    def sums(self, queries: Words, at_a_time: int) -> Iterator[Words]:
        """As of `Blocks`. Raises `torch.OutOfMemoryError` when the device has none left."""
        _, primes, tiles, terms, _ = self.words.shape
        count, rotations = queries.shape[2:4]
        if queries.shape != (primes, tiles, count, rotations, 2, TILE) or not rotations or terms % rotations:
            raise ValueError(f"got queries of shape {queries.shape}, expected ones that fit an index of {terms} terms")
        # A copy where they cannot be written, as of the index.
        own = np.require(queries, requirements=["C", "W"]).view(np.int32)
        x = torch.from_numpy(own).to(self.words.device)
        for start in range(0, len(self), at_a_time):
            index = self.words[start : start + at_a_time]
            sums = _summed(index, x, self.q) if self.kernel is None else self.kernel(index, x, self.q)
            words: Words = sums.cpu().numpy().view(np.uint32)
            yield words.reshape(*words.shape[:-2], -1)


def _kernel_of(device: torch.device) -> Kernel | None:
    """Triton's kernel, where there is Triton for that device."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return None
    from he_inference.engine.gpu_kernel import launch

    return launch


def _summed(index: torch.Tensor, x: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """int32[blocks, groups, queries, 2, primes, tiles, TILE] by torch's own operations."""
    blocks, primes, tiles, terms, _ = index.shape
    count, rotations = x.shape[2:4]
    groups = terms // rotations
    out = torch.empty((blocks, groups, count, 2, primes, tiles, TILE), dtype=torch.int32, device=index.device)
    each = max(1, _WORKING_NUMBERS // (primes * tiles * min(rotations, _MOST_PRODUCTS) * 2 * TILE))
    for block in range(blocks):
        for group in range(groups):
            items = index[block, :, :, group * rotations : (group + 1) * rotations]
            for start in range(0, count, each):
                sums = _sums_of_products(items, x[:, :, start : start + each], q[:, None, None, None, None])
                # [primes, tiles, queries, 2, TILE] -> [queries, 2, primes, tiles, TILE]
                out[block, group, start : start + each] = sums.permute(2, 3, 0, 1, 4).to(torch.int32)
    return out


def _sums_of_products(items: torch.Tensor, x: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """int64[primes, tiles, queries, 2, TILE] of int32[primes, tiles, rotations, TILE] and the queries'."""
    total: torch.Tensor | None = None
    for start in range(0, items.shape[2], _MOST_PRODUCTS):
        p = items[:, :, None, start : start + _MOST_PRODUCTS, None].to(torch.int64)
        part = (p * x[:, :, :, start : start + _MOST_PRODUCTS].to(torch.int64)).sum(dim=3) % q
        total = part if total is None else (total + part) % q
    if total is None:
        raise ValueError("got no rotations, expected at least one")
    return total
