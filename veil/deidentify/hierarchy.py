"""A generalisation hierarchy: each value, the group that it belongs to, the group's group, and so on.

Guarantee: a tree, checked when it is made: every value stands once, all have the same depth, and a group lies in one
larger group only. It is public: written by the party beside its configuration, not learnt from rows.

The form is the usual one (Sweeney, "Achieving k-anonymity privacy protection using generalization and suppression",
2002, section 3; ARX writes its hierarchies so): one line for each value, first the value, then its groups, small to
large.

    paris, north, france
    lille, north, france
    nice,  south, france
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from veil.errors import ConfigError
from veil.files import read_bounded

MAX_LEVELS = 16
MAX_FILE_BYTES = 16 * 2**20
MAX_LABEL_CHARACTERS = 256


@dataclass(frozen=True)
class Hierarchy:
    """`levels[0]` are the values, `levels[1]` the groups that they lie in, each distinct, in order of appearance.

    Attributes:
        levels: the labels of each level.
        parents: for each level but the last, the position in the next level of each label's group.
    """

    levels: tuple[tuple[str, ...], ...]
    parents: tuple[tuple[int, ...], ...]

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[str]], source: str) -> Hierarchy:
        """Raises `ConfigError` that says which row does not fit; `source` is named in it."""
        depth = len(rows[0]) if rows else 0
        if not 2 <= depth <= MAX_LEVELS + 1:
            raise ConfigError(f"{source}: got {depth} columns, expected a value and 1 to {MAX_LEVELS} groups")
        levels: list[dict[str, int]] = [{} for _ in range(depth)]
        parents: list[list[int]] = [[] for _ in range(depth - 1)]
        for number, row in enumerate(rows, 1):
            if len(row) != depth:
                raise ConfigError(f"{source}, row {number}: got {len(row)} columns, expected {depth}")
            if any(not label or label != label.strip() or len(label) > MAX_LABEL_CHARACTERS for label in row):
                raise ConfigError(f"{source}, row {number}: got a label that is empty, too long or begins with a space")
            if row[0] in levels[0]:
                raise ConfigError(f"{source}, row {number}: got a value for the second time, expected each once")
            places = [level.setdefault(label, len(level)) for level, label in zip(levels, row, strict=True)]
            for level, above in enumerate(places[1:]):
                if places[level] == len(parents[level]):
                    parents[level].append(above)
                elif parents[level][places[level]] != above:
                    raise ConfigError(
                        f"{source}, row {number}: got a label of column {level + 1} in two groups, expected one"
                    )
        return cls(tuple(tuple(level) for level in levels), tuple(tuple(one) for one in parents))

    @classmethod
    def from_groups(cls, groups: Mapping[str, Sequence[str]], source: str) -> Hierarchy:
        """One level of groups: the values of each."""
        return cls.from_rows([(value, group) for group, values in groups.items() for value in values], source)

    @classmethod
    def from_file(cls, path: Path) -> Hierarchy:
        """A CSV file in UTF-8 without a header. Raises `ConfigError`, or `InputError` when it cannot be read."""
        try:
            text = read_bounded(path, MAX_FILE_BYTES).decode("utf-8-sig")
            rows = [[field.strip() for field in row] for row in csv.reader(text.splitlines(), strict=True) if row]
        except (UnicodeDecodeError, csv.Error):
            raise ConfigError(f"{path.name}: got text that is not CSV in UTF-8") from None
        return cls.from_rows(rows, path.name)

    def at(self, level: int) -> dict[str, str]:
        """Each value's label at that level; level 0 is the value itself."""
        places = list(range(len(self.levels[0])))
        for below in range(level):
            places = [self.parents[below][place] for place in places]
        return {value: self.levels[level][place] for value, place in zip(self.levels[0], places, strict=True)}
