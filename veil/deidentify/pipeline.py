"""The declared pipeline: raw user attributes in, de-identified codes and a report out.

Guarantee: an attribute is kept only if it is declared, only as one of the categories that its steps declare, and only
in classes of at least k users where it is a quasi-identifier. Direct identifiers are dropped or hashed under the
party's key. Values outlive this module nowhere: what it returns holds codes and counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from veil.deidentify.k_anonymity import Codes, climb, count_classes, diversity, suppress
from veil.deidentify.report import AnonymityCounts, AttributeCounts, StepCounts, UserCounts
from veil.deidentify.source import RawUsers
from veil.deidentify.steps import Drop, Generalise, Prepared, Pseudonym, Rung, Step
from veil.errors import ConfigError, DataError
from veil.jobs.spec import Name
from veil.recsys.attributes import MAX_ATTRIBUTES, MAX_CATEGORIES, UNKNOWN, UserAttributes
from veil.recsys.pseudonyms import PseudonymKey

MAX_STEPS = 16

Role = Literal["identifier", "quasi-identifier", "sensitive", "insensitive"]


class AttributeRule(BaseModel):
    """One column and what is done with it.

    Attributes:
        name: what the attribute is called from here on.
        column: in the source; by default the name.
        role: "identifier" names a person by itself; "quasi-identifier" may be known to others and narrows down who it
            is; "sensitive" is what others should not learn; "insensitive" is none of these.
        steps: applied in order; the last one must have a declared list of results.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Name
    column: str | None = Field(default=None, min_length=1)
    role: Role
    steps: tuple[Step, ...] = Field(strict=False)

    @model_validator(mode="after")
    def _fits_the_role(self) -> Self:
        if not 1 <= len(self.steps) <= MAX_STEPS:
            raise ValueError(f"got {len(self.steps)} steps, expected 1 to {MAX_STEPS}")
        alone = isinstance(self.steps[0], Drop | Pseudonym) and len(self.steps) == 1
        if self.role == "identifier" and not alone:
            raise ValueError("got an identifier, expected {drop = true} or {pseudonym = true} as its one step")
        if any(isinstance(step, Drop) for step in self.steps) and not alone:
            raise ValueError("got drop among other steps, expected it alone")
        if any(isinstance(step, Pseudonym) for step in self.steps) and self.role != "identifier":
            raise ValueError("got pseudonym for no identifier, expected role identifier")
        return self

    @property
    def dropped(self) -> bool:
        """Whether the column is not read."""
        return isinstance(self.steps[0], Drop)

    @property
    def source_column(self) -> str:
        """The column's name in the source."""
        return self.column or self.name

    def anchored(self, root: Path) -> AttributeRule:
        """The same, with paths of hierarchies relative to `root`."""
        steps: list[Step] = []
        for step in self.steps:
            if isinstance(step, Generalise) and step.hierarchy.file is not None:
                source = step.hierarchy.model_copy(update={"file": root / step.hierarchy.file})
                step = step.model_copy(update={"hierarchy": source})
            steps.append(step)
        return self.model_copy(update={"steps": tuple(steps)})


class Anonymity(BaseModel):
    """What is asked of the quasi-identifiers.

    Attributes:
        k: least size of a class.
        small_classes: "suppress" makes values unknown, one attribute after the other (those with the most declared
            categories first), of the users concerned. "generalise" first takes coarser categories for everybody, one
            level at a time, until at most `suppress_at_most` of the users are in small classes, then suppresses; all
            levels are declared, but which of them is taken depends on the rows, so it differs between parties and may
            not be told. "stop" refuses the file.
        suppress_at_most: share of users, for "generalise".
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    k: int = Field(default=10, ge=2, le=1_000_000)
    small_classes: Literal["suppress", "generalise", "stop"] = "suppress"
    suppress_at_most: float = Field(default=0.05, ge=0, le=1)


@dataclass(frozen=True)
class _Plan:
    rule: AttributeRule
    steps: tuple[Prepared, ...]
    categories: tuple[str, ...]
    rungs: tuple[Rung, ...]


class Pipeline:
    """A checked set of rules, ready to run."""

    def __init__(self, rules: Sequence[AttributeRule], anonymity: Anonymity, key: PseudonymKey) -> None:
        """Reads hierarchies and checks that every attribute ends in declared categories. Raises `ConfigError`."""
        names = [rule.name for rule in rules]
        if len(set(names)) != len(names) or len(names) > MAX_ATTRIBUTES:
            raise ConfigError(f"got {len(names)} attributes, expected at most {MAX_ATTRIBUTES} with distinct names")
        role_of: dict[str, str] = {}
        for rule in rules:
            # A copy of a quasi-identifier under another role would pass by the classes, and tell them apart again.
            if role_of.setdefault(rule.source_column, rule.role) != rule.role:
                raise ConfigError(
                    f"users.attribute {rule.name}: got column {rule.source_column!r} as {rule.role} and as"
                    f" {role_of[rule.source_column]}, expected one role for all that is made of it"
                )
        self.rules = tuple(rules)
        self._anonymity = anonymity
        self._plans = [_plan(rule, key) for rule in rules if not rule.dropped]

    def run(self, raw: RawUsers) -> tuple[UserAttributes | None, UserCounts]:
        """The attributes of the users of `raw`, in their order, None when all were dropped, and what was done.

        raw: as `read_users` gives it for these rules. Raises `DataError` when small classes are to stop it.
        """
        kept = [_through_steps(plan, raw, place) for place, plan in enumerate(self._plans)]
        quasi = [place for place, plan in enumerate(self._plans) if plan.rule.role == "quasi-identifier"]
        codes = np.stack([one.codes for one in kept], axis=1) if kept else np.zeros((raw.users, 0), np.int32)
        categories = [plan.categories for plan in self._plans]
        raised = [0] * len(kept)
        declared = codes.copy()
        anonymity = None
        if quasi:
            for place, levels in zip(quasi, self._generalised(codes, quasi), strict=True):
                raised[place] = levels
                if levels:
                    rungs = self._plans[place].rungs
                    categories[place] = rungs[levels - 1].categories if levels <= len(rungs) else ()
            order = sorted(range(len(quasi)), key=lambda one: -len(self._plans[quasi[one]].categories))
            before = codes[:, quasi]
            codes[:, quasi] = suppress(before, self._anonymity.k, order)
            anonymity = self._counts(raw, declared, codes, quasi, before)
        attributes = [
            one.counted(len(categories[place]), raised[place], declared[:, place], codes[:, place])
            for place, one in enumerate(kept)
        ]
        found = None
        if kept:
            found = UserAttributes(
                tuple(plan.rule.name for plan in self._plans), tuple(categories), codes.astype(np.int16)
            )
        return found, UserCounts(
            rows_read=raw.rows_read,
            rows_bad=sum(raw.bad_reasons.values()),
            bad_reasons=raw.bad_reasons,
            users_read=raw.users_read,
            users_left_out=raw.users_left_out,
            users_without_row=raw.users_without_row,
            attributes=self._in_order(attributes),
            anonymity=anonymity,
        )

    def _generalised(self, codes: Codes, quasi: list[int]) -> list[int]:
        """Replaces `codes` by coarser ones where that is asked for; levels gone up by each quasi-identifier."""
        rule = self._anonymity
        counts = count_classes(codes[:, quasi], rule.k)
        if rule.small_classes == "stop" and counts.users_below_k:
            raise DataError(
                f"got {counts.users_below_k} users in classes of fewer than {rule.k}, expected none",
                hint='coarser steps, or small_classes = "suppress" or "generalise"',
            )
        if rule.small_classes != "generalise":
            return [0] * len(quasi)
        rungs = [[np.array(rung.of, np.int32) for rung in self._plans[place].rungs] for place in quasi]
        allowed = int(rule.suppress_at_most * len(codes))
        codes[:, quasi], height = climb(codes[:, quasi], rule.k, rungs, allowed)
        return height

    def _counts(self, raw: RawUsers, declared: Codes, codes: Codes, quasi: list[int], before: Codes) -> AnonymityCounts:
        k = self._anonymity.k
        hidden = (before != UNKNOWN) & (codes[:, quasi] == UNKNOWN)
        prepared = count_classes(codes[:, quasi], k)
        return AnonymityCounts(
            k=k,
            small_classes=self._anonymity.small_classes,
            quasi_identifiers=tuple(self._plans[place].rule.name for place in quasi),
            source=count_classes(raw.codes[:, quasi], k),
            declared=count_classes(declared[:, quasi], k),
            prepared=prepared,
            users_suppressed=int(hidden.any(axis=1).sum()),
            values_suppressed=int(hidden.sum()),
            holds=prepared.users_below_k == 0,
            diversity=tuple(
                diversity(plan.rule.name, codes[:, quasi], codes[:, place])
                for place, plan in enumerate(self._plans)
                if plan.rule.role == "sensitive"
            ),
        )

    def _in_order(self, kept: Sequence[AttributeCounts]) -> tuple[AttributeCounts, ...]:
        """With the dropped ones, as declared."""
        of_name = {one.name: one for one in kept}
        gone = (StepCounts("drop", "left out: the column is not read"),)
        return tuple(
            of_name.get(rule.name) or AttributeCounts(rule.name, rule.role, gone, kept=False) for rule in self.rules
        )


def _plan(rule: AttributeRule, key: PseudonymKey) -> _Plan:
    """The rule's steps, and the categories that come out of the last one."""
    where = f"users.attribute {rule.name}"
    steps = tuple(step.prepare(rule.name, key) for step in rule.steps if not isinstance(step, Drop))
    categories: tuple[str, ...] | None = None
    for number, step in enumerate(steps, 1):
        results = None if categories is None else [step.transform(one) for one in categories]
        if results is not None and None in results:
            raise ConfigError(
                f"{where}, step {number} ({step.kind}): got {results.count(None)} of the {len(results)} results of the"
                " step before that it makes unknown, expected it to know them all"
            )
        if step.categories is not None:
            categories = step.categories
        elif results is not None:
            categories = tuple(dict.fromkeys(one for one in results if one is not None))
    if categories is None:
        raise ConfigError(
            f"{where}: got no step with a declared list of results, expected bin, hierarchy, values or mask.characters"
        )
    if len(categories) > MAX_CATEGORIES:
        raise ConfigError(f"{where}: got {len(categories)} categories, expected at most {MAX_CATEGORIES}")
    return _Plan(rule, steps, categories, steps[-1].rungs)


@dataclass(frozen=True)
class _Stepped:
    """One attribute after its declared steps. codes: int32[users]."""

    rule: AttributeRule
    steps: tuple[StepCounts, ...]
    codes: npt.NDArray[np.int32]
    users_empty: int

    def counted(
        self, categories: int, raised: int, declared: npt.NDArray[np.int32], prepared: npt.NDArray[np.int32]
    ) -> AttributeCounts:
        known, left = declared != UNKNOWN, prepared != UNKNOWN
        return AttributeCounts(
            name=self.rule.name,
            role=self.rule.role,
            steps=self.steps,
            categories=categories,
            users_empty=self.users_empty,
            users_outside=int((~known).sum()) - self.users_empty,
            users_suppressed=int((known & ~left).sum()),
            users_known=int(left.sum()),
            raised=raised,
        )


def _through_steps(plan: _Plan, raw: RawUsers, place: int) -> _Stepped:
    """Applies the steps to the distinct values, each once, and looks the users' codes up."""
    column = raw.codes[:, place]
    values: list[str | None] = list(raw.distinct[place])
    weight = np.bincount(column[column != UNKNOWN], minlength=len(values))
    counts = []
    for step in plan.steps:
        after = [None if value is None else step.transform(value) for value in values]
        lost = np.array([old is not None and new is None for old, new in zip(values, after, strict=True)], bool)
        other = np.array([new is not None and old != new for old, new in zip(values, after, strict=True)], bool)
        counts.append(
            StepCounts(
                step=step.kind,
                says=step.says,
                users_changed=int(weight[other].sum()),
                users_unknown=int(weight[lost].sum()),
                distinct_before=_present(values, weight),
                distinct_after=_present(after, weight),
            )
        )
        values = after
    number = {category: code for code, category in enumerate(plan.categories)}
    # One entry more, at the end, for the users without a value: their code is -1.
    code = np.array([UNKNOWN if one is None else number[one] for one in (*values, None)], np.int32)
    return _Stepped(plan.rule, tuple(counts), code[column], int((column == UNKNOWN).sum()))


def _present(values: Sequence[str | None], weight: npt.NDArray[np.int64]) -> int:
    return len({value for value, users in zip(values, weight.tolist(), strict=True) if users and value is not None})
