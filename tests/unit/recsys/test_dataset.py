from __future__ import annotations

import pytest

from veil.errors import DataError
from veil.recsys.dataset import Dataset
from veil.recsys.synthetic import generate


def test_a_test_item_that_is_trained_on_is_refused() -> None:
    data = generate(50, 250, seed=1, negatives=9)
    leaked = data.test_items.copy()
    leaked[7] = data.train.history(7)[0]
    with pytest.raises(DataError, match="test item"):
        Dataset("leak", data.train, leaked, data.negatives, data.table)
    with pytest.raises(DataError, match="negatives"):
        Dataset("short", data.train, data.test_items, data.negatives[:-1], data.table)  # type: ignore[index]
