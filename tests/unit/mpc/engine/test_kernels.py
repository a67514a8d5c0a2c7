"""Loops over ring elements: every layout in memory, and a machine that keeps no compiled code."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import pytest
import torch

from veil.mpc.engine import kernels


def ring(*shape: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(-(2**63), 2**63, shape, np.int64))


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize(("rows", "inner"), [(1, 1), (1, 5), (7, 1), (7, 5)])
def test_products_are_exact_however_the_factors_lie_in_memory(rows: int, inner: int, columns: int) -> None:
    left, right = ring(rows, inner, seed=0), ring(inner, columns, seed=1)
    wide = ring(2 * rows, 2 * inner, seed=2)
    wide[::2, ::2] = left
    lefts = [left, left.t().contiguous().t(), wide[::2, ::2]]
    rights = [right, right.t().contiguous().t(), torch.cat([right, right], dim=1)[:, :columns]]
    for one in lefts:
        for other in rights:
            assert torch.equal(kernels.matmul(one, other), left @ right)


def test_nothing_to_keep_compiled_code_in_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    njit: Any = numba.njit

    def uncached(*, cache: bool = False, **options: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(**options)

    monkeypatch.setattr(numba, "njit", uncached)

    def double(values: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> None:
        values[0] *= 2

    values = np.array([21])
    kernels._compiled(double)(values)
    assert values[0] == 42
