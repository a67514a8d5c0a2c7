"""Open indexes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from he_inference.index.store import Index
from veil.errors import StateError

from .conftest import Make, random_rows


def test_a_closed_index_has_no_blocks_but_views_stay(make: Make) -> None:
    index = Index.open(make(random_rows(40)))
    view = index.blocks[0]
    kept = view.copy()
    index.close()
    index.close()
    for use in (lambda: index.blocks, index.fileno, index.verify):
        with pytest.raises(StateError, match="closed"):
            use()
    np.testing.assert_array_equal(view, kept)


def test_an_index_opens_by_descriptor_also_when_its_name_is_gone(make: Make) -> None:
    path = make(random_rows(40))
    with Index.open(path) as index:
        path.unlink()
        with Index.open(index.fileno()) as other:
            np.testing.assert_array_equal(other.blocks, index.blocks)
            assert other.fileno() != index.fileno()
        # What a compute process is given.
        with Index.open(Path(f"/dev/fd/{index.fileno()}")) as other:
            np.testing.assert_array_equal(other.blocks, index.blocks)
        os.fstat(index.fileno())


def test_reading_an_index_loads_neither_compiler_nor_scheme() -> None:
    code = "import sys, he_inference.index.store; print(sorted({'numba', 'tenseal', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60, check=True)
    assert done.stdout == b"[]\n"
