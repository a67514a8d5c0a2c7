"""One aggregate question: what is counted, by which public groups, and how much one user can count.

Guarantee: `bounds` and `sensitivity` hold for every data set: one user adds to the answer a vector with at most
`groups_per_user` entries that are not 0, each at most `interactions_per_group`, whatever the user's rows are
(`veil.queries.counting` keeps to it). A question has one canonical text, which is what parties sign.

The two bounds are those of Wilson et al. 2020 ("Differentially Private SQL with Bounded User Contribution", PoPETs
2020, section 4): how many groups a user may enter, and how much in each.

    measure       "users": how many users have an interaction in the group; "interactions": how many interactions
    by            "nothing", "category", "item", "activity" (users by how many interactions they have), or
                  "attribute:NAME" (users by what their party says of them)
    groups        which groups, by name; public, never taken from rows. All of the catalogue's if empty (category, item)
    at_least      activity only: lower ends of the bins, rising; the last bin is open
    only_items, only_categories
                  count interactions with these items only; with items that have one of these categories only
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from veil.errors import ConfigError
from veil.jobs.spec import Mechanism, Name, canonical, describe
from veil.trainers.seam import Expected

GRID_BITS: Final = 16
"""A count of one is 2^16 grid steps, so that the noise is not rounded to whole counts."""
UNIT: Final = 1 << GRID_BITS
MOST_GROUPS: Final = 1_000_000
MOST_PER_USER: Final = 1_000_000
"""Of groups_per_user times interactions_per_group: 10^8 users of it stay below 2^63 grid steps."""
ATTRIBUTE: Final = "attribute:"
_MECHANISMS: Final[dict[str, Mechanism]] = {"laplace": "discrete-laplace", "gaussian": "rounded-gaussian"}

_Label = Annotated[str, StringConstraints(min_length=1, max_length=256)]
_Labels = Annotated[tuple[_Label, ...], Field(strict=False)]


class Question(BaseModel):
    """One question. Bounds that follow from its kind may be left out and are then filled in."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    name: Name
    measure: Literal["users", "interactions"] = "users"
    by: Annotated[str, StringConstraints(pattern=r"^(nothing|category|item|activity|attribute:[^\x00-\x1f]{1,64})$")]
    groups: _Labels = ()
    at_least: Annotated[tuple[Annotated[int, Field(ge=1, le=10_000_000)], ...], Field(strict=False)] = ()
    only_items: _Labels = ()
    only_categories: _Labels = ()
    groups_per_user: int = Field(default=1, ge=1, le=MOST_PER_USER)
    interactions_per_group: int = Field(default=1, ge=1, le=MOST_PER_USER)
    mechanism: Literal["laplace", "gaussian"] = "laplace"

    @model_validator(mode="before")
    @classmethod
    def _bounds_stated(cls, data: object) -> object:
        # A bound that the operator has to choose is not chosen by a default.
        if isinstance(data, dict):
            if data.get("by") in ("category", "item") and "groups_per_user" not in data:
                raise ValueError("groups_per_user: got nothing, expected how many groups one user may count in")
            counts = data.get("measure") == "interactions" and data.get("by") != "item"
            if counts and "interactions_per_group" not in data:
                raise ValueError(
                    "interactions_per_group: got nothing, expected how often one user may count in a group"
                )
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in ("groups", "only_items", "only_categories"):
            labels = getattr(self, name)
            if len(set(labels)) != len(labels):
                raise ValueError(f"{name}: got a name twice, expected each once")
        one_group = self.by not in ("category", "item")
        if one_group and self.groups_per_user != 1:
            raise ValueError(f"groups_per_user: got {self.groups_per_user}, expected 1: a user is in one group")
        if (self.measure == "users" or self.by == "item") and self.interactions_per_group != 1:
            raise ValueError(f"interactions_per_group: got {self.interactions_per_group}, expected 1 for this question")
        if self.groups_per_user * self.interactions_per_group > MOST_PER_USER:
            raise ValueError(f"got bounds whose product is above {MOST_PER_USER}, expected at most that")
        if self.by == "activity":
            if not self.at_least or any(b <= a for a, b in itertools.pairwise(self.at_least)):
                raise ValueError("at_least: expected the bins' lower ends, rising, such as [1, 5, 20]")
            if self.measure != "users":
                raise ValueError("measure: got interactions by activity, expected users")
        elif self.at_least:
            raise ValueError(f"at_least: got bins for a question by {self.by}, expected none")
        if self.by in ("nothing", "activity") and self.groups:
            raise ValueError(f"groups: got groups for a question by {self.by}, expected none")
        if self.attribute is not None and not self.groups:
            raise ValueError("groups: got none, expected the attribute's public values: they may not come from rows")
        return self

    @property
    def attribute(self) -> str | None:
        """Name of the user attribute that the groups are values of; None for other questions."""
        return self.by.removeprefix(ATTRIBUTE) if self.by.startswith(ATTRIBUTE) else None

    @property
    def release_mechanism(self) -> Mechanism:
        """The mechanism as releases name it."""
        return _MECHANISMS[self.mechanism]

    def text(self) -> str:
        """Canonical JSON."""
        return canonical(self.model_dump(mode="json"))

    def group_count(self, *, items: int, categories: int) -> int:
        """Number of groups, for a catalogue of `items` items and `categories` different categories.

        Raises `ConfigError` when it is 0 or above 1,000,000.
        """
        everything = {"nothing": 1, "category": categories, "item": items, "activity": len(self.at_least)}
        count = len(self.groups) or everything[self.by]
        if not 1 <= count <= MOST_GROUPS:
            raise ConfigError(f"question {self.name}: got {count} groups, expected 1 to {MOST_GROUPS}")
        return count

    def bounds(self, groups: int) -> tuple[int, int]:
        """(k, m): one user has at most k entries that are not 0, each at most m, among `groups` entries."""
        return min(self.groups_per_user, groups), self.interactions_per_group

    def sensitivity(self, groups: int) -> int:
        """What one user changes, in grid steps and in the norm of the mechanism; add or remove one user.

        The user's vector v has at most k entries that are not 0, each an integer from 1 to m (grid: times 2^16).
        laplace: |v|_1 <= k m. gaussian: |v|_2 <= m sqrt(k), rounded up.
        """
        k, m = self.bounds(groups)
        if self.mechanism == "laplace":
            return k * m * UNIT
        return math.isqrt(k * (m * UNIT) ** 2 - 1) + 1

    def expected(self, groups: int) -> Expected:
        """What the release must look like."""
        return Expected(self.name, (groups,), self.sensitivity(groups), self.release_mechanism)


def from_mapping(document: Mapping[str, Any]) -> Question:
    """A question as an operator writes it. Raises `ConfigError` that names each wrong key."""
    try:
        return Question.model_validate(dict(document))
    except ValidationError as error:
        raise ConfigError(
            f"question {str(document.get('name'))[:48]!r}: {describe(error)}",
            hint="deploy/query.toml explains every key",
        ) from None


def from_text(text: str) -> Question:
    """A question of a job text; raises `ConfigError` unless it is canonical."""
    try:
        question = Question.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError(f"question: {describe(error)}") from None
    if question.text() != text:
        raise ConfigError(f"question {question.name}: got text that is not canonical, expected every key, sorted")
    return question
