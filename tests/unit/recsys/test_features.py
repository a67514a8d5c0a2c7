from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from veil.errors import ConfigError, DataError
from veil.recsys.features import build_catalogue, category_block, text_block, year_block
from veil.recsys.items import ItemTable

TITLES = ("Heat (1995)", "Alien (1979)", "Brazil (1985)", "Up (2009)", "")
TABLE = ItemTable(("a", "b", "c", "d", "e"), TITLES, (("Crime",), ("Horror", "Space"), ("Space",), ("Air",), ()))


def letters(texts: Sequence[str]) -> np.ndarray:
    """An honest, if dull, encoder: letter frequencies."""
    return np.array([[text.lower().count(chr(97 + k)) for k in range(26)] for text in texts], np.float32)


def test_blocks_and_their_scaling() -> None:
    made = build_catalogue(TABLE, embed=letters, encoder="letters", phrasing="movies", text_dimensions=3)
    assert [(block.name, block.size) for block in made.blocks] == [
        ("text", 3), ("categories", 4), ("years", 4), ("constant", 1),
    ]  # fmt: skip
    assert (made.encoder, made.phrasing) == ("letters", "movies")
    text = made.block("text")
    assert np.allclose(text.mean(axis=0), 0, atol=1e-6)
    assert (text**2).sum(axis=1).mean() == pytest.approx(1, abs=1e-5)
    assert np.allclose(np.linalg.norm(made.block("categories"), axis=1), [1, 1, 1, 1, 0])
    assert np.allclose(np.linalg.norm(made.block("years"), axis=1), [1, 1, 1, 1, 0], atol=1e-6)
    assert made.block("constant").tolist() == [[1]] * 5


def test_without_an_encoder_categories_and_years_remain() -> None:
    made = build_catalogue(TABLE, phrasing="movies")
    assert [block.name for block in made.blocks] == ["categories", "years", "constant"]
    assert (made.encoder, made.phrasing) == ("none", "none")
    bare = build_catalogue(ItemTable(("a", "b"), ("", ""), ((), ())))
    assert bare.features.tolist() == [[1.0], [1.0]]


@pytest.mark.parametrize("items", [8, 60])  # fewer and more items than embedding columns: two ways to the components
def test_text_components_are_those_of_an_svd(items: int) -> None:
    table = ItemTable(tuple(map(str, range(items))), tuple(f"t{k}" for k in range(items)), ((),) * items)
    vectors = np.random.default_rng(0).standard_normal((3, items, 6)).astype(np.float32)
    calls = iter(vectors)
    got = text_block(table, lambda _: next(calls), "generic", 5)
    joined = np.concatenate([vectors[0], 0.7 * vectors[1], 0.7 * vectors[2]], axis=1).astype(np.float64)
    joined -= joined.mean(axis=0)
    left, strength, _ = np.linalg.svd(joined, full_matrices=False)
    expected = left[:, :5] * strength[:5]
    expected /= np.sqrt((expected**2).sum(axis=1).mean())
    assert got is not None
    assert np.allclose(np.abs(got), np.abs(expected), atol=1e-6)
    assert bool((got[np.abs(got).argmax(axis=0), np.arange(5)] > 0).all())


def test_texts_that_say_nothing_make_no_block() -> None:
    blank = ItemTable(("a", "b", "c"), ("", "", ""), ((), (), ()))
    assert text_block(blank, letters, "generic") is None
    assert [block.name for block in build_catalogue(blank, embed=letters).blocks] == ["constant"]


def test_unfit_embeddings_are_refused() -> None:
    for wrong in (np.zeros((4, 3)), np.full((5, 3), np.nan), np.zeros(5)):
        with pytest.raises(DataError, match="embeddings"):
            text_block(TABLE, lambda texts, wrong=wrong: wrong, "generic")  # type: ignore[misc]
    with pytest.raises(ConfigError):
        text_block(TABLE, letters, "generic", 0)


@given(st.lists(st.one_of(st.just(0), st.integers(1000, 2999)), max_size=40))
def test_year_bumps_are_finite_and_of_norm_one(years: list[int]) -> None:
    block = year_block(years)
    assert block.shape[0] == len(years) and block.shape[1] <= 14 and bool(np.isfinite(block).all())
    if block.shape[1]:
        assert np.allclose(np.linalg.norm(block, axis=1), np.array(years) > 0)


def test_near_years_are_alike() -> None:
    block = year_block([*range(1950, 2001), 1975])
    similar = block @ block.T
    assert similar[0, 1] > similar[0, 10] > similar[0, 30]


def test_too_many_categories() -> None:
    many = ItemTable(tuple(map(str, range(4097))), ("",) * 4097, tuple((f"c{k}",) for k in range(4097)))
    with pytest.raises(DataError, match="distinct categories"):
        category_block(many)
