from __future__ import annotations

import pytest

from veil.errors import ConfigError
from veil.recsys.items import ItemTable
from veil.text.phrasing import film_name, sentences, split_title, years


@pytest.mark.parametrize(
    ("title", "parts"),
    [
        ("Heat (1995)", ("Heat", 1995)),
        ("Heat  (1995) ", ("Heat", 1995)),
        ("1984", ("1984", 0)),
        ("2001 (again)", ("2001 (again)", 0)),
        ("(1995)", ("", 1995)),
        ("A (B) (1950)", ("A (B)", 1950)),
        ("A (3999)", ("A (3999)", 0)),
    ],
)
def test_split_title(title: str, parts: tuple[str, int]) -> None:
    assert split_title(title) == parts


@pytest.mark.parametrize(
    ("title", "name"),
    [
        ("Matrix, The", "The Matrix"),
        ("Postino, Il (The Postman)", "Il Postino"),
        ("(Aliases only)", "(Aliases only)"),
        ("Me, Myself", "Me, Myself"),
    ],
)
def test_film_name(title: str, name: str) -> None:
    assert film_name(title) == name


TABLE = ItemTable(("a", "b"), ("Bug's Life, A (1998)", ""), (("Animation", "Comedy"), ()), texts=("Ants.", ""))


def test_movies() -> None:
    assert sentences(TABLE, "movies") == [
        (1.0, ["A Bug's Life (1998). Genres: Animation, Comedy. Ants.", "unknown movie"]),
        (0.7, ["A Bug's Life", "unknown movie"]),
        (0.7, ["The audience of the 1990s animation and comedy movie A Bug's Life", "unknown movie"]),
    ]


def test_generic() -> None:
    assert sentences(TABLE, "generic") == [
        (1.0, ["Bug's Life, A (1998). Categories: Animation, Comedy. Ants.", "Unknown item."]),
        (0.7, ["Bug's Life, A", "unknown item"]),
        (0.7, ["People interested in animation and comedy choose Bug's Life, A", "People choose unknown item"]),
    ]


def test_years_of_the_table_come_before_those_of_titles() -> None:
    assert years(TABLE) == [1998, 0]
    assert years(ItemTable(("a", "b"), ("X (1998)", "Y"), ((), ()), years=(0, 1950))) == [1998, 1950]


def test_an_unknown_set() -> None:
    with pytest.raises(ConfigError, match="generic, movies"):
        sentences(TABLE, "poems")
