"""What a job text says of a recommender whose users' side information lies with other organisations.

Guarantee: everything that the runtime does is here or follows from it: who holds the interactions, what the others'
columns mean, how records are aligned, every number of the mechanism and of what is made of its openings. Numbers are
bounded; whether they fit together is checked by `veil.trainers.side.terms` at every party before it signs.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from veil.jobs.columns import MOST_SCHEMA_CHARACTERS, AlignmentTerms
from veil.jobs.trainers import Frozen, Name, SubspaceTrainer


class MixingTerms(Frozen):
    """How much the side information counts in a score: public numbers (`veil.trainers.side.estimate`).

    weak, strong: for a user without history, at the noise ratios `ratio_weak` and above, `ratio_strong` and below.
    half_length: a history of so many items halves it.
    """

    weak: float = Field(ge=0, le=16)
    strong: float = Field(ge=0, le=16)
    ratio_weak: float = Field(gt=0, le=1e6)
    ratio_strong: float = Field(gt=0, le=1e6)
    half_length: float = Field(gt=0, le=1e6)


class SideTrainer(Frozen):
    """A recommender of one party's interactions, and what other parties' columns of the same users add to it.

    Attributes:
        items: the party that holds interactions; every other party of the job brings columns.
        recommender: of interactions.
        columns: canonical JSON of a `veil.tabular.schema.ColumnsSchema` without a label; its parties are all others of
            the job, in the job's order.
        row_bits: fractional bits of a user's row of items in the outer product.
        triples: where correlated randomness comes from: the job's dealer, or homomorphic encryption between parties.
        fill, least_users: of `veil.tabular.statistics.standardise`.
        ridge: users' worth of a priori belief that a column says nothing (`veil.trainers.side.estimate`).
    """

    kind: Literal["side"] = "side"
    items: Name
    recommender: SubspaceTrainer
    columns: Annotated[str, StringConstraints(min_length=2, max_length=MOST_SCHEMA_CHARACTERS)]
    alignment: AlignmentTerms
    row_bits: int = Field(default=16, ge=4, le=20)
    triples: Literal["dealer", "he"] = "dealer"
    fill: float = Field(default=1.0, gt=0, le=4)
    least_users: float = Field(default=0.0, ge=0, le=1e9)
    ridge: float = Field(default=20.0, gt=0, le=1e9)
    mixing: MixingTerms
