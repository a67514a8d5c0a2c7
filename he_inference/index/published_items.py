"""The items of a published model, for an index: vectors, ids and the digest that ties the index to the model.

Guarantee: vectors and ids have the SHA-256 that the manifest lists, and the digest is that of this manifest; with the
authority's certificate its signatures are checked as well. Without it they are the business of the server, which serves
an index only beside a model that it has verified and whose manifest has the same digest. Models on columns
(`he_inference.index.linear_models`), of which there may be several, are always checked with their signatures.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as parse_safetensors

from he_inference.index.linear_models import holds_columns, read_linear
from veil.errors import ArtifactError, ConfigError
from veil.recsys.artifact import verify_manifest
from veil.recsys.manifest import Manifest, manifest_digest
from veil.recsys.signed import MAX_MANIFEST_BYTES, listed, parse_manifest, read

_HEADER_BYTES = 64 * 1024
_LINE_BYTES = 16 * 1024


@dataclass(frozen=True, eq=False)
class PublishedItems:
    """factors: float32[items, d]; ids in the same order; digest: SHA-256 of the manifest, 32 bytes."""

    name: str
    factors: NDArray[np.float32] = field(repr=False)
    ids: tuple[str, ...] = field(repr=False)
    digest: bytes


def read_items(directory: Path, authority_pem: bytes | None = None, *, linear_part: bool = False) -> PublishedItems:
    """Reads item vectors and ids of a model directory. linear_part: take models on columns that are more than linear.

    Raises `ArtifactError`; `ConfigError` for models on columns that do not fit together or come without an authority.
    """
    if holds_columns(directory):
        return _linear_items(directory, authority_pem, linear_part)
    if authority_pem is None:
        raw = read(directory, "manifest.json", MAX_MANIFEST_BYTES)
        parsed = parse_manifest(raw)
        if not isinstance(parsed, Manifest):
            raise ArtifactError(f"got a published {parsed.kind}, expected a recommender")
        manifest, digest = parsed, manifest_digest(raw)
    else:
        manifest, digest = verify_manifest(directory, authority_pem)
    return PublishedItems(manifest.name, _factors(directory, manifest), _ids(directory, manifest), digest)


def _linear_items(directory: Path, authority_pem: bytes | None, linear_part: bool) -> PublishedItems:
    if authority_pem is None:
        raise ConfigError(
            "got models on columns without the authority's certificate, expected it: their signatures are checked",
            hint="--authority authority.pem",
        )
    models = read_linear(directory, authority_pem, linear_part=linear_part)
    collection = models.collection
    name = collection.models[0].name if len(collection.models) == 1 else directory.name
    return PublishedItems(name, models.vectors, collection.ids(), collection.digest)


def _factors(directory: Path, manifest: Manifest) -> NDArray[np.float32]:
    shape = (manifest.items, manifest.dimensions)
    data = listed(directory, manifest, "item_factors.safetensors", 4 * shape[0] * shape[1] + _HEADER_BYTES)
    try:
        factors = parse_safetensors(data)["item_factors"]
    except (SafetensorError, ValueError, KeyError):
        raise ArtifactError("got item_factors.safetensors that does not parse, expected safetensors") from None
    if factors.dtype != np.float32 or factors.shape != shape:
        raise ArtifactError(f"got item vectors {factors.dtype}{factors.shape}, expected float32{shape}")
    return factors


def _ids(directory: Path, manifest: Manifest) -> tuple[str, ...]:
    lines = listed(directory, manifest, "items.jsonl", manifest.items * _LINE_BYTES).splitlines()
    try:
        ids = tuple(json.loads(line)["id"] for line in lines)
    except (ValueError, RecursionError, KeyError, TypeError):
        ids = ()
    if len(ids) != manifest.items or not all(isinstance(identifier, str) for identifier in ids):
        raise ArtifactError(f"got a malformed items.jsonl, expected {manifest.items} lines with an id each")
    return ids
