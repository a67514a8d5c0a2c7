"""What a job text says of scoring new rows with a model on columns of several parties: public numbers, all of them.

Guarantee: the one tensor that opens is listed with the one party that it opens to. Nothing is noised and no budget is
touched: a score is a known function of one user's columns, told up to the grid, and whom a party allows to learn it of
its users is that party's own decision (`[predictions] recipients` in its configuration, which is empty by default).
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from veil.jobs.columns import AlignmentTerms, HiddenTerms, PlainOpening
from veil.jobs.trainers import Frozen, Name, Sha256

SCORES: Final = "scores"
LEAST_OUTPUT_BITS: Final = 4
MOST_OUTPUT_BITS: Final = 24
DEFAULT_OUTPUT_BITS: Final = 16


class ScoresOpening(PlainOpening):
    """What opens, and to whom alone: no other party learns any of it."""

    recipient: Name


class PredictionsTrainer(Frozen):
    """Scores of new rows by a published model; nothing is trained.

    Attributes:
        model: SHA-256 of the published manifest.json, which every party holds beside the model.
        hidden: the model's hidden layer, as in the job that trained it: what the computation does follows from the job
            text alone. Every party compares it with the model before it signs.
        alignment: how rows are aligned; `result` is the number of slots that are scored.
        triples: where correlated randomness comes from. Linear scores of revealed users take none.
        bits: fractional bits of the scores (log odds) that open: what a score tells, it tells up to 2^-bits.
        openings: the scores, one a slot, to the recipient.
    """

    kind: Literal["predictions"] = "predictions"
    model: Sha256
    hidden: HiddenTerms | None = None
    alignment: AlignmentTerms
    triples: Literal["dealer", "he"] = "dealer"
    bits: int = Field(default=DEFAULT_OUTPUT_BITS, ge=LEAST_OUTPUT_BITS, le=MOST_OUTPUT_BITS)
    openings: Annotated[tuple[ScoresOpening, ...], Field(strict=False, min_length=1, max_length=1)]

    @model_validator(mode="after")
    def _scores_alone(self) -> Self:
        opening = self.openings[0]
        if (opening.name, opening.shape) != (SCORES, (self.alignment.result,)):
            raise ValueError(
                f"got opening {opening.name} of shape {opening.shape}, expected {SCORES} of ({self.alignment.result},)"
            )
        return self

    @property
    def recipient(self) -> str:
        """Who learns the scores, of its own users."""
        return self.openings[0].recipient

    @property
    def correlated(self) -> bool:
        """Whether the computation takes correlated randomness: for hidden units, or to hide whose slots are whose."""
        return self.hidden is not None or self.alignment.mode == "hidden"
