"""The model that a scoring server serves: verified once, then read-only.

Guarantee: nothing is served unless every required party signed it. Clients can have only the files of their part, four
of a recommender, two of models on columns (`he_inference.collection`), byte for byte as they were when the server
started, whatever happens to the directory later.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from he_inference.collection import Collection
from he_inference.index.linear_models import LinearModels, holds_columns, read_linear
from veil.errors import ArtifactError, ConfigError, StateError
from veil.identity.names import Identity
from veil.recsys.artifact import load_model
from veil.recsys.model import Model
from veil.wire.channel import CHUNK_BYTES
from veil.wire.v1 import model_pb2, privacy_pb2

# What a client needs; item vectors are the server's part. The manifest comes first: the rest is checked against it.
CLIENT_FILES = ("manifest.json", "signatures.json", "items.jsonl", "client.safetensors")
# That the card names; the collection, which clients fetch, names all.
_MOST_NAMES = 16


@dataclass(frozen=True, eq=False)
class PublishedModel:
    """factors: item vectors, float32[items, d]. ids: of the items, in order. card: what clients are told; then open
    files of the client's part. model: the recommender, None for models on columns.
    """

    model: Model | None = field(repr=False)
    factors: NDArray[np.float32] = field(repr=False)
    ids: tuple[str, ...] = field(repr=False)
    card: model_pb2.ModelCard = field(repr=False)
    manifest_digest: bytes
    _files: dict[str, int] = field(repr=False)

    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def recommender(self) -> Model:
        """The recommender, for histories. Raises `ConfigError` for models on columns, which know none."""
        if self.model is None:
            raise ConfigError(
                "got a history for models on columns, expected encoded rows",
                hint="offer keyless, pq or fast in place of history",
            )
        return self.model

    def client_file(self, name: str) -> tuple[int, Iterator[bytes]]:
        """Size and pieces of one file of the client's part; raises `StateError` for any other name.

        The pieces can be read to the end after `close`; read them, or close the iterator.
        """
        with self._lock:
            if name not in self._files:
                raise StateError(
                    f"got a request for file {name[:64]!r}, expected one of {', '.join(self._files)}",
                    hint="the item vectors stay on the server",
                )
            descriptor = os.dup(self._files[name])
        size = os.fstat(descriptor).st_size
        return size, _pieces(descriptor, size)

    def close(self) -> None:
        """Closes the files."""
        with self._lock:
            for descriptor in self._files.values():
                os.close(descriptor)
            self._files.clear()


def _pieces(descriptor: int, size: int) -> Iterator[bytes]:
    with os.fdopen(descriptor, "rb", buffering=0):
        for start in range(0, size or 1, CHUNK_BYTES):
            yield os.pread(descriptor, CHUNK_BYTES, start)


def open_model(
    directory: Path, authority_pem: bytes, signers: Sequence[Identity], *, linear_part: bool = False
) -> PublishedModel:
    """Loads and verifies a published model, or models on columns. Raises `ArtifactError`, `ConfigError`.

    linear_part: serve the linear part of models on columns that are more than that.
    """
    if holds_columns(directory):
        return _open_linear(read_linear(directory, authority_pem, signers, linear_part=linear_part))
    artifact = load_model(directory, authority_pem, require_signers=signers)
    files: dict[str, int] = {}
    try:
        for name in CLIENT_FILES:
            files[name] = os.open(directory / name, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        for descriptor in files.values():
            os.close(descriptor)
        raise ArtifactError(f"got no readable file at {directory / name}: {error.strerror}") from None
    manifest = artifact.manifest
    card = model_pb2.ModelCard(
        name=manifest.name,
        manifest_digest=artifact.digest,
        items=manifest.items,
        dimensions=manifest.dimensions,
        signers=manifest.parties,
        epsilon_micro=manifest.epsilon_micro,
        delta=f"{manifest.delta:g}",
        neighbouring=privacy_pb2.NEIGHBOURING_RELATION_ADD_OR_REMOVE_ONE_USER,
        privacy_unit=manifest.unit,
        versions=manifest.versions,
    )
    return PublishedModel(artifact.model, artifact.model.item_factors, artifact.ids, card, artifact.digest, files)


def _open_linear(models: LinearModels) -> PublishedModel:
    collection, manifests = models.collection, models.manifests
    files: dict[str, int] = {}
    for name, data in models.files.items():
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.flush()
            files[name] = os.dup(file.fileno())
    card = model_pb2.ModelCard(
        name=_called(collection),
        manifest_digest=collection.digest,
        items=collection.items,
        dimensions=collection.dimensions,
        # Those who have signed every one of them.
        signers=sorted(set.intersection(*(set(manifest.parties) for manifest in manifests))),
        # A user may be in the rows of all: costs add up.
        epsilon_micro=sum(manifest.epsilon_micro for manifest in manifests),
        delta=f"{sum(manifest.delta for manifest in manifests):g}",
        neighbouring=privacy_pb2.NEIGHBOURING_RELATION_ADD_OR_REMOVE_ONE_USER,
        privacy_unit=manifests[0].unit,
        versions=manifests[0].versions if len(manifests) == 1 else {},
    )
    return PublishedModel(None, models.vectors, collection.ids(), card, collection.digest, files)


def _called(collection: Collection) -> str:
    """Names of the models; of one that is more than linear, that this is its linear part."""
    names = [
        member.name if member.model == "logistic" else f"{member.name} (linear part of a {member.model} alone)"
        for member in collection.models
    ]
    shown = ", ".join(names[:_MOST_NAMES])
    return shown if len(names) <= _MOST_NAMES else f"{shown} and {len(names) - _MOST_NAMES} more"
