"""The GPU's sums on the processor: those of the compiled kernel, residue for residue; on a GPU where one is."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from he_inference.engine import gpu
from he_inference.engine.blocks import HostBlocks
from he_inference.engine.gpu import DeviceBlocks, cuda_device, place_on, require_exact
from he_inference.ring.accumulate import accumulate, tiled_queries
from he_inference.ring.moduli import TILE, Words, find_primes, moduli
from veil.errors import ConfigError

CPU = torch.device("cpu")
_NO_CUDA = not torch.cuda.is_available()
_DEVICES = ["cpu", pytest.param("cuda:0", marks=pytest.mark.skipif(_NO_CUDA, reason="no CUDA device"))]


def summed(blocks: DeviceBlocks, queries: Words, at_a_time: int = 2) -> Words:
    parts = list(blocks.sums(queries, at_a_time))
    assert [len(part) for part in parts[:-1]] == [at_a_time] * (len(parts) - 1)
    return np.concatenate(parts)


@pytest.mark.parametrize("device", _DEVICES)
@pytest.mark.parametrize(("blocks", "groups", "rotations", "count"), [(1, 1, 1, 1), (3, 2, 4, 5), (2, 1, 130, 19)])
def test_sums_equal_those_of_the_compiled_kernel(
    device: str, blocks: int, groups: int, rotations: int, count: int
) -> None:
    ring = moduli(2048, find_primes(2048, (27, 27)))
    generator = np.random.default_rng(rotations)
    top = min(ring.primes)
    index = generator.integers(0, top, (blocks, 2, 2048 // TILE, groups * rotations, TILE)).astype(np.uint32)
    queries = tiled_queries(generator.integers(0, top, (rotations, count, 2, 2, 2048)).astype(np.uint32))
    index.flags.writeable = queries.flags.writeable = False
    subject = DeviceBlocks.moved(index, ring.q, torch.device(device))
    want = accumulate(index, queries, ring.q)
    got = summed(subject, queries)
    assert got.dtype == np.uint32
    assert np.array_equal(got, want)
    assert len(subject) == blocks
    assert np.array_equal(summed(subject[blocks - 1 :], queries), want[blocks - 1 :])


@pytest.mark.parametrize("device", _DEVICES)
@pytest.mark.parametrize("bits", [27, 28])
def test_sums_hold_when_every_residue_is_the_largest(device: str, bits: int) -> None:
    ring = moduli(2048, find_primes(2048, (bits, bits)))
    top = np.array(ring.primes, np.uint32) - np.uint32(1)
    index = np.broadcast_to(top[:, None, None, None], (1, 2, 2048 // TILE, 256, TILE))
    queries = np.broadcast_to(top[:, None, None, None, None, None], (2, 2048 // TILE, 1, 256, 2, TILE))
    got = summed(DeviceBlocks.moved(index, ring.q, torch.device(device)), queries)
    for p, prime in enumerate(ring.primes):
        assert (got[0, 0, 0, :, p] == 256 * (prime - 1) ** 2 % prime).all()


def test_many_queries_are_summed_up_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if memory held the products of one query at a time, then of two."""
    generator = np.random.default_rng(1)
    q = np.array([97, 193], np.uint64)
    index = generator.integers(0, 97, (2, 2, 4, 6, TILE)).astype(np.uint32)
    queries = generator.integers(0, 97, (2, 4, 5, 3, 2, TILE)).astype(np.uint32)
    for held in (1, 2 * 2 * 4 * 3 * 2 * TILE):
        monkeypatch.setattr(gpu, "_WORKING_NUMBERS", held)
        assert np.array_equal(summed(DeviceBlocks.moved(index, q, CPU), queries), accumulate(index, queries, q))


def test_a_missing_device_is_said() -> None:
    if _NO_CUDA:
        for number in (0, 5):
            with pytest.raises(ConfigError, match=rf"device {number}.*no CUDA device") as error:
                place_on(number)
            assert error.value.hint is not None and "process" in error.value.hint
        return
    assert cuda_device(0).type == "cuda"
    with pytest.raises(ConfigError, match="below"):
        cuda_device(127)


def test_a_number_beyond_the_devices_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert cuda_device(1) == torch.device("cuda", 1)
    for number in (2, -1):
        with pytest.raises(ConfigError, match="below 2"):
            cuda_device(number)


def test_an_index_without_room_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(torch, "empty", full)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (10, 1000))
    with pytest.raises(ConfigError, match=r"an index of 8192 bytes .*10 of 1000 are free"):
        DeviceBlocks.moved(np.zeros((1, 2, 4, 4, TILE), np.uint32), np.array([97, 193], np.uint64), CPU)


class Wrong(HostBlocks):
    """One number is off by one, in the batch of several queries only."""

    def sums(self, queries: Words, at_a_time: int) -> Iterator[Words]:
        for part in super().sums(queries, at_a_time):
            part[-1, -1, -1, -1, -1, -1] ^= queries.shape[2] > 1
            yield part


class Broken(HostBlocks):
    """As a compiler that is absent."""

    def sums(self, queries: Words, at_a_time: int) -> Iterator[Words]:
        raise RuntimeError("Failed to find C compiler")


def test_a_device_is_used_only_when_it_sums_up_exactly() -> None:
    def on_cpu(index: Words, q: NDArray[np.uint64]) -> DeviceBlocks:
        return DeviceBlocks.moved(index, q, CPU)

    require_exact(on_cpu, "cpu")
    with pytest.raises(ConfigError, match="wrong sums from device x"):
        require_exact(Wrong, "x")
    with pytest.raises(ConfigError, match=r"device x.*C compiler"):
        require_exact(Broken, "x")


def test_shapes_that_do_not_fit_are_refused() -> None:
    q = np.array([97, 193], np.uint64)
    for shape in ((1, 2, 32, 3, 32), (1, 3, 32, 3, TILE), (2, 32, 3, TILE)):
        with pytest.raises(ValueError, match="expected"):
            DeviceBlocks.moved(np.zeros(shape, np.uint32), q, CPU)
    subject = DeviceBlocks.moved(np.zeros((1, 2, 4, 6, TILE), np.uint32), q, CPU)
    for asked in ((2, 4, 1, 4, 2, TILE), (2, 4, 1, 0, 2, TILE), (1, 4, 1, 3, 2, TILE)):
        with pytest.raises(ValueError, match="expected"):
            list(subject.sums(np.zeros(asked, np.uint32), 1))
