"""The client's part of a published model: fetched from the server, believed only when the parties signed it.

Guarantee: a model in the cache lies under the digest of its manifest, whole or not at all, and is verified again each
time it is loaded. Nothing larger than the signed manifest says is ever received.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from he_inference.client.steps import Conversation, Receive, Step, Work
from he_inference.exchange import Gather, Offer
from veil.errors import ArtifactError, StateError
from veil.files import atomic_directory
from veil.identity.names import Identity
from veil.recsys.artifact import ClientArtifact, TitlesArtifact, load_client, load_titles, verify_manifest
from veil.recsys.manifest import FileName
from veil.recsys.signed import MAX_MANIFEST_BYTES, MAX_SIGNATURES_BYTES
from veil.wire.v1 import inference_pb2

_LARGEST_FILE_BYTES = 4 * 1024**3

Patiently = Callable[[Callable[[float], Step]], Conversation[Any]]
Loaded = TypeVar("Loaded", ClientArtifact, TitlesArtifact)
LoadedOut = TypeVar("LoadedOut", ClientArtifact, TitlesArtifact, covariant=True)


class _Load(Protocol[LoadedOut]):
    """`load_client` or `load_titles`."""

    def __call__(
        self, directory: Path, authority_pem: bytes, *, require_signers: Sequence[Identity] | None
    ) -> LoadedOut: ...


@dataclass(frozen=True)
class Part(Generic[Loaded]):
    """What of a model a client wants: files beside the manifest, how they are read, where they are kept."""

    files: tuple[FileName, ...]
    load: _Load[Loaded]
    suffix: str = ""


TOWER: Part[ClientArtifact] = Part(("items.jsonl", "client.safetensors"), load_client)
TITLES: Part[TitlesArtifact] = Part(("items.jsonl",), load_titles, "-titles")


class _File:
    """Gathers one file."""

    def __init__(self, name: str, limit_bytes: int) -> None:
        self.gather = Gather(name, limit_bytes)

    def add(self, message: Any) -> None:
        """The next piece."""
        self.gather.add(message.payload)


@dataclass(frozen=True)
class ModelCache:
    """Where models are kept (None: nowhere), and who must have signed them."""

    directory: Path | None
    authority_pem: bytes
    require_signers: Sequence[Identity] | None

    def fetch(self, part: Part[Loaded], offer: Offer, patiently: Patiently) -> Conversation[Loaded]:
        """A part of the model that `offer` names, from the directory or from the server.

        patiently: has a step carried out, with retries. Raises `ArtifactError` when it does not verify or does not fit
        the offer, `PeerError` when the server fails.
        """
        kept: Loaded | None = yield Work(lambda: self._kept(part, offer))
        if kept is not None:
            return kept
        # (1) the manifest by its digest, (2) its signatures, (3) the files, no larger than it says
        manifest = yield from receive_file("manifest.json", MAX_MANIFEST_BYTES, patiently)
        signatures = yield from receive_file("signatures.json", MAX_SIGNATURES_BYTES, patiently)
        limits: dict[FileName, int] = yield Work(lambda: self._limits(manifest, signatures, offer))
        files: dict[str, bytes] = {"manifest.json": manifest, "signatures.json": signatures}
        for name in part.files:
            files[name] = yield from receive_file(name, limits[name], patiently)
        stored: Loaded = yield Work(lambda: self._stored(part, files, offer))
        return stored

    def _kept(self, part: Part[Loaded], offer: Offer) -> Loaded | None:
        if self.directory is None:
            return None
        folder = self.directory / (offer.manifest_digest.hex() + part.suffix)
        if not folder.is_dir():
            return None
        try:
            return self._load(part, folder, offer)
        except ArtifactError:
            # Damaged on disk, or the rules have become stricter: only the server's answer can tell.
            shutil.rmtree(folder)
            return None

    def _stored(self, part: Part[Loaded], files: dict[str, bytes], offer: Offer) -> Loaded:
        if self.directory is None:
            with tempfile.TemporaryDirectory(prefix="veil-model-") as temporary:
                _write(Path(temporary), files)
                return self._load(part, Path(temporary), offer)
        folder = self.directory / (offer.manifest_digest.hex() + part.suffix)
        try:
            with atomic_directory(folder) as made:
                _write(made, files)
                # What does not verify is never kept.
                self._load(part, made, offer)
        except (StateError, OSError):
            # Another process was faster; what it stored is verified below like anything else.
            if not folder.is_dir():
                raise
        return self._load(part, folder, offer)

    def _load(self, part: Part[Loaded], folder: Path, offer: Offer) -> Loaded:
        artifact = part.load(folder, self.authority_pem, require_signers=self.require_signers)
        manifest, layout = artifact.manifest, offer.layout
        got, expected = (manifest.items, manifest.dimensions), (layout.items, layout.dimensions)
        if artifact.digest != offer.manifest_digest or got != expected:
            raise ArtifactError(f"got a model of {got} items and dimensions, expected {expected} as the server says")
        return artifact

    def _limits(self, manifest_bytes: bytes, signatures_bytes: bytes, offer: Offer) -> dict[FileName, int]:
        """Sizes of the other files, by a manifest that is the offer's and that the parties signed."""
        if hashlib.sha256(manifest_bytes).digest() != offer.manifest_digest:
            raise ArtifactError("got another manifest than the server's parameters name, expected the same")
        with tempfile.TemporaryDirectory(prefix="veil-model-") as temporary:
            folder = Path(temporary)
            _write(folder, {"manifest.json": manifest_bytes, "signatures.json": signatures_bytes})
            manifest, _ = verify_manifest(folder, self.authority_pem, require_signers=self.require_signers)
        return {name: min(entry.size_bytes, _LARGEST_FILE_BYTES) for name, entry in manifest.files.items()}


def _write(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).write_bytes(data)


def receive_file(name: str, limit_bytes: int, patiently: Patiently) -> Conversation[bytes]:
    """One file of the client's part, of at most that size; the caller verifies it."""
    request = inference_pb2.GetClientModelRequest(file=name)
    received: _File = yield from patiently(
        lambda left: Receive("GetClientModel", request, _File(name, limit_bytes), left)
    )
    return received.gather.whole()
