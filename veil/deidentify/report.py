"""What de-identification changed: counts, as a document for machines and as tables for people.

Guarantee: counts only. No value of a row, no user, no pseudonym, no class; names and phrases come from the
configuration. The report is for the party's own staff and stays with its rows (mode 0600): exact counts of people are
not for anybody else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from veil.deidentify.k_anonymity import ClassCounts, Diversity

SCHEMA = "veil.deidentification/1"
PSEUDONYMS = "HMAC-SHA256 under the party's key, 128 bits; neither ids nor pseudonyms are written"
UNDECLARED = "columns that are not declared are not kept: no step, check or file sees them"
LIMITS = (
    "k-anonymity is not differential privacy. It limits what the prepared file shows to those who may read it at this"
    " party: nobody is told from k - 1 others by the quasi-identifiers declared here. It does not bound what others"
    " know besides, what a whole class shares, or what two files show together. Whatever leaves the party is"
    " differentially private with or without it."
)


@dataclass(frozen=True)
class StepCounts:
    """What one step did to one attribute, in users.

    Attributes:
        step: its name in the configuration. says: what it does.
        users_changed: whose value became another. users_unknown: whose value it made unknown.
        distinct_before, distinct_after: different known values.
    """

    step: str
    says: str
    users_changed: int = 0
    users_unknown: int = 0
    distinct_before: int = 0
    distinct_after: int = 0


@dataclass(frozen=True)
class AttributeCounts:
    """What became of one attribute.

    Attributes:
        kept: False for a column that was dropped, and so not read.
        categories: declared ones (after generalisation of small classes).
        users_empty: without a value in the source, or without a row in it. users_outside: whose value a step made
            unknown. users_suppressed: whose value was hidden for k. users_known: the rest.
        raised: how many levels generalisation of small classes went up.
    """

    name: str
    role: str
    steps: tuple[StepCounts, ...]
    kept: bool = True
    categories: int = 0
    users_empty: int = 0
    users_outside: int = 0
    users_suppressed: int = 0
    users_known: int = 0
    raised: int = 0


@dataclass(frozen=True)
class AnonymityCounts:
    """The check of the quasi-identifiers.

    Attributes:
        small_classes: what was to be done with classes of fewer than k.
        source, declared, prepared: classes of the values as read, after the declared steps, and as prepared.
        users_suppressed: users of whom a value was hidden for k. values_suppressed: how many values that were.
        holds: whether every class has k users; with fewer than k users in all, everything is unknown instead.
        diversity: of the sensitive attributes, over the prepared classes.
    """

    k: int
    small_classes: str
    quasi_identifiers: tuple[str, ...]
    source: ClassCounts
    declared: ClassCounts
    prepared: ClassCounts
    users_suppressed: int
    values_suppressed: int
    holds: bool
    diversity: tuple[Diversity, ...] = ()


@dataclass(frozen=True)
class UserCounts:
    """What became of the file of user attributes.

    Attributes:
        users_read: users with a good row. users_left_out: those of them without an interaction or text: their
            attributes are not kept. users_without_row: users of the prepared rows without attributes: all unknown.
    """

    rows_read: int
    rows_bad: int
    bad_reasons: Mapping[str, int]
    users_read: int
    users_left_out: int
    users_without_row: int
    attributes: tuple[AttributeCounts, ...]
    anonymity: AnonymityCounts | None

    def __str__(self) -> str:
        kept = sum(one.kept for one in self.attributes)
        text = f"{self.rows_read} rows read, {self.rows_bad} bad, {kept} of {len(self.attributes)} attributes kept"
        if self.anonymity is None:
            return text
        found = self.anonymity
        return (
            f"{text}; k = {found.k}: smallest class {found.source.smallest} as read, {found.prepared.smallest} as"
            f" prepared, {found.values_suppressed} values of {found.users_suppressed} users suppressed"
        )


@dataclass(frozen=True)
class TextCounts:
    """What was masked in texts: replacements by pattern, over `texts` texts, `cut` of which were too long."""

    texts: int
    cut: int
    masked: Mapping[str, int]


@dataclass(frozen=True)
class Report:
    """The whole report. users: of the prepared rows, whose ids were replaced by pseudonyms and then by row numbers."""

    users: int
    attributes: UserCounts | None = None
    texts: TextCounts | None = None
    notes: tuple[str, ...] = field(default=(UNDECLARED, LIMITS))

    def document(self) -> dict[str, Any]:
        """As JSON types; keys as the attributes of these classes."""
        body = {"schema": SCHEMA, "user_ids": {"users": self.users, "replaced_by": PSEUDONYMS}, **asdict(self)}
        del body["users"]
        return body

    def json(self) -> str:
        """The document, indented."""
        return json.dumps(self.document(), indent=2) + "\n"

    def lines(self) -> list[str]:
        """For a terminal."""
        lines = []
        for table in self._tables():
            lines += [table.title, *(f"  {line}" for line in table.aligned()), ""]
        return [*lines, *(self.notes if self.attributes is not None else ())]

    def markdown(self) -> str:
        """For a file that people read."""
        lines = ["# De-identification", ""]
        for table in self._tables():
            lines += [f"## {table.title}", "", *table.markdown(), ""]
        return "\n".join([*lines, *(f"{note[0].upper()}{note[1:].rstrip('.')}.\n" for note in self.notes)])

    def _tables(self) -> list[_Table]:
        tables = [_Table("User ids", ("users", "replaced by"), [(str(self.users), PSEUDONYMS)])]
        if self.attributes is not None:
            tables += _attribute_tables(self.attributes)
            if self.attributes.anonymity is not None:
                tables += _anonymity_tables(self.attributes.anonymity)
        if self.texts is not None:
            found = [(f"[{name}]", str(count)) for name, count in self.texts.masked.items()]
            found.append((f"cut at the longest length, of {self.texts.texts} texts", str(self.texts.cut)))
            tables.append(_Table("Texts", ("replaced", "times"), found))
        return tables


@dataclass(frozen=True)
class _Table:
    title: str
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def aligned(self) -> list[str]:
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        every = [self.header, *self.rows]
        return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in every]

    def markdown(self) -> list[str]:
        every = [self.header, ("---",) * len(self.header), *self.rows]
        return [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in every]


def _attribute_tables(counts: UserCounts) -> list[_Table]:
    header = ("rows read", "bad", "users read", "left out: nothing else of them", "users without attributes")
    row = (
        counts.rows_read,
        counts.rows_bad,
        counts.users_read,
        counts.users_left_out,
        counts.users_without_row,
    )
    read = _Table("User attributes", header, [tuple(map(str, row))])
    steps = [
        (
            attribute.name,
            attribute.role,
            step.says,
            *((str(step.users_changed), str(step.users_unknown)) if attribute.kept else ("", "")),
            f"{step.distinct_before} -> {step.distinct_after}" if attribute.kept else "not read",
        )
        for attribute in counts.attributes
        for step in attribute.steps
    ]
    kept = [
        (
            one.name,
            str(one.categories),
            str(one.raised),
            str(one.users_known),
            str(one.users_empty),
            str(one.users_outside),
            str(one.users_suppressed),
        )
        for one in counts.attributes
        if one.kept
    ]
    return [
        read,
        _Table("Steps", ("attribute", "role", "step", "users changed", "made unknown", "distinct"), steps),
        _Table("Kept", ("attribute", "categories", "raised", "known", "empty", "outside", "suppressed"), kept),
    ]


def _anonymity_tables(counts: AnonymityCounts) -> list[_Table]:
    stages = (("as read", counts.source), ("after the steps", counts.declared), ("prepared", counts.prepared))
    rows = [
        (name, str(one.classes), str(one.smallest), str(one.users_alone), str(one.users_below_k))
        for name, one in stages
    ]
    title = f"Classes of {', '.join(counts.quasi_identifiers)}: k = {counts.k}, small ones: {counts.small_classes}"
    verdict = "every class has k users" if counts.holds else "fewer than k users in all: every value is unknown"
    hidden = (str(counts.users_suppressed), str(counts.values_suppressed), verdict)
    tables = [
        _Table(title, ("stage", "classes", "smallest", "users alone", "users in classes below k"), rows),
        _Table("Hidden for k", ("users", "values", "result"), [hidden]),
    ]
    if counts.diversity:
        found = [(one.attribute, str(one.smallest), str(one.users_in_uniform_classes)) for one in counts.diversity]
        header = ("attribute", "fewest distinct values in a class", "users in classes that share one value")
        tables.append(_Table("Sensitive attributes", header, found))
    return tables
