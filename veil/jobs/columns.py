"""What a job text says of a joint model on columns that lie with several parties: public numbers, all of them.

Guarantee: everything that the runtime does is here or follows from it: whose columns and in which order, how records
are aligned, every number of the descent, and every tensor that opens beside the noised releases. Numbers are bounded;
whether they fit together is checked by `veil.trainers.columns.terms` at every party before it signs.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MOST_SCHEMA_CHARACTERS: Final = 128 * 1024
MOST_DESCENT_STEPS: Final = 900

_OpeningName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,47}$")]
_Coefficient = Annotated[int, Field(gt=-(2**28), lt=2**28)]
_Coefficients = Annotated[tuple[_Coefficient, ...], Field(strict=False, min_length=1, max_length=32)]
_Size = Annotated[int, Field(ge=1, le=2**26)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class AlignmentTerms(_Frozen):
    """How records are aligned (`veil.align.plan.AlignmentPlan`, which explains each field).

    mode: "reveal": every party learns which of its rows all hold. "hidden": nobody learns it of any row; users whom the
    label's party does not hold count for nothing, and one whom another party does not hold has zeros for its columns.
    """

    mode: Literal["reveal", "hidden"]
    sizes: Annotated[tuple[_Size, ...], Field(strict=False, min_length=2, max_length=16)]
    result: int = Field(ge=1, le=2**26)
    least: int = Field(default=0, ge=0, le=2**26)
    padded: bool = True
    collector: int = Field(default=0, ge=0, le=15)


class SeriesTerms(_Frozen):
    """The sum of waves that stands for the sigmoid (`veil.mpc.engine.waves.Series`): integers over 2^24."""

    period: int = Field(ge=2, le=2**16)
    reach: float = Field(gt=0, le=2**16)
    constant: _Coefficient
    sines: _Coefficients
    cosines: _Coefficients
    error: float = Field(ge=0, le=1)


class DescentTerms(_Frozen):
    """Every number of the descent (`veil.trainers.columns.logistic.Descent`)."""

    steps: int = Field(ge=1, le=MOST_DESCENT_STEPS)
    batch: int = Field(ge=1, le=2**26)
    rate: int = Field(ge=1, lt=2**20)
    rate_bits: int = Field(ge=0, le=40)
    momentum: int = Field(ge=0, lt=256)
    velocity_bits: int = Field(ge=4, le=30)
    precision_bits: int = Field(ge=6, le=20)
    sigmoid: SeriesTerms


class HiddenTerms(_Frozen):
    """The hidden layer of a model that has one (`veil.trainers.columns.perceptron.Hidden`).

    activation, slope: bounded, of one period; slope is the activation's derivative. left, right: ranks of the parties
    whose columns the two towers read; empty for a perceptron.
    """

    units: int = Field(ge=1, le=1024)
    activation: SeriesTerms
    slope: SeriesTerms
    start: int = Field(ge=0, lt=2**31)
    spread: float = Field(gt=0, le=8)
    precision_bits: int = Field(ge=4, le=16)
    left: Annotated[tuple[int, ...], Field(strict=False, max_length=16)] = ()
    right: Annotated[tuple[int, ...], Field(strict=False, max_length=16)] = ()


class PlainOpening(_Frozen):
    """A tensor that opens without noise of its own: a function of noised releases and public numbers alone."""

    name: _OpeningName
    shape: Annotated[tuple[_Size, ...], Field(strict=False, min_length=1, max_length=4)]


class ColumnsTrainer(_Frozen):
    """A model on columns of several parties, whose features, labels and gradients stay shared (docs/privacy.md).

    Attributes:
        model: "logistic", "perceptron" (a bounded hidden layer beside it), "towers" (products of two sides' units).
        columns: canonical JSON of a `veil.tabular.schema.TabularSchema`; its parties are those of the job, in order.
        triples: where correlated randomness comes from: the job's dealer, or homomorphic encryption between parties.
        fill, least_users: of `veil.tabular.statistics.standardise`.
        openings: what opens beside the releases, in order.
    """

    kind: Literal["columns"] = "columns"
    model: Literal["logistic", "perceptron", "towers"] = "logistic"
    columns: Annotated[str, StringConstraints(min_length=2, max_length=MOST_SCHEMA_CHARACTERS)]
    alignment: AlignmentTerms
    descent: DescentTerms
    hidden: HiddenTerms | None = None
    triples: Literal["dealer", "he"] = "dealer"
    fill: float = Field(default=1.0, gt=0, le=4)
    least_users: float = Field(default=0.0, ge=0, le=1e9)
    openings: Annotated[tuple[PlainOpening, ...], Field(strict=False, min_length=1, max_length=16)]
