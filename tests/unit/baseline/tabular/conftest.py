"""A small clicks table in memory: two parties of hashed columns, and outcomes that depend on both."""

from __future__ import annotations

import numpy as np
import pytest

from baseline.tabular.material import Float64, Int64
from veil.tabular.schema import HashedColumn, Label, PartyColumns, TabularSchema, equal_shares


@pytest.fixture
def schema() -> TabularSchema:
    parties = tuple(
        PartyColumns(
            party=name,
            identifier="id",
            norm_share=equal_shares(2, 13),
            columns=tuple(HashedColumn(name=f"{name}{column}", buckets=4) for column in range(3)),
        )
        for name in ("left", "right")
    )
    return TabularSchema(slots=4096, parties=parties, label=Label(name="click"), label_party="left")


@pytest.fixture
def clicks(schema: TabularSchema) -> tuple[Int64, Int64, Float64]:
    """Rows in grid steps within the norm, labels, and the weights that drew them."""
    rng = np.random.default_rng(11)
    rows = rng.normal(size=(3000, schema.width))
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1.0)
    truth = rng.normal(size=schema.width) * 3
    labels = (rng.random(3000) < 1 / (1 + np.exp(1.5 - rows @ truth))).astype(np.int64)
    return np.trunc(rows * schema.row_bound * (1 - 2**-12)).astype(np.int64), labels, truth
