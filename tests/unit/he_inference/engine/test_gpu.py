"""The GPU's sums on the processor: those of the compiled kernel, residue for residue; Triton's where a GPU is."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from he_inference.engine.gpu import Accumulator, device_named
from he_inference.ring.accumulate import accumulate, tiled_queries
from he_inference.ring.moduli import TILE, find_primes, moduli
from veil.errors import ConfigError

_ENGINES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]


@pytest.mark.parametrize("engine", _ENGINES)
@pytest.mark.parametrize(("blocks", "groups", "rotations", "count"), [(1, 1, 1, 1), (3, 2, 4, 5), (2, 1, 130, 2)])
def test_sums_equal_those_of_the_compiled_kernel(
    engine: str, blocks: int, groups: int, rotations: int, count: int
) -> None:
    ring = moduli(2048, find_primes(2048, (27, 27)))
    generator = np.random.default_rng(rotations)
    top = min(ring.primes)
    index = generator.integers(0, top, (blocks, 2, 2048 // TILE, groups * rotations, TILE)).astype(np.uint32)
    queries = tiled_queries(generator.integers(0, top, (rotations, count, 2, 2, 2048)).astype(np.uint32))
    index.flags.writeable = False
    got = Accumulator(index, ring.q, engine).accumulate(queries)
    assert got.dtype == np.uint32
    assert np.array_equal(got, accumulate(index, queries, ring.q))


@pytest.mark.parametrize("engine", _ENGINES)
@pytest.mark.parametrize("bits", [27, 28])
def test_sums_hold_when_every_residue_is_the_largest(engine: str, bits: int) -> None:
    ring = moduli(2048, find_primes(2048, (bits, bits)))
    top = np.array(ring.primes, np.uint32) - np.uint32(1)
    index = np.broadcast_to(top[:, None, None, None], (1, 2, 2048 // TILE, 256, TILE))
    queries = np.broadcast_to(top[:, None, None, None, None, None], (2, 2048 // TILE, 1, 256, 2, TILE))
    got = Accumulator(index, ring.q, engine).accumulate(queries)
    for p, prime in enumerate(ring.primes):
        assert (got[0, 0, 0, :, p] == 256 * (prime - 1) ** 2 % prime).all()


def test_a_missing_device_is_said() -> None:
    if torch.cuda.is_available():
        assert device_named("cuda").type == "cuda"
        with pytest.raises(ConfigError):
            device_named("cuda:999")
    else:
        with pytest.raises(ConfigError, match="no CUDA device"):
            Accumulator(np.zeros((1, 2, 32, 1, TILE), np.uint32), np.array([3, 5], np.uint64), "cuda")
    for name in ("", "gpu", "cuda:", "cuda:-1", "cuda:x", "tpu", "cuda:1234"):
        with pytest.raises(ConfigError):
            device_named(name)


def test_shapes_that_do_not_fit_are_refused() -> None:
    q = np.array([97, 193], np.uint64)
    with pytest.raises(ValueError, match="expected"):
        Accumulator(np.zeros((1, 2, 32, 3, 32), np.uint32), q, "cpu")
    subject = Accumulator(np.zeros((1, 2, 4, 6, TILE), np.uint32), q, "cpu")
    for shape in ((2, 4, 1, 4, 2, TILE), (2, 4, 1, 0, 2, TILE), (1, 4, 1, 3, 2, TILE)):
        with pytest.raises(ValueError, match="expected"):
            subject.accumulate(np.zeros(shape, np.uint32))


def test_the_kernel_is_loaded_only_where_triton_is() -> None:
    subject = Accumulator(np.zeros((1, 2, 4, 6, TILE), np.uint32), np.array([97, 193], np.uint64), "cpu")
    assert subject._kernel is None
    if importlib.util.find_spec("triton") is None:
        with pytest.raises(ImportError):
            import he_inference.engine.gpu_kernel  # noqa: F401
