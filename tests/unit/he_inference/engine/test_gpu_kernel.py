"""Triton's kernel in Triton's interpreter, where Triton is installed: the sums of the compiled kernel.

In a process of its own, since Triton looks for its interpreter when it is imported.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

PROGRAM = """
import numpy as np, torch
from he_inference.engine.gpu_kernel import launch
from he_inference.ring.accumulate import accumulate
from he_inference.ring.moduli import TILE, find_primes

generator = np.random.default_rng(0)
cases = [(1, 1, 1, 1, 27), (2, 2, 4, 5, 27), (1, 3, 1, 8, 27), (1, 1, 130, 9, 27), (1, 1, 64, 2, 28), (1, 1, 65, 1, 27)]
for blocks, groups, rotations, count, bits in cases:
    primes = find_primes(2048, (bits, bits, bits))
    q, low, top = np.array(primes, np.uint64), min(primes) - 9, min(primes)
    index = generator.integers(low, top, (blocks, 3, 2, groups * rotations, TILE)).astype(np.uint32)
    queries = generator.integers(low, top, (3, 2, count, rotations, 2, TILE)).astype(np.uint32)
    arrays = [torch.from_numpy(index.view(np.int32)), torch.from_numpy(queries.view(np.int32))]
    got = launch(*arrays, torch.from_numpy(q.astype(np.int64))).numpy().view(np.uint32)
    want = accumulate(index, queries, q)
    print(np.array_equal(got.reshape(want.shape), want))
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_sums_equal_those_of_the_compiled_kernel() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=200, check=False, env=environment
    )
    assert found.stdout.split() == ["True"] * 6, found.stderr


@pytest.mark.skipif(importlib.util.find_spec("triton") is not None, reason="Triton is installed")
def test_without_triton_nothing_else_needs_it() -> None:
    program = "import sys, he_inference.engine.cuda; print('triton' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=200, check=True)
    assert found.stdout.split() == ["False"]
    with pytest.raises(ImportError):
        import he_inference.engine.gpu_kernel  # noqa: F401
