"""The linear part of a published model on columns: what scores an encrypted row, and what the row's holder needs.

Guarantee: both loaders return only what every required party has signed, file by file as the manifest lists it, with
as many numbers as the signed job's columns have features, all of a size that training can give. The holder of rows
needs no weights (`load_part`: columns, standardisation, intercept), and whoever has the weights needs no rows.

    manifest.json         `veil.recsys.manifest.OutcomeManifest`, kind "columns"
    job.json              the job text that the parties signed before training; it holds the schema
    columns.json          model, and the intercept
    client.safetensors    float64[features]: "offset", "scale", parties' features in rank order
    weights.safetensors   float64[features, 1 + hidden units]: "weights"; column 0 is the linear part

    z_j = clip((x_j - offset_j) scale_j)      to each party's share of the norm, so that |z| <= 1
    linear part of the log odds = intercept + z w_0; the whole of a logistic model's, a part of any other's
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as parse_safetensors

from veil.errors import ArtifactError
from veil.identity.names import Identity
from veil.jobs.columns import ColumnsTrainer
from veil.jobs.spec import JobSpec, describe
from veil.recsys.manifest import OutcomeManifest
from veil.recsys.signed import check_job, listed, parsed, verify_directory
from veil.tabular.grid import encode_rows
from veil.tabular.reading import PartyTable
from veil.tabular.schema import TabularSchema
from veil.tabular.statistics import MOST_SCALE, Standardisation

SCHEMA: Final = "veil.columns/1"
CLIENT_FILE: Final = "client.safetensors"
WEIGHTS_FILE: Final = "weights.safetensors"
FACTS_FILE: Final = "columns.json"
_HEADER_BYTES: Final = 64 * 1024
_FACTS_BYTES: Final = 64 * 1024
_MOST_WEIGHT: Final = 2.0**63
# Those of numbers modulo 2^64 and of `standardise`: a score of larger ones could be no number. NaN fits no range.
_RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "weights": (-_MOST_WEIGHT, _MOST_WEIGHT),
    "offset": (-1.0, 1.0),
    "scale": (0.0, MOST_SCALE),
}

Float64 = npt.NDArray[np.float64]
ModelKind = Literal["logistic", "perceptron", "towers"]


class ColumnsFacts(BaseModel):
    """columns.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=True)

    schema_: Literal["veil.columns/1"] = Field(default=SCHEMA, alias="schema")
    model: ModelKind
    intercept: float = Field(ge=-64, le=64)


@dataclass(frozen=True, eq=False, repr=False)
class LinearPart:
    """What the holder of rows needs. offset, scale: float64[features], parties' features in rank order.

    digest: SHA-256 of the manifest, 32 bytes. units: hidden units beside the linear part, 0 for logistic regression.
    """

    manifest: OutcomeManifest
    digest: bytes
    schema: TabularSchema
    offset: Float64
    scale: Float64
    intercept: float
    model: ModelKind
    units: int

    def __repr__(self) -> str:
        return f"LinearPart({self.model}, features={self.schema.width}, parties={len(self.schema.parties)})"

    def rows(self, table: PartyTable) -> Float64:
        """z of one party's rows, float64[rows, features of the party], each of a norm of at most its share."""
        place = self.schema.place(table.party.party)
        standardisation = Standardisation(self.offset[place], self.scale[place], None, 1.0)
        return encode_rows(self.schema, table, standardisation) / 2.0**self.schema.bits


def load_part(
    directory: Path, authority_pem: bytes, *, require_signers: Sequence[Identity] | None = None
) -> LinearPart:
    """The holder's part of a published directory, verified first; weights.safetensors may be absent.

    Raises `ArtifactError` when anything does not fit.
    """
    manifest, digest = verify_directory(directory, authority_pem, require_signers=require_signers)
    if not isinstance(manifest, OutcomeManifest) or manifest.kind != "columns":
        raise ArtifactError("got another kind of publication, expected a model on columns of several parties")
    spec = check_job(directory, manifest)
    if not isinstance(spec.trainer, ColumnsTrainer):
        raise ArtifactError(f"job.json: got a job of trainer {spec.trainer.kind!r}, expected columns")
    schema, facts = _schema(spec, spec.trainer), read_facts(directory, manifest)
    if facts.model != spec.trainer.model:
        raise ArtifactError(
            f"got columns.json of model {facts.model}, expected {spec.trainer.model} as in the job text"
        )
    standard = read_arrays(directory, manifest, CLIENT_FILE, {name: (schema.width,) for name in ("offset", "scale")})
    units = 0 if spec.trainer.hidden is None else spec.trainer.hidden.units
    return LinearPart(
        manifest, digest, schema, standard["offset"], standard["scale"], facts.intercept, facts.model, units
    )


def load_linear(
    directory: Path, authority_pem: bytes, *, require_signers: Sequence[Identity] | None = None
) -> tuple[LinearPart, Float64]:
    """The holder's part and the weights w_0, float64[features]. Raises `ArtifactError`."""
    part = load_part(directory, authority_pem, require_signers=require_signers)
    shape = (part.schema.width, 1 + part.units)
    weights = read_arrays(directory, part.manifest, WEIGHTS_FILE, {"weights": shape})["weights"]
    return part, np.ascontiguousarray(weights[:, 0])


def read_facts(directory: Path, manifest: OutcomeManifest) -> ColumnsFacts:
    """columns.json. Raises `ArtifactError`."""
    return parsed(TypeAdapter(ColumnsFacts), listed(directory, manifest, FACTS_FILE, _FACTS_BYTES), FACTS_FILE)


def read_arrays(
    directory: Path, manifest: OutcomeManifest, name: str, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Float64]:
    """A listed file's float64 arrays, exactly those of `shapes`, each within its range. Raises `ArtifactError`."""
    limit_bytes = sum(8 * int(np.prod(shape)) for shape in shapes.values()) + _HEADER_BYTES
    data = listed(directory, manifest, name, limit_bytes)
    try:
        arrays = parse_safetensors(data)
    except (SafetensorError, ValueError, KeyError):
        raise ArtifactError(f"got {name} that does not parse, expected safetensors") from None
    fit = set(arrays) == set(shapes) and all(
        array.shape == shapes[one]
        and array.dtype == np.float64
        and ((_RANGES[one][0] <= array) & (array <= _RANGES[one][1])).all()
        for one, array in arrays.items()
    )
    if not fit:
        wanted = ", ".join(f"{one}{list(shape)}" for one, shape in shapes.items())
        raise ArtifactError(f"got other arrays in {name}, expected {wanted}, float64 numbers in range")
    return dict(arrays)


def _schema(spec: JobSpec, trainer: ColumnsTrainer) -> TabularSchema:
    try:
        schema = TabularSchema.model_validate_json(trainer.columns)
    except ValidationError as error:
        raise ArtifactError(f"job.json: columns: {describe(error)}") from None
    if tuple(one.party for one in schema.parties) != spec.parties:
        raise ArtifactError("job.json: got columns of other parties than the job's, expected the same in order")
    return schema
