"""Public item facts as sentences: what a text encoder reads about an item.

Guarantee: pure functions of the public item table; the same table gives the same sentences. A phrasing set has up to
three templates with weights, because an encoder places the same item differently when asked about the item, its name
or its audience, and the mixture predicts who meets an item better than any one of them (measured on MovieLens).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from veil.errors import ConfigError

_YEAR = re.compile(r"\s*\((1\d{3}|2\d{3})\)\s*$")
_BRACKETS = re.compile(r"\s*\([^)]*\)")
# "Matrix, The": film archives put the article last.
_ARTICLE_LAST = re.compile(r"^(.*), (The|A|An|La|Le|Les|L'|Il|El|Los|Las|Das|Der|Die)$")

# Longest further text that goes into a sentence; encoders cut at a few hundred tokens anyway.
_TEXT_CHARACTERS = 1_000


class Items(Protocol):
    """What phrasing needs of an item table (`veil.recsys.catalogue.ItemTable` has it)."""

    @property
    def titles(self) -> Sequence[str]:
        """One for each item, perhaps empty."""

    @property
    def categories(self) -> Sequence[Sequence[str]]:
        """Names for each item, perhaps none."""

    @property
    def years(self) -> Sequence[int]:
        """One for each item, 0 where unknown; or none at all."""

    @property
    def texts(self) -> Sequence[str]:
        """One for each item; or none at all."""


@dataclass(frozen=True)
class Fact:
    """One item, ready for a template. `year` is 0 where unknown."""

    title: str
    year: int
    categories: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Template:
    """A weight for the block of embeddings, and the sentence."""

    weight: float
    sentence: Callable[[Fact], str]


def split_title(title: str) -> tuple[str, int]:
    """`"Heat (1995)"` as `("Heat", 1995)`; the year is 0 where the title does not end with one in brackets."""
    found = _YEAR.search(title)
    return (title[: found.start()].strip(), int(found[1])) if found else (title.strip(), 0)


def years(table: Items) -> list[int]:
    """The year of each item: from the table where it knows one, else from the end of the title, else 0."""
    known = table.years or [0] * len(table.titles)
    return [year or split_title(title)[1] for title, year in zip(table.titles, known, strict=True)]


def sentences(table: Items, phrasing: str) -> list[tuple[float, list[str]]]:
    """For each template of the set: its weight and one sentence for each item. Raises `ConfigError` on another name."""
    if phrasing not in PHRASINGS:
        raise ConfigError(f"got phrasing {phrasing!r}, expected one of {', '.join(PHRASINGS)}")
    texts = table.texts or [""] * len(table.titles)
    facts = [
        Fact(split_title(title)[0], year, tuple(names), text[:_TEXT_CHARACTERS])
        for title, year, names, text in zip(table.titles, years(table), table.categories, texts, strict=True)
    ]
    return [(template.weight, [template.sentence(fact) for fact in facts]) for template in PHRASINGS[phrasing]]


def _described(fact: Fact) -> str:
    year = f" ({fact.year})" if fact.year else ""
    names = f" Categories: {', '.join(fact.categories)}." if fact.categories else ""
    text = f" {fact.text}" if fact.text else ""
    return f"{fact.title or 'Unknown item'}{year}.{names}{text}"


def _named(fact: Fact) -> str:
    return fact.title or (", ".join(fact.categories) or "unknown item")


def _chosen(fact: Fact) -> str:
    names = " and ".join(fact.categories).lower()
    return f"People interested in {names} choose {fact.title or 'this'}" if names else f"People choose {_named(fact)}"


def film_name(title: str) -> str:
    """A film's name as people say it: no bracketed aliases, the article first."""
    bare = _BRACKETS.sub("", title).strip() or title
    inverted = _ARTICLE_LAST.match(bare)
    return f"{inverted[2]} {inverted[1]}" if inverted else bare


def _film_described(fact: Fact) -> str:
    if not fact.title:
        return "unknown movie"
    year = f" ({fact.year})" if fact.year else ""
    text = f". {fact.text}" if fact.text else ""
    return f"{film_name(fact.title)}{year}. Genres: {', '.join(fact.categories)}{text}"


def _film_named(fact: Fact) -> str:
    return film_name(fact.title) if fact.title else "unknown movie"


def _film_audience(fact: Fact) -> str:
    if not fact.title:
        return "unknown movie"
    decade = f"{fact.year // 10 * 10}s " if fact.year else ""
    names = " and ".join(fact.categories).lower()
    return f"The audience of the {decade}{names} movie {film_name(fact.title)}"


PHRASINGS: Mapping[str, tuple[Template, ...]] = {
    "generic": (Template(1.0, _described), Template(0.7, _named), Template(0.7, _chosen)),
    "movies": (Template(1.0, _film_described), Template(0.7, _film_named), Template(0.7, _film_audience)),
}
