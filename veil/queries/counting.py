"""From a party's rows to the answer of one question, each user bounded: the only place where rows are looked at.

Guarantee: the result is an exact integer sum over users, each of whose summands has at most k entries that are not 0,
each at most m (`Question.bounds`), in steps of 2^16. A user's summand depends on that user's rows and on the job text
alone, never on other users, on the user's position, or on how users are split over parties or blocks.

What happens to a user above the bounds: of the groups that the user is in, k are kept, namely those whose hash is
least; the hash is over the job's nonce, the question, the user's set of items and the group. So the choice is fixed by
the user's own rows (no coin, nothing to average over), differs between jobs, and favours no group over another. Within
a group, min(count, m) is counted. What the bounds cut off is missing from the answer, on purpose; intervals do not
cover it. The hash decides which groups are counted, not how private they are, so it need not be cryptographic: it is
the finaliser of splitmix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", OOPSLA).
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from veil.errors import ConfigError, StateError
from veil.queries.question import UNIT, Question
from veil.recsys.catalogue import Catalogue
from veil.recsys.interactions import Interactions
from veil.trainers.rows import PartyRows

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]

_BLOCK_INTERACTIONS: Final = 1 << 20


class Count:
    """One question, made ready for a catalogue. Raises `ConfigError` when it names what the catalogue does not have."""

    def __init__(self, question: Question, catalogue: Catalogue, nonce: str) -> None:
        names = sorted({name for of_item in catalogue.categories for name in of_item})
        count = question.group_count(items=catalogue.items, categories=len(names))
        self.question = question
        self.labels = _labels(question, catalogue, names)
        self.titles: tuple[str, ...] = ()
        self._items = catalogue.items
        self._counted = _counted_items(question, catalogue, names)
        self._starts, self._groups = _groups_of_items(question, catalogue, self.labels)
        if len(self.labels) != count:
            raise StateError(f"got {len(self.labels)} groups, expected {count}")
        if question.by == "item":
            place = {identifier: number for number, identifier in enumerate(catalogue.ids)}
            self.titles = tuple(catalogue.titles[place[label]] for label in self.labels)
        salt = hashlib.sha256(b"veil/query-groups/v1\x00" + nonce.encode() + question.text().encode()).digest()
        self._salt = np.uint64(int.from_bytes(salt[:8], "big"))

    def __repr__(self) -> str:
        return f"Count({self.question.name}, groups={len(self.labels)})"

    def contribution(self, rows: PartyRows) -> Int64:
        """The sum over the users of `rows`, int64[groups], in grid steps. Raises `ConfigError` on unfit rows."""
        interactions = rows.need_interactions()
        if interactions.items != self._items:
            raise ConfigError(f"got rows on {interactions.items} items, expected {self._items}")
        codes = self._codes(rows)
        total = np.zeros(len(self.labels), np.int64)
        for users in _blocks(interactions):
            part = interactions.rows(users)
            row, group, value = self._bounded(part, None if codes is None else codes[users])
            self._check(part.users, row, value)
            np.add.at(total, group, value)
        return total * UNIT

    def _check(self, users: int, row: Int64, value: Int64) -> None:
        k, m = self.question.bounds(len(self.labels))
        if row.size and (int(np.bincount(row, minlength=users).max()) > k or int(value.max()) > m):
            raise StateError("got a user above the bounds of the question, expected none")

    def _codes(self, rows: PartyRows) -> Int64 | None:
        """int64[users]: the group of each user, -1 for none of them; None for questions that are not by attribute."""
        name = self.question.attribute
        if name is None:
            return None
        attributes = rows.need_attributes()
        place = {label: number for number, label in enumerate(self.labels)}
        # One more at the end, which is where the code -1 (unknown) points: no group either.
        group_of = np.array([*(place.get(value, -1) for value in attributes.categories_of(name)), -1], np.int64)
        codes: Int64 = group_of[attributes.column(name)]
        return codes

    def _bounded(self, part: Interactions, codes: Int64 | None) -> tuple[Int64, Int64, Int64]:
        """(row, group, value) of everything that counts; a pair (row, group) occurs once."""
        row, item = part.row_of(), part.indices.astype(np.int64)
        if self._counted is not None:
            wanted = self._counted[item]
            row, item = row[wanted], item[wanted]
        if self.question.by == "activity":
            lengths = np.bincount(row, minlength=part.users)
            group = np.searchsorted(np.array(self.question.at_least), lengths, side="right") - 1
            present = np.flatnonzero(group >= 0)
            return present, group[present], np.ones(present.size, np.int64)
        if codes is not None:
            group = codes[row]
            row, group = row[group >= 0], group[group >= 0]
        else:
            each = np.diff(self._starts)[item]
            first = np.repeat(self._starts[item], each)
            place = np.arange(first.size) - np.repeat(np.cumsum(each) - each, each)
            row, group = np.repeat(row, each), self._groups[first + place]
        pairs, count = np.unique(row * len(self.labels) + group, return_counts=True)
        row, group = np.divmod(pairs, len(self.labels))
        kept = self._kept(part, row, group)
        row, group, count = row[kept], group[kept], count[kept]
        return row, group, np.minimum(count, self.question.interactions_per_group)

    def _kept(self, part: Interactions, row: Int64, group: Int64) -> Int64:
        """Which of the pairs, sorted by row, are within the bound on groups."""
        k, _ = self.question.bounds(len(self.labels))
        starts = np.searchsorted(row, np.arange(part.users))
        if not row.size or int(np.bincount(row).max()) <= k:
            return np.arange(row.size)
        own = np.zeros(part.users, np.uint64)
        np.add.at(own, part.row_of(), _mixed(part.indices.astype(np.uint64) + self._salt))
        priority = _mixed(own[row] ^ _mixed(group.astype(np.uint64) ^ self._salt))
        order = np.lexsort((group, priority, row))
        within = np.arange(row.size) - starts[row[order]]
        return np.sort(order[within < k])


def _labels(question: Question, catalogue: Catalogue, names: list[str]) -> tuple[str, ...]:
    if question.by == "nothing":
        return ("all",)
    if question.by == "activity":
        ends = question.at_least
        bins = [f"{low} to {high - 1}" for low, high in itertools.pairwise(ends)]
        return (*bins, f"{ends[-1]} or more")
    everything = {"category": names, "item": catalogue.ids}.get(question.by, ())
    if everything:
        _check_known(question, "groups", question.groups, everything)
    return question.groups or tuple(everything)


def _counted_items(question: Question, catalogue: Catalogue, names: list[str]) -> npt.NDArray[np.bool_] | None:
    """bool[items]: what the filters leave; None without filters."""
    if not (question.only_items or question.only_categories):
        return None
    _check_known(question, "only_items", question.only_items, catalogue.ids)
    _check_known(question, "only_categories", question.only_categories, names)
    items, categories = set(question.only_items), set(question.only_categories)
    return np.array(
        [
            (not items or identifier in items) and (not categories or not categories.isdisjoint(of_item))
            for identifier, of_item in zip(catalogue.ids, catalogue.categories, strict=True)
        ]
    )


def _groups_of_items(question: Question, catalogue: Catalogue, labels: tuple[str, ...]) -> tuple[Int64, Int64]:
    """The groups of each item as compressed rows: item i is in groups[starts[i]:starts[i + 1]]."""
    if question.by not in ("category", "item"):
        return np.arange(catalogue.items + 1), np.zeros(catalogue.items, np.int64)
    place = {label: number for number, label in enumerate(labels)}
    if question.by == "category":
        of_items = [[place[name] for name in names if name in place] for names in catalogue.categories]
    else:
        of_items = [[place[identifier]] if identifier in place else [] for identifier in catalogue.ids]
    starts = np.concatenate([[0], np.cumsum([len(groups) for groups in of_items])]).astype(np.int64)
    return starts, np.array([group for groups in of_items for group in groups], np.int64)


def _check_known(question: Question, key: str, wanted: Sequence[str], known: Sequence[str]) -> None:
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        raise ConfigError(
            f"question {question.name}: {key}: got {', '.join(map(repr, unknown[:5]))}"
            f" ({len(unknown)} in all), expected names of the catalogue"
        )


def _blocks(interactions: Interactions) -> Iterator[slice]:
    """Slices of users with about 2^20 interactions each."""
    start = 0
    while start < interactions.users:
        limit = int(interactions.indptr[start]) + _BLOCK_INTERACTIONS
        stop = int(np.searchsorted(interactions.indptr, limit, side="right")) - 1
        stop = min(max(stop, start + 1), start + _BLOCK_INTERACTIONS, interactions.users)
        yield slice(start, stop)
        start = stop


def _mixed(value: UInt64) -> UInt64:
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
