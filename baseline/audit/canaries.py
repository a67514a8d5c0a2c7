"""Users made up for an audit: as visible as a user can be, and unlike each other.

Why these: a canary that contributes less than the bound allows makes an audit weaker than it could be. Every trainer
here normalises a user's row, so any history reaches the bound on counts; projections reach their clip when the items
of the history resemble each other in public features. Hence 8 to 24 items of one neighbourhood each.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from veil.errors import ConfigError
from veil.recsys.catalogue import Catalogue
from veil.recsys.interactions import Interactions

_LEAST_ITEMS: Final = 8
_MOST_ITEMS: Final = 24
_NEIGHBOURHOOD: Final = 3


def make_canaries(catalogue: Catalogue, count: int, seed: int) -> Interactions:
    """`count` users over the catalogue's items. Raises `ConfigError` unless there is at least one, and two items."""
    if count < 1 or catalogue.items < 2:
        raise ConfigError(f"got {count} canaries on {catalogue.items} items, expected at least 1 and 2")
    generator = np.random.default_rng(seed)
    features = catalogue.features.astype(np.float64)
    features = features - features.mean(axis=0)
    features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    # Every item is the seed of a canary before any is one twice.
    rounds = -(-count // catalogue.items)
    centres = np.concatenate([generator.permutation(catalogue.items) for _ in range(rounds)])[:count]
    user_of: list[npt.NDArray[np.int64]] = []
    item_of: list[npt.NDArray[np.int64]] = []
    for user, centre in enumerate(centres.tolist()):
        size = int(generator.integers(_LEAST_ITEMS, _MOST_ITEMS + 1))
        size = min(size, max(1, catalogue.items // 2))
        near = np.argsort(-(features @ features[centre]), kind="stable")[: _NEIGHBOURHOOD * size]
        items = generator.choice(near, size, replace=False)
        user_of.append(np.full(size, user, np.int64))
        item_of.append(items.astype(np.int64))
    return Interactions.from_pairs(np.concatenate(user_of), np.concatenate(item_of), users=count, items=catalogue.items)
