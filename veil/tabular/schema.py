"""What the columns of a joint table mean: the public part of a job on split columns, carried by the job text.

Guarantee: everything that decides how a value becomes numbers is in the schema, bounded, and none of it is computed
from anybody's data: bounds, edges, vocabularies, numbers of buckets, fills, norm shares, class weights. Two machines
with one schema encode one row alike, but for the last place of a logarithm. Unit of privacy: one user, who has one row
at each party (`veil.tabular.reading` refuses a second). Neighbouring relation: add or remove one user at a fixed number
of slots (`veil.tabular.grid`).

Feature hashing: Weinberger et al. 2009, "Feature Hashing for Large Scale Multitask Learning", without the sign hash,
since a column's buckets are not shared with other columns here.
"""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from veil.errors import ConfigError
from veil.jobs.spec import NEIGHBOURING, Name
from veil.privacy.mechanism import vector_sensitivity

MOST_COLUMNS: Final = 1024
MOST_WIDTH: Final = 65_536
MOST_CATEGORIES: Final = 4096
MOST_ROWS: Final = 2**27
MAX_TEXT_CHARACTERS: Final = 256
# In a smaller one log2(1 + x - lower) has few values, or the one value 0, by which nothing can be divided.
_LEAST_LOG_RANGE: Final = 2.0**-20

ColumnName = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
Category = Annotated[
    str, StringConstraints(max_length=MAX_TEXT_CHARACTERS, pattern=r"^[^\x00-\x1f\x7f]*$", strip_whitespace=True)
]


class _Public(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class _Column(_Public):
    """name: of the column in the party's file. weight: of its features beside those of other columns, in (0, 100]."""

    name: ColumnName
    weight: float = Field(default=1.0, gt=0, le=100)


class NumericColumn(_Column):
    """A number, clamped to [lower, upper], on a logarithmic scale if asked for, mapped to [-1, 1] linearly.

    Attributes:
        transform: "log": log2(1 + x - lower) in place of x, after clamping; natural for counts.
        edges: inner edges of bins, ascending, on the scale of the file. With them the column is one-hot over
            len(edges) + 1 bins; a value equal to an edge belongs to the bin above. Without: one linear feature.
        missing: what an empty field becomes. "indicator": one more feature that is 1 then, and the value `fill`
            (for bins: no bin). "fill": the value `fill`, no further feature. "refuse": an error.
        fill: on the scale of the file; clamped like any value.
    """

    kind: Literal["numeric"] = "numeric"
    lower: float
    upper: float
    transform: Literal["none", "log"] = "none"
    edges: tuple[float, ...] = Field(default=(), strict=False, max_length=256)
    missing: Literal["indicator", "fill", "refuse"] = "refuse"
    fill: float | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not (self.lower < self.upper and math.isfinite(self.upper - self.lower)):
            raise ValueError(f"got bounds {self.lower:g} and {self.upper:g}, expected a lower and a larger upper one")
        if self.transform == "log" and self.upper - self.lower < _LEAST_LOG_RANGE:
            raise ValueError(f"got a logarithm over a range below {_LEAST_LOG_RANGE:g}, expected no transform there")
        if any(not low < high for low, high in pairwise((self.lower, *self.edges, self.upper))):
            raise ValueError("got edges that do not ascend strictly between the bounds, expected ascending ones")
        if self.edges and self.transform != "none":
            raise ValueError("got edges with a transform, expected edges on the scale of the file")
        wants_fill = self.missing == "fill" or (self.missing == "indicator" and not self.edges)
        if wants_fill != (self.fill is not None):
            raise ValueError(
                f"got fill {self.fill} with missing {self.missing!r}, expected it exactly where it is used"
            )
        return self

    @property
    def one_hot(self) -> bool:
        """Whether exactly one feature of a row is 1 and the others 0."""
        return bool(self.edges)

    @property
    def width(self) -> int:
        """Number of features."""
        return (len(self.edges) + 1 if self.edges else 1) + (self.missing == "indicator")


class CategoricalColumn(_Column):
    """One-hot over a public vocabulary; one more feature for everything else unless `unknown` refuses it.

    missing: "indicator": an empty field has a feature of its own; "unknown": it is treated as any unknown value.
    """

    kind: Literal["categorical"] = "categorical"
    vocabulary: tuple[Category, ...] = Field(strict=False, min_length=1, max_length=MOST_CATEGORIES)
    unknown: Literal["other", "refuse"] = "other"
    missing: Literal["indicator", "unknown"] = "unknown"

    @field_validator("vocabulary")
    @classmethod
    def _distinct(cls, vocabulary: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(vocabulary)) != len(vocabulary) or "" in vocabulary:
            raise ValueError("got an empty or repeated category, expected distinct ones")
        return vocabulary

    @property
    def one_hot(self) -> bool:
        """Whether exactly one feature of a row is 1 and the others 0."""
        return True

    @property
    def width(self) -> int:
        """Number of features."""
        return len(self.vocabulary) + (self.unknown == "other") + (self.missing == "indicator")


class HashedColumn(_Column):
    """One-hot over buckets, by SHA-256 of the column's name and the value: no key, the same on every machine.

    missing: "indicator": an empty field has a feature of its own; "hash": it is hashed like any other text.
    """

    kind: Literal["hashed"] = "hashed"
    buckets: int = Field(ge=2, le=MOST_CATEGORIES)
    missing: Literal["indicator", "hash"] = "hash"

    @property
    def one_hot(self) -> bool:
        """Whether exactly one feature of a row is 1 and the others 0."""
        return True

    @property
    def width(self) -> int:
        """Number of features."""
        return self.buckets + (self.missing == "indicator")


Column = Annotated[NumericColumn | CategoricalColumn | HashedColumn, Field(discriminator="kind")]


class Label(_Public):
    """The outcome to predict: 0 or 1. An empty field is a row without a label: it counts for nothing.

    The weights multiply a row's loss. They are part of the sensitivity (`veil.tabular.mechanism`): the larger one
    scales the noise, so keep it near 1.
    """

    name: ColumnName
    positive: Category = "1"
    negative: Category = "0"
    positive_weight: float = Field(default=1.0, gt=0, le=100)
    negative_weight: float = Field(default=1.0, gt=0, le=100)

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if self.positive == self.negative or "" in (self.positive, self.negative):
            raise ValueError("got an empty or equal text for the two outcomes, expected two")
        return self


class PartyColumns(_Public):
    """What one party brings. norm_share: bound on the L2 norm of its part of every row, in (0, 1]."""

    party: Name
    identifier: ColumnName
    columns: tuple[Column, ...] = Field(strict=False, min_length=1, max_length=MOST_COLUMNS)
    norm_share: float = Field(gt=0, le=1)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [self.identifier, *(column.name for column in self.columns)]
        if len(set(names)) != len(names):
            raise ValueError(f"got a column of {self.party} twice, expected each name once")
        if self.width > MOST_WIDTH:
            raise ValueError(f"got {self.width} features of {self.party}, expected at most {MOST_WIDTH}")
        return self

    @property
    def width(self) -> int:
        """Number of features of this party."""
        return sum(column.width for column in self.columns)

    def slices(self) -> list[slice]:
        """Where each column's features stand among the party's."""
        found, start = [], 0
        for column in self.columns:
            found.append(slice(start, start + column.width))
            start += column.width
        return found


class ColumnsSchema(_Public):
    """Parties' columns, in rank order, without an outcome to predict.

    Attributes:
        slots: number of rows of the joint matrix, public; users fill some of them, zeros the rest.
        bits: fractional bits of the encoded features.
        label, label_party: None here; `TabularSchema` has them.
    """

    unit: Literal["user"] = "user"
    neighbouring: Literal["add-or-remove-one-user"] = NEIGHBOURING
    slots: int = Field(ge=1, le=MOST_ROWS)
    bits: int = Field(default=13, ge=4, le=20)
    parties: tuple[PartyColumns, ...] = Field(strict=False, min_length=1, max_length=16)
    label: Label | None = None
    label_party: Name | None = None

    @model_validator(mode="after")
    def _distinct_parties(self) -> Self:
        names = [party.party for party in self.parties]
        if len(set(names)) != len(names):
            raise ValueError("got a party twice, expected each party once")
        if (self.label is None) != (self.label_party is None):
            raise ValueError("got a label without its party or a party without, expected both or neither")
        if self.width > MOST_WIDTH:
            raise ValueError(f"got {self.width} features in all, expected at most {MOST_WIDTH}")
        return self

    @property
    def width(self) -> int:
        """Number of features of the joint row."""
        return sum(party.width for party in self.parties)

    def of(self, party: str) -> PartyColumns:
        """That party's columns; raises `ConfigError` when the schema does not name it."""
        for one in self.parties:
            if one.party == party:
                return one
        raise ConfigError(f"got party {party!r}, expected one of {', '.join(one.party for one in self.parties)}")

    def place(self, party: str) -> slice:
        """Where a party's features stand in the joint row."""
        start = 0
        for one in self.parties:
            if one.party == party:
                return slice(start, start + one.width)
            start += one.width
        raise ConfigError(f"got party {party!r}, expected one of {', '.join(one.party for one in self.parties)}")


class TabularSchema(ColumnsSchema):
    """All parties' columns, in rank order, and the one label.

    Attributes:
        label_party: who holds the label.
    """

    label: Label
    label_party: Name

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [party.party for party in self.parties]
        if self.label_party not in names:
            raise ValueError("got a label_party that is none of the parties, expected one of them, each party once")
        holder = self.of(self.label_party)
        if self.label.name in (holder.identifier, *(column.name for column in holder.columns)):
            raise ValueError("got the label among the features, expected a column of its own")
        # Sensitivity: in integers, on the very numbers that `veil.tabular.grid` clips to. Floating-point shares such
        # as three times sqrt(1/3) may exceed 1 in the last place; their floors on the grid do not.
        squares = sum(vector_sensitivity(party.norm_share, self.bits) ** 2 for party in self.parties)
        if squares > 4**self.bits:
            total = math.sqrt(float(sum(Fraction(party.norm_share) ** 2 for party in self.parties)))
            raise ValueError(f"got norm shares whose squares sum to {total**2:.6f}, expected at most 1")
        return self

    @property
    def row_bound(self) -> int:
        """Bound on the L2 norm of a joint row, in grid steps of 2^-bits: 2^bits, exactly."""
        # Sensitivity: ||x||^2 = sum over parties of ||x_i||^2 <= sum of B_i^2 <= 4^bits, checked in `_consistent`.
        return 1 << self.bits


def equal_shares(parties: int, bits: int) -> float:
    """The largest norm share that `parties` parties can have alike, on the grid: floor(2^bits / sqrt(parties))."""
    return math.isqrt(4**bits // parties) / 2.0**bits
