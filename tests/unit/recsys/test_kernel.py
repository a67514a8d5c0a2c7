"""The kernel design: scale, agreement of old and new rows, and what it can tell that columns cannot."""

from __future__ import annotations

import numpy as np
import pytest

from veil.errors import InputError
from veil.recsys import kernel
from veil.recsys.catalogue import Block
from veil.recsys.postprocess import feature_design


def blocks(*sizes: int) -> tuple[Block, ...]:
    return tuple(Block(name=f"part-{number}", size=size, scaling="1") for number, size in enumerate(sizes))


@pytest.fixture(scope="module")
def features() -> np.ndarray:
    generator = np.random.default_rng(1)
    two = generator.integers(0, 2, (300, 2)) * 2.0 - 1.0
    return np.concatenate([two, np.ones((300, 1))], axis=1).astype(np.float32)


def test_design_is_centred_and_scaled(features: np.ndarray) -> None:
    rows = kernel.design_rows(features, blocks(1, 1, 1))
    np.testing.assert_allclose(rows[:, :-1].mean(axis=0), 0.0, atol=1e-9)
    assert np.square(rows[:, :-1]).sum(axis=1).mean() == pytest.approx(2.25)
    np.testing.assert_array_equal(rows[:, -1], 1.0)


def test_it_spans_products_of_blocks(features: np.ndarray) -> None:
    product = features[:, 0] * features[:, 1]
    for rows, told in (
        (feature_design(features), False),
        (kernel.design_rows(features, blocks(1, 1, 1)), True),
    ):
        rest = product - rows @ np.linalg.lstsq(rows, product, rcond=None)[0]
        assert (np.square(rest).mean() < 1e-9) == told


def test_the_same_items_give_the_same_rows(features: np.ndarray) -> None:
    made = kernel.kernel_design(features, blocks(1, 1, 1))
    assert made is not None
    np.testing.assert_allclose(made.of(features[40:60]), made.rows[40:60], atol=1e-9)
    with pytest.raises(InputError, match="columns"):
        made.of(features[:, :2])


def test_landmarks_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(2)
    features = generator.standard_normal((500, 6)).astype(np.float32)
    whole = kernel.design_rows(features, blocks(3, 3))[:, :20]
    monkeypatch.setattr(kernel, "_LANDMARKS", 250)
    monkeypatch.setattr(kernel, "_BLOCK_ROWS", 64)
    fewer = kernel.design_rows(features, blocks(3, 3))[:, :20]
    gram, near = whole @ whole.T, fewer @ fewer.T
    assert np.linalg.norm(gram - near) < 0.2 * np.linalg.norm(gram)


def test_without_blocks_the_columns_stay_alone() -> None:
    features = np.random.default_rng(3).standard_normal((30, 4)).astype(np.float32)
    np.testing.assert_array_equal(kernel.design_rows(features, ()), feature_design(features))
    nothing = np.ones((30, 1), np.float32)
    np.testing.assert_array_equal(kernel.design_rows(nothing, blocks(1)), feature_design(nothing))
    assert kernel.design_rows(np.zeros((5, 0), np.float32), ()).shape == (5, 1)
