"""Small layouts and rows for indexes."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import pytest

from he_inference import parameters
from he_inference.index.build import build
from he_inference.layouts.keyless import KeylessLayout
from he_inference.layouts.seam import Floats, Layout

DIGEST = bytes(range(32))
IDS = bytes(reversed(range(32)))


class Make(Protocol):
    def __call__(self, rows: Floats, *, name: str = "items.index", keep_rows: bool = True) -> Path: ...


def small_layout(items: int, dimensions: int = 7) -> Layout:
    """32 items a block, which makes a file of many blocks from few rows."""
    return KeylessLayout(parameters.KEYLESS_SMALL, items, dimensions, packing=64)


def random_rows(items: int, dimensions: int = 7, seed: int = 0) -> Floats:
    rows = np.random.default_rng(seed).standard_normal((items, dimensions))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True) * 0.9


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Builds an index of rows in the small layout, item norm 2."""

    def build_one(rows: Floats, *, name: str = "items.index", keep_rows: bool = True) -> Path:
        path = tmp_path / name
        layout = small_layout(*rows.shape)
        build(path, layout, rows, item_norm=2.0, model_digest=DIGEST, item_ids_digest=IDS, keep_rows=keep_rows)
        return path

    return build_one
