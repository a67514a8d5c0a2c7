"""What a job text says of the trainers that work on sums over users: public numbers and names, all of them bounded."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,47}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]


class Frozen(BaseModel):
    """A part of a job text: unknown keys, other types and numbers that are none are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class SubspaceTrainer(Frozen):
    """Noisy subspace iteration from public features (docs/privacy.md gives the algorithm and its letters)."""

    kind: Literal["subspace"] = "subspace"
    dimensions: int = Field(gt=0, le=1024)
    content_dimensions: int = Field(ge=0, le=1024)
    rounds: int = Field(ge=0, le=16)
    clip: float = Field(gt=0, le=1)
    popularity_power: float = Field(ge=0, le=1)
    # Everything that the free post-processing needs, by name; public numbers only.
    options: dict[str, float] = Field(default_factory=dict)


class AlsTrainer(Frozen):
    """Alternating least squares on noised sufficient statistics (docs/privacy.md).

    `gram`: one Gram matrix of the users for all items, or a matrix for each item.
    """

    kind: Literal["als"] = "als"
    dimensions: int = Field(gt=0, le=1024)
    content_dimensions: int = Field(ge=0, le=1024)
    rounds: int = Field(gt=0, le=16)
    popularity_power: float = Field(ge=0, le=1)
    gram: Literal["global", "item"] = "global"
    # Mixing weights for much and for little noise a user, by name.
    options: dict[str, float] = Field(default_factory=dict)


class GradientTrainer(Frozen):
    """Rounds of clipped per-user updates of a `torch.nn.Module` (docs/privacy.md).

    `module` is a name that every party's configuration maps to code on its own machine; `module_sha256` is the digest
    of that code's source file, and `parameters` the number of trainable numbers in it.
    """

    kind: Literal["gradient"] = "gradient"
    module: Name
    module_sha256: Sha256
    parameters: int = Field(gt=0, le=2**26)
    rounds: int = Field(gt=0, le=1000)
    clip: float = Field(gt=0, le=1000)
    sampling: float = Field(gt=0, le=1)
    # Public numbers of the local updates and of the server's optimiser, by name.
    options: dict[str, float] = Field(default_factory=dict)


class QueryTrainer(Frozen):
    """Aggregate questions, answered once (`veil.queries`): nothing is trained, sums are released."""

    kind: Literal["query"] = "query"
    # One canonical JSON document for each question, in the order of the releases.
    questions: tuple[Annotated[str, StringConstraints(max_length=8192)], ...] = Field(min_length=1, max_length=64)

    @model_validator(mode="before")
    @classmethod
    def _tuple_from_list(cls, data: object) -> object:
        if isinstance(data, dict) and isinstance(data.get("questions"), list):
            return {**data, "questions": tuple(data["questions"])}
        return data
