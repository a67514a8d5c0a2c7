"""A side job's public terms as the objects that its program takes, with the sensitivity of everything that opens.

Guarantee: `SideTerms.of` returns only when the terms fit together and every release beside the recommender's has the
shape and sensitivity of what will open; `SideAlgorithm` (veil.trainers.side.algorithm) checks the recommender's. Each
party makes both before it signs, and its worker again before it runs.

Unit: one user, who is all rows at all parties: a history at one, a row of columns at each other. Neighbours: add or
remove one user everywhere at once. Every release is a sum over users, so all of them compose (`veil.privacy.accountant`
counts one list). In order, with the norm of what one user adds in integer grid steps:

    counts, round-t      the recommender's own (`veil.trainers.subspace.algorithm`)
    statistics-PARTY     `veil.tabular.statistics`
    moment-PARTY         g g^T, |g g^T| = |g|^2 <= B^2, B = floor(norm_share 2^bits)      opens sum_u g_u g_u^T
    outer-PARTY          y g^T, |y g^T| = |y| |g| <= 2^row_bits B                         opens sum_u y_u g_u^T

y is the user's row of items as in a round, clipped to 1, g the standardised row of columns, clipped to the party's
norm_share. A user whom either party lacks is zeros there and adds nothing. A moment is
symmetric: its sensitivity counts every entry, each gets noise of its own, and the mean of mirrored ones has half of it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from pydantic import ValidationError

from veil.align.plan import AlignmentPlan
from veil.errors import ConfigError
from veil.jobs.side import SideTrainer
from veil.jobs.spec import JobSpec, Release, canonical, describe
from veil.privacy.mechanism import vector_sensitivity
from veil.recsys.postprocess import USER_TERMS
from veil.tabular import statistics
from veil.tabular.schema import ColumnsSchema
from veil.trainers.columns.outer import Factor, OuterProducts
from veil.trainers.columns.terms import check_triples
from veil.trainers.seam import Expected, check_releases

MOST_USER_ENTRIES: Final = 1024
"""Longest user vector, history, user terms and side part together: what the encrypted scoring takes."""
MOST_PRODUCT: Final = 2**23
"""Entries of an outer product: its correction is one message of the dealer."""
MOST_GRID: Final = 2**28
"""Slots times features of a party: its rows on the grid, 2 GiB that a job text makes it take."""
_MOST_NAME: Final = 48
_ROW_NORM: Final = 1.0


def release_name(kind: str, party: str) -> str:
    """Name of a party's "moment" or "outer" release, at most 48 characters; parties' names stay distinct."""
    name = f"{kind}-{party}"
    if len(name) <= _MOST_NAME:
        return name
    return f"{name[: _MOST_NAME - 9]}-{hashlib.sha256(party.encode()).hexdigest()[:8]}"


def schema_of(text: str) -> ColumnsSchema:
    """The columns of a job text. Raises `ConfigError` when they are malformed, not canonical or have a label."""
    try:
        schema = ColumnsSchema.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError(f"columns: {describe(error)}") from None
    if schema_text(schema) != text:
        raise ConfigError("got columns that are not canonical, expected sorted keys, no white space, every key")
    if schema.label is not None:
        raise ConfigError("got columns with a label, expected none: the recommender predicts items")
    return schema


def schema_text(schema: ColumnsSchema) -> str:
    """Canonical JSON."""
    return canonical(schema.model_dump(mode="json"))


@dataclass(frozen=True)
class SideTerms:
    """What a side job says, checked. items: number of items of the catalogue."""

    trainer: SideTrainer
    schema: ColumnsSchema
    alignment: AlignmentPlan
    program: OuterProducts
    items: int

    @classmethod
    def of(cls, spec: JobSpec) -> SideTerms:
        """The job's terms. Raises `ConfigError` unless trainer and releases fit together."""
        if not isinstance(spec.trainer, SideTrainer):
            raise ConfigError(f"got a job of trainer {spec.trainer.kind!r}, expected side")
        terms = cls.of_trainer(spec.trainer, spec.parties, spec.items.items)
        check_triples(spec.trainer.triples, spec.privacy.noise)
        rest = spec.releases[terms.recommender_releases :]
        check_releases(spec.model_copy(update={"releases": rest}), terms.expected())
        return terms

    @classmethod
    def of_trainer(cls, trainer: SideTrainer, parties: tuple[str, ...], items: int) -> SideTerms:
        """As `of`, before there are releases."""
        schema = schema_of(trainer.columns)
        if trainer.items not in parties:
            raise ConfigError(f"got interactions at {trainer.items!r}, expected one of {', '.join(parties)}")
        others = tuple(party for party in parties if party != trainer.items)
        named = tuple(one.party for one in schema.parties)
        if named != others:
            raise ConfigError(f"got columns of {', '.join(named)}, expected those of {', '.join(others)}, in order")
        alignment = AlignmentPlan(**trainer.alignment.model_dump())
        if len(alignment.sizes) != len(parties) or alignment.result != schema.slots:
            raise ConfigError(
                f"got an alignment of {len(alignment.sizes)} parties into {alignment.result} rows, expected"
                f" {len(parties)} and the columns' {schema.slots} slots"
            )
        rights = tuple(
            Factor(parties.index(one.party), one.width, schema.bits, vector_sensitivity(one.norm_share, schema.bits))
            for one in schema.parties
        )
        row_norm = vector_sensitivity(_ROW_NORM, trainer.row_bits)
        left = Factor(parties.index(trainer.items), items, trainer.row_bits, row_norm)
        recommender = trainer.recommender
        history = recommender.dimensions * (recommender.rounds > 0) + recommender.content_dimensions + USER_TERMS
        entries, widest = history + schema.width, max(right.width for right in rights)
        if schema.slots * widest > MOST_GRID:
            raise ConfigError(
                f"got {schema.slots} rows of {widest} features, expected at most {MOST_GRID} numbers in all",
                hint="declare fewer rows, or take fewer buckets or categories",
            )
        if entries > MOST_USER_ENTRIES or items * widest > MOST_PRODUCT:
            raise ConfigError(
                f"got {schema.width} features for {items} items, expected a user vector of at most"
                f" {MOST_USER_ENTRIES} entries and products of at most {MOST_PRODUCT}",
                hint="take fewer buckets or categories",
            )
        return cls(trainer, schema, alignment, OuterProducts(schema.slots, left, rights), items)

    @property
    def recommender_releases(self) -> int:
        """How many releases the recommender has: the first ones of the job."""
        return 1 + self.trainer.recommender.rounds

    @property
    def product_bits(self) -> int:
        """Fractional bits of an outer product."""
        return self.trainer.row_bits + self.schema.bits

    def expected(self) -> list[Expected]:
        """Every release after the recommender's, in order: statistics, moments, then outer products."""
        schema, parties = self.schema, [one.party for one in self.schema.parties]
        found = [
            Expected(
                statistics.release_name(party),
                (statistics.entries(schema, party),),
                statistics.sensitivity(schema, party),
            )
            for party in parties
        ]
        for party, right in zip(parties, self.program.rights, strict=True):
            # Sensitivity: one user adds g g^T, whose Frobenius norm is |g|^2, an integer of at most norm^2.
            found.append(Expected(release_name("moment", party), (right.width, right.width), right.norm**2))
        for party, right in zip(parties, self.program.rights, strict=True):
            bound = self.program.sensitivity(right)
            found.append(Expected(release_name("outer", party), (self.items, right.width), bound))
        return found


def recommender_spec(spec: JobSpec, terms: SideTerms) -> JobSpec:
    """The recommender's part of a job, as `veil.trainers.subspace` takes it: what it may spend is its own releases.

    Not a job that anybody signs: it is never parsed, digested or sent.
    """
    releases: tuple[Release, ...] = spec.releases[: terms.recommender_releases]
    return spec.model_copy(update={"trainer": terms.trainer.recommender, "releases": releases})
