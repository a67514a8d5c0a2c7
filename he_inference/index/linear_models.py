"""Published models on columns, for an index and a scoring server: item vectors, and the files that clients get.

Guarantee: every model is signed by its parties, and by those that the caller requires; all have the same columns of
the same parties, so that one encoded row fits each of them. A model that is more than its linear part is taken only
when the caller says so.

What is read is a published directory of kind "columns", which is then called by the name of its job, or a folder with
one such directory for each model, which the names of the subfolders name.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from he_inference.collection import COLLECTION, MOST_MODELS, PART, PART_FILES, Collection, Member
from veil.errors import ArtifactError, ConfigError
from veil.identity.names import Identity
from veil.recsys.manifest import OUTCOME_SCHEMA, FileEntry, OutcomeManifest
from veil.recsys.signed import MAX_MANIFEST_BYTES, listed, read
from veil.trainers.columns.linear import LinearPart, load_linear

_MANIFEST = "manifest.json"
# `veil.jobs.spec.Name`, checked before a folder's name stands anywhere.
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,47}")


@dataclass(frozen=True, eq=False)
class LinearModels:
    """vectors: float32[items, dimensions]. files: what clients may have, by name. manifests: in the models' order."""

    collection: Collection
    vectors: NDArray[np.float32] = field(repr=False)
    manifests: tuple[OutcomeManifest, ...]
    files: Mapping[str, bytes] = field(repr=False)


def manifests_of(directory: Path) -> list[Path]:
    """Where the manifests of a model directory lie: its own, or those of its subfolders."""
    own = directory / _MANIFEST
    if own.exists() or not directory.is_dir():
        return [own]
    # A directory that is being written has a name with a dot (`veil.files.atomic_directory`).
    found = (path for path in directory.glob(f"*/{_MANIFEST}") if not path.parent.name.startswith("."))
    return sorted(found) or [own]


def holds_columns(directory: Path) -> bool:
    """Whether it looks like models on columns and not like a recommender; nothing is verified here."""
    found = manifests_of(directory)
    if found != [directory / _MANIFEST]:
        return True
    if not found[0].is_file():
        return False
    try:
        return bool(json.loads(read(directory, _MANIFEST, MAX_MANIFEST_BYTES)).get("schema") == OUTCOME_SCHEMA)
    except (ValueError, RecursionError, AttributeError):
        return False


def read_linear(
    directory: Path, authority_pem: bytes, signers: Sequence[Identity] = (), *, linear_part: bool = False
) -> LinearModels:
    """Reads and verifies them. Raises `ArtifactError`; `ConfigError` for models that do not fit together, or that are
    more than linear where `linear_part` is not set."""
    folders = [manifest.parent for manifest in manifests_of(directory)]
    if len(folders) > MOST_MODELS:
        raise ConfigError(f"got {len(folders)} models, expected at most {MOST_MODELS}")
    names, loaded = [], []
    for folder in folders:
        if folder != directory and _NAME.fullmatch(folder.name) is None:
            raise ConfigError(
                f"got folder {folder.name[:64]!r}, expected a model's name: small letters, digits and hyphens"
            )
        try:
            part, weights = load_linear(folder, authority_pem, require_signers=signers)
        except ArtifactError as error:
            raise ArtifactError(f"{folder.name}: {error.message}", hint=error.hint) from None
        names.append(part.manifest.name if folder == directory else folder.name)
        loaded.append((part, weights))
    parts = [part for part, _ in loaded]
    _check_alike(names, parts)
    if not linear_part:
        _check_linear(names, parts)
    members, stream = [], []
    for name, folder, part in zip(names, folders, parts, strict=True):
        files = [_file(folder, part.manifest, one) for one in PART_FILES]
        if hashlib.sha256(files[0]).digest() != part.digest:
            raise ArtifactError(f"got {name} changed while it was read, expected it to stay", hint="try again")
        entries = [FileEntry(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data)) for data in files]
        members.append(Member(name=name, model=part.model, files=tuple(entries)))
        stream.extend(files)
    collection = Collection(features=parts[0].schema.width, models=tuple(members))
    vectors = np.zeros((len(parts), collection.pieces * collection.dimensions), np.float32)
    for row, (_, weights) in zip(vectors, loaded, strict=True):
        row[: collection.features] = weights
    shape = (collection.items, collection.dimensions)
    files_by_name = {COLLECTION: collection.text(), PART: b"".join(stream)}
    return LinearModels(collection, vectors.reshape(shape), tuple(one.manifest for one in parts), files_by_name)


def _check_alike(names: Sequence[str], parts: Sequence[LinearPart]) -> None:
    first = parts[0]
    for name, part in zip(names, parts, strict=True):
        if (part.schema.parties, part.schema.bits) != (first.schema.parties, first.schema.bits):
            raise ConfigError(
                f"got {name} on other columns than {names[0]}, expected the same of the same parties in each",
                hint="serve models of other columns from another server",
            )
        if part.manifest.consortium != first.manifest.consortium:
            raise ConfigError(f"got {name} of another consortium than {names[0]}, expected one")


def _check_linear(names: Sequence[str], parts: Sequence[LinearPart]) -> None:
    more = [f"{name} ({part.model})" for name, part in zip(names, parts, strict=True) if part.units]
    if more:
        raise ConfigError(
            f"got models that are more than linear: {', '.join(more[:5])}",
            hint="encrypted scoring gives the linear part alone, which is not the model's score; linear_part in the"
            " server's file, or --linear-part, says that this is wanted",
        )


def _file(folder: Path, manifest: OutcomeManifest, name: str) -> bytes:
    """As it was verified a moment ago; a client verifies it again."""
    if name in ("manifest.json", "signatures.json"):
        return read(folder, name, MAX_MANIFEST_BYTES)
    return listed(folder, manifest, name, manifest.entry(name).size_bytes)
