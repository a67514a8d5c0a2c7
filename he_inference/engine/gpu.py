"""The scoring kernel on a GPU: the sums of `he_inference.ring.accumulate` in torch, in Triton where that is installed.

Guarantee: exact modular arithmetic on 64-bit integers, the same residues as the kernel for processors, number for
number. Chosen by name only (`engine = "cuda"`); where there is no such device a `ConfigError` says so, and nothing
falls back silently.

The index is moved to the device once and stays there; queries and sums travel. torch has no products of unsigned
numbers, but residues have 28 bits and sums of 128 products (64 of 28-bit primes) stay below 2^63: more are reduced in
between.
"""

from __future__ import annotations

import importlib.util
import re
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from he_inference.ring.moduli import TILE, Words
from veil.errors import ConfigError

# 2^7 products of 28-bit residues are below 2^63.
_MOST_PRODUCTS = 128
# Numbers of 64 bits that are held at a time.
_WORKING_NUMBERS = 1 << 25


def device_named(engine: str) -> torch.device:
    """The device of `engine`: "cuda" or "cuda:<number>" (or "cpu", which tests use). Raises `ConfigError`."""
    if re.fullmatch(r"cuda(:[0-9]{1,3})?|cpu", engine) is None:
        raise ConfigError(f"got engine {engine[:32]!r}, expected cuda or cuda:<number>")
    if engine == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            "got engine cuda, but torch finds no CUDA device, expected one",
            hint="install a CUDA build of torch and its driver, or leave the engine at its default",
        )
    if ":" in engine and int(engine[5:]) >= torch.cuda.device_count():
        raise ConfigError(f"got engine {engine}, expected a number below {torch.cuda.device_count()}")
    return torch.device(engine)


class Accumulator:
    """One index on one device."""

    def __init__(self, index: Words, q: NDArray[np.uint64], engine: str = "cuda") -> None:
        """index: uint32[blocks, primes, tiles, terms, TILE]; q: the primes. Raises `ConfigError` without the device."""
        if index.ndim != 5 or index.shape[4] != TILE or index.shape[1] != len(q):
            raise ValueError(f"got an index of shape {index.shape}, expected [blocks, {len(q)}, tiles, terms, {TILE}]")
        self._device = device_named(engine)
        # Residues have 28 bits, so signed words hold them.
        self._index = torch.from_numpy(np.array(index).view(np.int32)).to(self._device)
        self._q = torch.from_numpy(q.astype(np.int64)).to(self._device)
        self._kernel: Any = None
        if self._device.type == "cuda" and importlib.util.find_spec("triton") is not None:
            from he_inference.engine.gpu_kernel import launch

            self._kernel = launch

    def __repr__(self) -> str:
        return f"Accumulator({tuple(self._index.shape)}, {self._device})"

    def accumulate(self, queries: Words) -> Words:
        """uint32[blocks, groups, queries, 2, primes, N] of uint32[primes, tiles, queries, rotations, 2, TILE]."""
        blocks, primes, tiles, terms, _ = self._index.shape
        count, rotations = queries.shape[2:4]
        if queries.shape != (primes, tiles, count, rotations, 2, TILE) or not rotations or terms % rotations:
            raise ValueError(f"got queries of shape {queries.shape}, expected ones that fit an index of {terms} terms")
        x = torch.from_numpy(np.ascontiguousarray(queries).view(np.int32)).to(self._device)
        if self._kernel is not None:
            return self._on_host(self._kernel(self._index, x, self._q))
        groups = terms // rotations
        out = torch.empty((blocks, groups, count, 2, primes, tiles, TILE), dtype=torch.int32, device=self._device)
        each = max(1, _WORKING_NUMBERS // (primes * tiles * rotations * 2 * TILE))
        for block in range(blocks):
            for group in range(groups):
                items = self._index[block, :, :, group * rotations : (group + 1) * rotations]
                for start in range(0, count, each):
                    sums = self._sums(items, x[:, :, start : start + each])
                    # [primes, tiles, queries, 2, TILE] -> [queries, 2, primes, tiles, TILE]
                    out[block, group, start : start + each] = sums.permute(2, 3, 0, 1, 4).to(torch.int32)
        return self._on_host(out)

    def _sums(self, items: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """int64[primes, tiles, queries, 2, TILE] of int32[primes, tiles, rotations, TILE] and the queries'."""
        q = self._q[:, None, None, None, None]
        total: torch.Tensor | None = None
        for start in range(0, items.shape[2], _MOST_PRODUCTS):
            p = items[:, :, None, start : start + _MOST_PRODUCTS, None].to(torch.int64)
            part = (p * x[:, :, :, start : start + _MOST_PRODUCTS].to(torch.int64)).sum(dim=3) % q
            total = part if total is None else (total + part) % q
        if total is None:
            raise ValueError("got no rotations, expected at least one")
        return total

    @staticmethod
    def _on_host(sums: torch.Tensor) -> Words:
        words: Words = sums.cpu().numpy().view(np.uint32)
        return words.reshape(*words.shape[:-2], -1)
