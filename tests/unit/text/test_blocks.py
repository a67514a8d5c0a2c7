"""From embeddings to a catalogue's text features, and back to the map between them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from veil.errors import ConfigError, DataError
from veil.recsys.features import text_block
from veil.recsys.items import ItemTable
from veil.text.blocks import TextMap, joined_embeddings


def embed(texts: Sequence[str]) -> npt.NDArray[np.float32]:
    """Unit vectors that depend on the letters: alike texts are near each other."""
    rows = np.stack([np.bincount([ord(letter) % 24 for letter in text], minlength=24) for text in texts])
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def table(items: int, seed: int) -> ItemTable:
    generator = np.random.default_rng(seed)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    titles = tuple("".join(generator.choice(letters, 12)) for _ in range(items))
    names = ("comedy", "drama", "war")
    categories = tuple(tuple(sorted(set(generator.choice(names, 2)))) for _ in range(items))
    return ItemTable(tuple(f"{seed}-{number}" for number in range(items)), titles, categories)


def test_joined_are_the_weighted_phrasings_side_by_side() -> None:
    joined = joined_embeddings(table(5, 1), embed, "generic")
    assert joined.shape == (5, 3 * 24)
    lengths = [np.linalg.norm(part, axis=1) for part in np.split(joined, 3, axis=1)]
    np.testing.assert_allclose(np.stack(lengths, axis=1), [[1.0, 0.7, 0.7]] * 5, rtol=1e-6)


@pytest.mark.parametrize("items", [30, 200])
def test_the_map_of_a_catalogue_is_found_again(items: int) -> None:
    # 30: fewer items than the 72 embedding columns
    old = table(items, 2)
    features = text_block(old, embed, "generic", 10)
    assert features is not None
    joined = joined_embeddings(old, embed, "generic")
    found = TextMap.fit(joined, features.astype(np.float32))
    np.testing.assert_allclose(found.apply(joined), features, atol=1e-5)

    # an item that was left out lands where principal components would have put it
    centred = joined - joined.mean(axis=0)
    right = np.linalg.svd(centred, full_matrices=False)[2][:10].T
    new = (joined_embeddings(table(7, 3), embed, "generic") - joined.mean(axis=0)) @ right
    got = found.apply(joined_embeddings(table(7, 3), embed, "generic"))
    scale = np.sqrt(np.square(centred @ right).sum(axis=1).mean())
    # signs of components are arbitrary: compare inner products
    np.testing.assert_allclose(got @ got.T, new @ new.T / scale**2, atol=1e-4)


def test_a_part_of_the_catalogue_gives_the_same_map() -> None:
    old = table(400, 4)
    features = text_block(old, embed, "generic", 12)
    assert features is not None
    joined = joined_embeddings(old, embed, "generic")
    found = TextMap.fit(joined[::2], features[::2])
    np.testing.assert_allclose(found.apply(joined), features, atol=1e-6)


def test_features_of_another_encoder_are_refused() -> None:
    old = table(200, 5)
    joined = joined_embeddings(old, embed, "generic")
    with pytest.raises(ConfigError, match="encoder"):
        TextMap.fit(joined, np.random.default_rng(1).standard_normal((200, 6)))


def test_embeddings_of_a_wrong_shape_are_refused() -> None:
    with pytest.raises(DataError, match="finite rows"):
        joined_embeddings(table(4, 6), lambda texts: np.zeros((1, 8), np.float32), "generic")
