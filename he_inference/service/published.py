"""The model that a scoring server serves: verified once, then read-only.

Guarantee: nothing is served unless every required party signed it. Clients can have only the four files of their part,
byte for byte as they were when the server started, whatever happens to the directory later.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from veil.errors import ArtifactError, StateError
from veil.identity.names import Identity
from veil.recsys.artifact import load_model
from veil.recsys.model import Model
from veil.wire.channel import CHUNK_BYTES
from veil.wire.v1 import model_pb2, privacy_pb2

# What a client needs; item vectors are the server's part. The manifest comes first: the rest is checked against it.
CLIENT_FILES = ("manifest.json", "signatures.json", "items.jsonl", "client.safetensors")


@dataclass(frozen=True, eq=False)
class PublishedModel:
    """The model, ids of its items in order, the card, and open files of the client's part."""

    model: Model = field(repr=False)
    ids: tuple[str, ...] = field(repr=False)
    card: model_pb2.ModelCard = field(repr=False)
    manifest_digest: bytes
    _files: dict[str, int] = field(repr=False)

    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def factors(self) -> NDArray[np.float32]:
        """Item vectors, float32[items, d]."""
        return self.model.item_factors

    def client_file(self, name: str) -> tuple[int, Iterator[bytes]]:
        """Size and pieces of one file of the client's part; raises `StateError` for any other name.

        The pieces can be read to the end after `close`; read them, or close the iterator.
        """
        with self._lock:
            if name not in self._files:
                raise StateError(
                    f"got a request for file {name[:64]!r}, expected one of {', '.join(CLIENT_FILES)}",
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


def open_model(directory: Path, authority_pem: bytes, signers: Sequence[Identity]) -> PublishedModel:
    """Loads and verifies a published model. Raises `ArtifactError`."""
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
    return PublishedModel(artifact.model, artifact.ids, card, artifact.digest, files)
