from __future__ import annotations

import numpy as np
import pytest

from veil.errors import ConfigError, DataError
from veil.recsys.attributes import UserAttributes

NAMES = ("age", "region")
CATEGORIES = (("young", "old"), ("north", "south", "west"))
CODES = np.array([[0, 2], [1, -1], [-1, -1]], np.int16)


def test_columns_and_categories_by_name() -> None:
    found = UserAttributes(NAMES, CATEGORIES, CODES)
    assert found.users == 3
    assert found.column("region").tolist() == [2, -1, -1]
    assert found.categories_of("region") == ("north", "south", "west")
    with pytest.raises(ConfigError, match="age, region"):
        found.column("zip")


def test_it_is_frozen_and_shows_counts_only() -> None:
    own = CODES.copy()
    found = UserAttributes(NAMES, CATEGORIES, own)
    own[0, 0] = 1
    assert found.codes[0, 0] == 0
    with pytest.raises(ValueError, match="read-only"):
        found.codes[0, 0] = 1
    assert repr(found) == "UserAttributes(users=3, attributes=2, categories=(2, 3))"


@pytest.mark.parametrize(
    ("names", "categories", "codes"),
    [
        (("age", "age"), CATEGORIES, CODES),
        (NAMES, CATEGORIES[:1], CODES),
        (NAMES, (("young", "young"), CATEGORIES[1]), CODES),
        (NAMES, CATEGORIES, CODES.astype(np.int32)),
        (NAMES, CATEGORIES, CODES[:, :1]),
        (NAMES, CATEGORIES, CODES + np.int16(1)),
        (NAMES, CATEGORIES, CODES - np.int16(1)),
        ((), (), np.zeros((3, 0), np.int16)),
    ],
    ids=["names", "lists", "categories", "type", "shape", "too-large", "below-unknown", "none"],
)
def test_what_does_not_fit_is_refused(
    names: tuple[str, ...], categories: tuple[tuple[str, ...], ...], codes: np.ndarray
) -> None:
    with pytest.raises(DataError):
        UserAttributes(names, categories, codes)


def test_a_wholly_suppressed_attribute_has_no_categories() -> None:
    found = UserAttributes(("age",), ((),), np.full((2, 1), -1, np.int16))
    assert found.categories_of("age") == ()
    with pytest.raises(DataError):
        UserAttributes(("age",), ((),), np.zeros((2, 1), np.int16))
