"""The client's part of a published model: fetched from the server, believed only when the parties signed it.

Guarantee: a model in the cache lies under the digest of its manifest, whole or not at all, and is verified again each
time it is loaded. Nothing larger than the signed manifest says is ever received.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from he_inference.exchange import Gather, Terms
from veil.errors import ArtifactError, StateError
from veil.files import atomic_directory
from veil.identity.names import Identity
from veil.recsys.artifact import ClientArtifact, load_client, verify_manifest
from veil.recsys.signed import MAX_MANIFEST_BYTES, MAX_SIGNATURES_BYTES
from veil.wire.status import translated
from veil.wire.v1 import inference_pb2, inference_pb2_grpc

_LARGEST_FILE_BYTES = 4 * 1024**3


def fetch(
    stub: inference_pb2_grpc.InferenceServiceStub,
    terms: Terms,
    cache: Path,
    authority_pem: bytes,
    *,
    peer: str,
    require_signers: Sequence[Identity] | None,
    timeout_s: float,
) -> ClientArtifact:
    """The client's part of the model that `terms` name, from `cache` or from the server.

    Raises `ArtifactError` when it does not verify or does not fit the terms, `PeerError` when the server fails.
    """

    def receive(name: str, limit_bytes: int) -> bytes:
        gather = Gather(name, limit_bytes)
        with translated(peer):
            for message in stub.GetClientModel(inference_pb2.GetClientModelRequest(file=name), timeout=timeout_s):
                gather.add(message.payload)
        return gather.whole()

    directory = cache / terms.manifest_digest.hex()
    if directory.is_dir():
        try:
            return _fitting(load_client(directory, authority_pem, require_signers=require_signers), terms)
        except ArtifactError:
            # Damaged on disk, or the rules have become stricter: only the server's answer can tell.
            shutil.rmtree(directory)
    try:
        with atomic_directory(directory) as temporary:
            _download(receive, terms, temporary, authority_pem, require_signers)
    except (StateError, OSError):
        # Another process was faster; what it stored is verified below like anything else.
        if not directory.is_dir():
            raise
    return _fitting(load_client(directory, authority_pem, require_signers=require_signers), terms)


def _download(
    receive: Callable[[str, int], bytes],
    terms: Terms,
    directory: Path,
    authority_pem: bytes,
    require_signers: Sequence[Identity] | None,
) -> None:
    # (1) the manifest by its digest, (2) its signatures, (3) the files, no larger than it says
    manifest_bytes = receive("manifest.json", MAX_MANIFEST_BYTES)
    if hashlib.sha256(manifest_bytes).digest() != terms.manifest_digest:
        raise ArtifactError("got another manifest than the server's parameters name, expected the same")
    (directory / "manifest.json").write_bytes(manifest_bytes)
    (directory / "signatures.json").write_bytes(receive("signatures.json", MAX_SIGNATURES_BYTES))
    manifest, _ = verify_manifest(directory, authority_pem, require_signers=require_signers)
    for name in ("items.jsonl", "client.safetensors"):
        limit_bytes = min(manifest.files[name].size_bytes, _LARGEST_FILE_BYTES)
        (directory / name).write_bytes(receive(name, limit_bytes))


def _fitting(artifact: ClientArtifact, terms: Terms) -> ClientArtifact:
    manifest, layout = artifact.manifest, terms.layout
    got, expected = (manifest.items, manifest.dimensions), (layout.items, layout.dimensions)
    if artifact.digest != terms.manifest_digest or got != expected:
        raise ArtifactError(f"got a model of {got} items and dimensions, expected {expected} as the server says")
    return artifact
