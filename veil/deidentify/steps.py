"""The steps of a de-identification pipeline, as they stand in the party's configuration.

Guarantee: what a step can yield is declared by the configuration and not learnt from rows; a value for which a step has
no answer becomes unknown, never an error that repeats it. Each step says in one phrase what it does, for the report.

    {bin = [18, 35, 55]}                     a number becomes "under 18", "18 to under 35", …, "55 and over"
    {hierarchy = {...}, level = 1}           a value becomes its group
    {mask = {keep_first = 3, fill = "*"}}    "48067" becomes "480*"
    {values = ["F", "M"], other = "other"}   a value outside the list becomes "other", or unknown without `other`
    {pseudonym = true, buckets = 64}         an identifier becomes one of 64 groups, by a keyed hash
    {drop = true}                            the column is not even read

The n most frequent values are no step on purpose: which they are would be learnt from rows. List them in `values`.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from veil.deidentify.hierarchy import MAX_LEVELS, Hierarchy
from veil.errors import ConfigError
from veil.recsys.attributes import MAX_CATEGORIES
from veil.recsys.pseudonyms import PseudonymKey

Transform = Callable[[str], str | None]
"""One value to another; None is unknown."""

_NUMBER = re.compile(r"[+-]?[0-9]{1,18}(\.[0-9]{1,18})?")


@dataclass(frozen=True)
class Rung:
    """A coarser view of a step's categories. `of[c]`: the coarser category of category c."""

    name: str
    categories: tuple[str, ...]
    of: tuple[int, ...]


@dataclass(frozen=True)
class Prepared:
    """A step, ready to run.

    Attributes:
        kind: the step's name in the configuration.
        says: what it does, in a phrase.
        transform: applied to each known value.
        categories: everything that `transform` can yield; None when that is no closed list.
        rungs: coarser views, finest first; each merges whole categories.
    """

    kind: str
    says: str
    transform: Transform
    categories: tuple[str, ...] | None
    rungs: tuple[Rung, ...] = ()


class _Step(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


_Edges = Annotated[tuple[float, ...], Field(strict=False, min_length=1, max_length=1000)]


class Bin(_Step):
    """Numbers into intervals. Edges rise; a value on an edge belongs to the interval above it.

    `coarser`: further lists of edges, each a part of the one before, for small classes that are to be generalised.
    """

    bin: _Edges
    coarser: tuple[_Edges, ...] = Field(default=(), strict=False, max_length=MAX_LEVELS)

    @model_validator(mode="after")
    def _nested(self) -> Self:
        for edges in (self.bin, *self.coarser):
            if any(low >= high for low, high in itertools.pairwise(edges)):
                raise ValueError("got edges that do not rise, expected them in rising order")
        for finer, coarser in itertools.pairwise((self.bin, *self.coarser)):
            if not set(coarser) < set(finer):
                raise ValueError("got coarser edges that are not a part of the finer ones, expected fewer of the same")
        return self

    def prepare(self, attribute: str, key: PseudonymKey) -> Prepared:
        """See `Prepared`."""
        labels = _intervals(self.bin)

        def transform(value: str) -> str | None:
            if _NUMBER.fullmatch(value) is None:
                return None
            return labels[_interval(self.bin, float(value))]

        rungs = tuple(
            Rung(
                f"{len(edges) + 1} intervals",
                _intervals(edges),
                tuple(_interval(edges, low) for low in (-math.inf, *self.bin)),
            )
            for edges in self.coarser
        )
        return Prepared("bin", f"numbers into {len(labels)} intervals", transform, labels, rungs)


class HierarchySource(_Step):
    """Where a hierarchy stands: in a CSV file, as rows, or as one level of groups. Exactly one of the three."""

    file: Path | None = Field(default=None, strict=False)
    rows: tuple[tuple[str, ...], ...] | None = Field(default=None, strict=False, max_length=100_000)
    groups: dict[str, tuple[str, ...]] | None = Field(default=None, strict=False)

    @model_validator(mode="before")
    @classmethod
    def _tuples_from_lists(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        changed: dict[str, Any] = dict(data)
        if isinstance(changed.get("rows"), list):
            changed["rows"] = tuple(tuple(row) if isinstance(row, list) else row for row in changed["rows"])
        if isinstance(changed.get("groups"), dict):
            changed["groups"] = {
                group: tuple(values) if isinstance(values, list) else values
                for group, values in changed["groups"].items()
            }
        return changed

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [one for one in (self.file, self.rows, self.groups) if one is not None]
        if len(given) != 1:
            raise ValueError(f"got {len(given)} of file, rows and groups, expected one")
        return self

    def load(self, attribute: str) -> Hierarchy:
        """Raises `ConfigError` when it is no tree."""
        if self.file is not None:
            return Hierarchy.from_file(self.file)
        if self.rows is not None:
            return Hierarchy.from_rows(self.rows, f"hierarchy of {attribute}")
        return Hierarchy.from_groups(self.groups or {}, f"hierarchy of {attribute}")


class Generalise(_Step):
    """Values into their groups of a hierarchy at a level; level 0 keeps the values that it lists."""

    hierarchy: HierarchySource
    level: int = Field(default=1, ge=0, le=MAX_LEVELS)

    def prepare(self, attribute: str, key: PseudonymKey) -> Prepared:
        """See `Prepared`. Raises `ConfigError` when the hierarchy has no such level."""
        tree = self.hierarchy.load(attribute)
        if self.level >= len(tree.levels):
            raise ConfigError(f"users.attribute {attribute}: got level {self.level}, expected < {len(tree.levels)}")
        places = list(range(len(tree.levels[self.level])))
        rungs = []
        for level in range(self.level, len(tree.parents)):
            places = [tree.parents[level][place] for place in places]
            rungs.append(Rung(f"level {level + 1}", tree.levels[level + 1], tuple(places)))
        categories = tree.levels[self.level]
        says = f"values into {len(categories)} groups, level {self.level} of {len(tree.parents)} of a hierarchy"
        return Prepared("hierarchy", says, tree.at(self.level).get, categories, tuple(rungs))


class MaskRule(_Step):
    """Which characters stay. What is hidden becomes one `fill`, however long it was: its length would say something.

    A value that has no character to hide is unknown: it would show whole. `characters`: those that may stay; a value
    that would show another is unknown. They make the list of what may come out, which a last step needs.
    """

    keep_first: int = Field(default=0, ge=0, le=64)
    keep_last: int = Field(default=0, ge=0, le=64)
    fill: str = Field(default="*", min_length=1, max_length=8)
    characters: str | None = Field(default=None, min_length=1, max_length=256)

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.characters is not None:
            if len(set(self.characters)) != len(self.characters):
                raise ValueError("got a character twice, expected each once")
            if len(self.characters) ** (self.keep_first + self.keep_last) > MAX_CATEGORIES:
                raise ValueError(f"got more than {MAX_CATEGORIES} possible results, expected fewer characters kept")
        return self

    def show(self, value: str) -> str | None:
        """The masked value; None when it is too short or shows a character that may not stay."""
        if len(value) <= self.keep_first + self.keep_last:
            return None
        head, tail = value[: self.keep_first], value[len(value) - self.keep_last :]
        if self.characters is not None and not set(head + tail) <= set(self.characters):
            return None
        return head + self.fill + tail

    def results(self) -> tuple[str, ...] | None:
        """Everything that can come out, in the order of `characters`."""
        if self.characters is None:
            return None
        kept = itertools.product(self.characters, repeat=self.keep_first + self.keep_last)
        return tuple("".join((*one[: self.keep_first], self.fill, *one[self.keep_first :])) for one in kept)


class Mask(_Step):
    """Hides characters of a value. Coarser views keep fewer of the first ones."""

    mask: MaskRule

    def prepare(self, attribute: str, key: PseudonymKey) -> Prepared:
        """See `Prepared`."""
        rule = self.mask
        categories = rule.results()
        rungs = []
        if categories is not None and rule.keep_last == 0:
            for keep in range(rule.keep_first - 1, 0, -1):
                shorter = rule.model_copy(update={"keep_first": keep}).results() or ()
                place = {one: number for number, one in enumerate(shorter)}
                rungs.append(Rung(f"first {keep}", shorter, tuple(place[one[:keep] + rule.fill] for one in categories)))
        kept = [f"the {end} {count}" for end, count in (("first", rule.keep_first), ("last", rule.keep_last)) if count]
        says = f"all but {' and '.join(kept)} characters hidden" if kept else "all characters hidden"
        return Prepared("mask", says, rule.show, categories, tuple(rungs))


class Values(_Step):
    """Values of a list stay; all else becomes `other`, or unknown."""

    values: tuple[str, ...] = Field(strict=False, min_length=1, max_length=MAX_CATEGORIES - 1)
    other: str | None = Field(default=None, min_length=1, max_length=256)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.values)) != len(self.values) or self.other in self.values:
            raise ValueError("got a value twice, expected each once")
        return self

    def prepare(self, attribute: str, key: PseudonymKey) -> Prepared:
        """See `Prepared`."""
        known = frozenset(self.values)

        def transform(value: str) -> str | None:
            return value if value in known else self.other

        categories = self.values if self.other is None else (*self.values, self.other)
        return Prepared("values", f"a list of {len(categories)} values", transform, categories)


class Pseudonym(_Step):
    """An identifier into one of `buckets` groups, by HMAC-SHA256 under the party's pseudonym key.

    A whole pseudonym would be a category of its own for each user, of use to nobody but who wants to link; a group is
    of use as a feature. The group of one value in two attributes differs, and nobody without the key can tell it.
    """

    pseudonym: Literal[True]
    buckets: int = Field(default=64, ge=2, le=4096)

    def prepare(self, attribute: str, key: PseudonymKey) -> Prepared:
        """See `Prepared`."""
        categories = tuple(f"group {number}" for number in range(self.buckets))

        def transform(value: str) -> str:
            # User ids never hold a control character, so no attribute's value meets the pseudonym of a user id.
            return categories[int(key.pseudonym(f"\x00attribute\x00{attribute}\x00{value}"), 16) % self.buckets]

        return Prepared("pseudonym", f"a keyed hash into {self.buckets} groups", transform, categories)


class Drop(_Step):
    """The column is left out; nothing of it is read."""

    drop: Literal[True]


_KINDS: Mapping[str, type[_Step]] = {
    "bin": Bin,
    "hierarchy": Generalise,
    "mask": Mask,
    "values": Values,
    "pseudonym": Pseudonym,
    "drop": Drop,
}


def _kind(step: object) -> str | None:
    if isinstance(step, dict):
        found = [kind for kind in _KINDS if kind in step]
        return found[0] if len(found) == 1 else None
    return next((kind for kind, model in _KINDS.items() if isinstance(step, model)), None)


Step = Annotated[
    Annotated[Bin, Tag("bin")]
    | Annotated[Generalise, Tag("hierarchy")]
    | Annotated[Mask, Tag("mask")]
    | Annotated[Values, Tag("values")]
    | Annotated[Pseudonym, Tag("pseudonym")]
    | Annotated[Drop, Tag("drop")],
    Discriminator(
        _kind,
        custom_error_type="step",
        custom_error_message=f"got no known step, expected one of {', '.join(_KINDS)}",
    ),
]


def _interval(edges: tuple[float, ...], number: float) -> int:
    return sum(number >= edge for edge in edges)


def _intervals(edges: tuple[float, ...]) -> tuple[str, ...]:
    """Labels of the len(edges) + 1 intervals."""
    texts = [f"{edge:.15g}" for edge in edges]
    between = [f"{low} to under {high}" for low, high in itertools.pairwise(texts)]
    return (f"under {texts[0]}", *between, f"{texts[-1]} and over")
