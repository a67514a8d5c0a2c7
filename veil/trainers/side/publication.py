"""A recommender with side information as a published directory, and back.

Guarantee: `load_side` returns a model only when every required party has signed the manifest, every file has the size
and SHA-256 that it lists, and the numbers fit the signed job: shapes, ranges, and the bound of every score.

    manifest.json              `veil.recsys.manifest.OutcomeManifest`, kind "side"
    job.json                   the job text that the parties signed before training; it holds the columns' schema
    items.jsonl                one {"id", "title"} for each item, in index order
    item_factors.safetensors   "item_factors" float32[items, D], the recommender's
    client.safetensors         "fold_in" float32[items, D], "norm_terms" float32[items, 2]
    side.safetensors           "factors" float32[items, width]; "offset", "scale" float64[width], parties in rank order
    side.json                  numbers of the recommender: D, collaborative columns, taste centre, score scale
    signatures.json            one signature for each party
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter
from safetensors import SafetensorError
from safetensors.numpy import load as parse_safetensors
from safetensors.numpy import save as dump_safetensors

from veil.errors import ArtifactError, ConfigError
from veil.identity.names import Identity
from veil.jobs.spec import JobSpec, canonical
from veil.recsys.artifact import build_files, read_items, read_tensors
from veil.recsys.catalogue import Catalogue
from veil.recsys.manifest import OutcomeManifest
from veil.recsys.model import MAX_DIMENSIONS, Model
from veil.recsys.postprocess import USER_TERMS
from veil.recsys.signed import check_job, job_facts, listed, manifest_bytes, parsed, verify_directory
from veil.trainers.side.model import SideModel
from veil.trainers.side.terms import SideTerms

SCHEMA: Final = "veil.side/1"
_HEADER_BYTES: Final = 64 * 1024
_FACTS_BYTES: Final = 64 * 1024
_TYPES: Final[Mapping[str, Any]] = {"factors": np.float32, "offset": np.float64, "scale": np.float64}


class SideFacts(BaseModel):
    """side.json."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=True)

    schema_: Literal["veil.side/1"] = Field(default=SCHEMA, alias="schema")
    dimensions: int = Field(gt=0, le=MAX_DIMENSIONS)
    collaborative: int = Field(ge=0, le=MAX_DIMENSIONS)
    taste_centre: float
    score_scale: float = Field(gt=0)


@dataclass(frozen=True, eq=False)
class SideArtifact:
    """A verified model. `digest`: SHA-256 of the manifest, 32 bytes. `ids`, `titles`: of the items, in index order."""

    model: SideModel
    manifest: OutcomeManifest
    digest: bytes
    ids: tuple[str, ...]
    titles: tuple[str, ...]


@dataclass(frozen=True, eq=False, repr=False)
class SidePublication:
    """`veil.trainers.seam.Publication` of such a model."""

    model: SideModel
    catalogue: Catalogue

    def files(self, spec: JobSpec) -> dict[str, bytes]:
        """See `Publication.files`."""
        model = self.model
        arrays = {name: np.ascontiguousarray(getattr(model, name)) for name in _TYPES}
        facts = SideFacts(
            dimensions=model.recommender.dimensions,
            collaborative=model.recommender.collaborative,
            taste_centre=model.recommender.taste_centre,
            score_scale=model.recommender.score_scale,
        )
        return {
            **{str(name): data for name, data in build_files(spec, self.catalogue, model.recommender).items()},
            "side.safetensors": dump_safetensors(arrays),
            "side.json": canonical(facts.model_dump(mode="json", by_alias=True)).encode("ascii"),
        }

    def manifest(self, spec: JobSpec, files: Mapping[str, bytes], *, created_s: int) -> bytes:
        """See `Publication.manifest`."""
        return manifest_bytes(OutcomeManifest(**job_facts(spec, files, created_s=created_s), kind="side"))


def load_side(
    directory: Path, authority_pem: bytes, *, require_signers: Sequence[Identity] | None = None
) -> SideArtifact:
    """The model in a published directory, verified first (`veil.recsys.signed.verify_directory`).

    Raises `ArtifactError` when anything does not fit.
    """
    manifest, digest = verify_directory(directory, authority_pem, require_signers=require_signers)
    if not isinstance(manifest, OutcomeManifest) or manifest.kind != "side":
        raise ArtifactError("got another kind of publication, expected a recommender with side information")
    spec = check_job(directory, manifest)
    try:
        terms = SideTerms.of(spec)
    except ConfigError as error:
        raise ArtifactError(f"job.json: {error.message}") from None
    facts = parsed(TypeAdapter(SideFacts), listed(directory, manifest, "side.json", _FACTS_BYTES), "side.json")
    trainer = terms.trainer.recommender
    collaborative = trainer.dimensions if trainer.rounds else 0
    if facts.collaborative not in (0, collaborative) or not (
        0 <= facts.dimensions - USER_TERMS - facts.collaborative <= trainer.content_dimensions
    ):
        raise ArtifactError(
            f"got user vectors of {facts.dimensions} entries, {facts.collaborative} of them collaborative, expected"
            f" {collaborative} or none, and at most {trainer.content_dimensions} of content"
        )
    ids, titles = read_items(directory, manifest, terms.items)
    whole = (terms.items, facts.dimensions)
    server = read_tensors(directory, manifest, "item_factors.safetensors", {"item_factors": whole})
    client_shapes = {"fold_in": whole, "norm_terms": (terms.items, 2)}
    client = read_tensors(directory, manifest, "client.safetensors", client_shapes)
    side = _side(directory, manifest, terms.items, terms.schema.width)
    recommender = Model(
        item_factors=server["item_factors"],
        fold_in=client["fold_in"],
        norm_terms=client["norm_terms"],
        collaborative=facts.collaborative,
        taste_centre=facts.taste_centre,
        score_scale=facts.score_scale,
    )
    model = SideModel(
        recommender,
        terms.schema,
        side["factors"],
        side["offset"],
        side["scale"],
        terms.trainer.mixing.half_length,
    )
    return SideArtifact(model, manifest, digest, ids, titles)


def _side(directory: Path, manifest: OutcomeManifest, items: int, width: int) -> dict[str, npt.NDArray[Any]]:
    data = listed(directory, manifest, "side.safetensors", (4 * items + 16) * width + _HEADER_BYTES)
    try:
        arrays = parse_safetensors(data)
    except (SafetensorError, ValueError, KeyError):
        raise ArtifactError("got side.safetensors that does not parse, expected safetensors") from None
    shapes = {"factors": (items, width), "offset": (width,), "scale": (width,)}
    got = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    if got != {name: (shape, np.dtype(_TYPES[name])) for name, shape in shapes.items()}:
        raise ArtifactError(f"got other arrays in side.safetensors, expected factors, offset and scale of {width}")
    return dict(arrays)
