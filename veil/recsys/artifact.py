"""A published model on disk: weights, manifest, and one signature for each party.

Guarantee: `load_model` returns a model only when every required party has signed exactly this manifest, every file has
the size and SHA-256 that the manifest lists, and every array has the listed shape, finite values and scores within the
listed scale. Nothing is parsed before its hash is checked, and no file name comes from outside.

A model is a directory:

    manifest.json               canonical JSON (`Manifest`); the same bytes at every party
    job.json                    the job text that the parties signed before training
    items.jsonl                 one {"id", "title"} for each item, in index order
    item_factors.safetensors    the scoring server's part
    client.safetensors          the client's part (`veil.recsys.model.FoldIn`)
    signatures.json             [{"party", "certificate_pem", "signature"}]

`veil.recsys.manifest` has the manifest's fields and what a signature says.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as parse_safetensors
from safetensors.numpy import save as dump_safetensors

from veil.errors import ArtifactError
from veil.identity.names import Identity
from veil.jobs.spec import JobSpec, canonical
from veil.recsys.catalogue import Catalogue
from veil.recsys.manifest import FileName, JobManifest, Manifest
from veil.recsys.model import FoldIn, Model
from veil.recsys.signed import check_job, job_facts, listed, manifest_bytes, verify_directory

_HEADER_BYTES: Final = 64 * 1024
_ITEM_BYTES: Final = 16 * 1024  # of one line of items.jsonl: a title of 1,000 characters, escaped


@dataclass(frozen=True, eq=False)
class Artifact:
    """A verified model. `digest`: SHA-256 of the manifest, 32 bytes. `ids`, `titles`: of the items, in index order."""

    model: Model
    manifest: Manifest
    digest: bytes
    ids: tuple[str, ...]
    titles: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ClientArtifact:
    """The verified part that a client needs; as `Artifact`, without the item factors."""

    fold_in: FoldIn
    manifest: Manifest
    digest: bytes
    ids: tuple[str, ...]
    titles: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class TitlesArtifact:
    """The verified part for a client whose history the server folds in: as `Artifact`, without numbers."""

    manifest: Manifest
    digest: bytes
    ids: tuple[str, ...]
    titles: tuple[str, ...]


def build_files(spec: JobSpec, catalogue: Catalogue, model: Model) -> dict[FileName, bytes]:
    """The four files that a manifest lists. Raises `ArtifactError` when model, catalogue and job do not fit."""
    if (spec.items.digest, model.items) != (catalogue.digest, catalogue.items):
        raise ArtifactError(f"got a model of {model.items} items, expected those of catalogue {spec.items.digest}")
    lines = [canonical({"id": i, "title": t}) for i, t in zip(catalogue.ids, catalogue.titles, strict=True)]
    return {
        "job.json": spec.text().encode("ascii"),
        "items.jsonl": ("\n".join(lines) + "\n").encode("ascii"),
        "item_factors.safetensors": dump_safetensors({"item_factors": model.item_factors}),
        "client.safetensors": dump_safetensors({"fold_in": model.fold_in, "norm_terms": model.norm_terms}),
    }


def build_manifest(spec: JobSpec, model: Model, files: Mapping[str, bytes], *, created_s: int) -> bytes:
    """The manifest of a finished job: the same bytes wherever spec, model, files and `created_s` (Unix time) are."""
    return manifest_bytes(
        Manifest(
            **job_facts(spec, files, created_s=created_s),
            items=model.items,
            dimensions=model.dimensions,
            collaborative=model.collaborative,
            taste_centre=model.taste_centre,
            score_scale=model.score_scale,
        )
    )


@dataclass(frozen=True, eq=False, repr=False)
class RecommenderPublication:
    """`veil.trainers.seam.Publication` of a recommender."""

    model: Model
    catalogue: Catalogue

    def files(self, spec: JobSpec) -> dict[str, bytes]:
        """See `Publication.files`."""
        return {str(name): data for name, data in build_files(spec, self.catalogue, self.model).items()}

    def manifest(self, spec: JobSpec, files: Mapping[str, bytes], *, created_s: int) -> bytes:
        """See `Publication.manifest`."""
        return build_manifest(spec, self.model, files, created_s=created_s)


def load_model(directory: Path, authority_pem: bytes, *, require_signers: Sequence[Identity] | None = None) -> Artifact:
    """Reads and verifies a whole model.

    authority_pem: certificate of the consortium's authority, from a source that the caller trusts. require_signers: who
    must have signed beside the parties that the manifest names; give them where one's consortium is known, since two
    colluding parties could publish a model of their own. Raises `ArtifactError`.
    """
    manifest, digest = verify_manifest(directory, authority_pem, require_signers=require_signers)
    ids, titles = read_items(directory, manifest, manifest.items)
    spec = check_job(directory, manifest)
    if spec.items.items != manifest.items:
        raise ArtifactError("got a manifest whose items differ from its job text, expected the same")
    server = read_tensors(directory, manifest, "item_factors.safetensors", _shapes(manifest)[0])
    client = read_tensors(directory, manifest, "client.safetensors", _shapes(manifest)[1])
    model = Model(
        item_factors=server["item_factors"],
        fold_in=client["fold_in"],
        norm_terms=client["norm_terms"],
        collaborative=manifest.collaborative,
        taste_centre=manifest.taste_centre,
        score_scale=manifest.score_scale,
    )
    return Artifact(model, manifest, digest, ids, titles)


def load_client(
    directory: Path, authority_pem: bytes, *, require_signers: Sequence[Identity] | None = None
) -> ClientArtifact:
    """Reads and verifies the client's part; item_factors.safetensors may be absent. Otherwise as `load_model`."""
    manifest, digest = verify_manifest(directory, authority_pem, require_signers=require_signers)
    ids, titles = read_items(directory, manifest, manifest.items)
    client = read_tensors(directory, manifest, "client.safetensors", _shapes(manifest)[1])
    fold_in = FoldIn(client["fold_in"], client["norm_terms"], manifest.collaborative, manifest.taste_centre)
    return ClientArtifact(fold_in, manifest, digest, ids, titles)


def load_titles(
    directory: Path, authority_pem: bytes, *, require_signers: Sequence[Identity] | None = None
) -> TitlesArtifact:
    """Reads and verifies manifest and items.jsonl; every other file may be absent. Otherwise as `load_model`."""
    manifest, digest = verify_manifest(directory, authority_pem, require_signers=require_signers)
    return TitlesArtifact(manifest, digest, *read_items(directory, manifest, manifest.items))


def verify_manifest(
    directory: Path, authority_pem: bytes, *, require_signers: Sequence[Identity] | None = None
) -> tuple[Manifest, bytes]:
    """Steps (1) and (2): the manifest is well formed, and all who must have signed it have. Returns it and its digest.

    Arguments and errors as for `load_model`.
    """
    manifest, digest = verify_directory(directory, authority_pem, require_signers=require_signers)
    if not isinstance(manifest, Manifest):
        raise ArtifactError(f"got a published {manifest.kind}, expected a recommender")
    return manifest, digest


def _shapes(manifest: Manifest) -> tuple[dict[str, tuple[int, int]], dict[str, tuple[int, int]]]:
    whole = (manifest.items, manifest.dimensions)
    return {"item_factors": whole}, {"fold_in": whole, "norm_terms": (manifest.items, 2)}


def read_tensors(
    directory: Path, manifest: JobManifest, name: str, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, npt.NDArray[np.float32]]:
    """The float32 tensors of a listed file, when they have these names and shapes. Raises `ArtifactError`."""
    largest = sum(4 * math.prod(shape) for shape in shapes.values()) + _HEADER_BYTES
    data = listed(directory, manifest, name, largest)
    try:
        tensors = parse_safetensors(data)
    except (SafetensorError, ValueError, KeyError):
        raise ArtifactError(f"got {name} that does not parse, expected safetensors") from None
    if {key: (array.dtype, array.shape) for key, array in tensors.items()} != {
        key: (np.dtype(np.float32), shape) for key, shape in shapes.items()
    }:
        raise ArtifactError(f"got other tensors in {name}, expected float32 {dict(shapes)}")
    return tensors


def read_items(directory: Path, manifest: JobManifest, items: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Ids and titles of as many items, in index order. Raises `ArtifactError`."""
    data = listed(directory, manifest, "items.jsonl", items * _ITEM_BYTES)
    lines = data.decode("ascii", "replace").split("\n")
    if lines[-1] or len(lines) != items + 1:
        raise ArtifactError(f"got {len(lines) - 1} lines in items.jsonl, expected {items}")
    ids, titles = [], []
    for number, line in enumerate(lines[:-1], 1):
        try:
            item = json.loads(line)
        except (ValueError, RecursionError):
            item = None
        if not (
            isinstance(item, dict) and set(item) == {"id", "title"} and all(isinstance(v, str) for v in item.values())
        ):
            raise ArtifactError(f"got line {number} of items.jsonl malformed, expected id and title")
        ids.append(item["id"])
        titles.append(item["title"])
    return tuple(ids), tuple(titles)
