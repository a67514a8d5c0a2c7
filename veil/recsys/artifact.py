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

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as parse_safetensors
from safetensors.numpy import save as dump_safetensors

from veil.errors import ArtifactError, ConfigError, InputError
from veil.files import atomic_directory, read_bounded
from veil.identity.names import Identity, Role
from veil.jobs import spec as jobs
from veil.jobs.spec import JobSpec, canonical, describe
from veil.privacy.accountant import epsilon, to_micro
from veil.recsys.catalogue import Catalogue
from veil.recsys.manifest import (
    FileEntry,
    FileName,
    Manifest,
    Signature,
    check_created,
    manifest_digest,
    sign_manifest,
    verify_one,
)
from veil.recsys.model import FoldIn, Model

__all__ = [
    "MAX_MANIFEST_BYTES",
    "MAX_SIGNATURES_BYTES",
    "Artifact",
    "ClientArtifact",
    "FileEntry",
    "FileName",
    "Manifest",
    "Signature",
    "build_files",
    "build_manifest",
    "check_created",
    "load_client",
    "load_model",
    "manifest_digest",
    "save_model",
    "sign_manifest",
    "verify_manifest",
    "verify_one",
]

MAX_MANIFEST_BYTES: Final = 512 * 1024
MAX_SIGNATURES_BYTES: Final = 512 * 1024
_HEADER_BYTES: Final = 64 * 1024
_ITEM_BYTES: Final = 16 * 1024  # of one line of items.jsonl: a title of 1,000 characters, escaped

_Parsed = TypeVar("_Parsed")


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


def build_files(spec: JobSpec, catalogue: Catalogue, model: Model) -> dict[FileName, bytes]:
    """The four files that a manifest lists. Raises `ArtifactError` when model, catalogue and job do not fit."""
    if (spec.catalogue.digest, model.items) != (catalogue.digest, catalogue.items):
        raise ArtifactError(f"got a model of {model.items} items, expected those of catalogue {spec.catalogue.digest}")
    lines = [canonical({"id": i, "title": t}) for i, t in zip(catalogue.ids, catalogue.titles, strict=True)]
    return {
        "job.json": spec.text().encode("ascii"),
        "items.jsonl": ("\n".join(lines) + "\n").encode("ascii"),
        "item_factors.safetensors": dump_safetensors({"item_factors": model.item_factors}),
        "client.safetensors": dump_safetensors({"fold_in": model.fold_in, "norm_terms": model.norm_terms}),
    }


def build_manifest(spec: JobSpec, model: Model, files: Mapping[FileName, bytes], *, created_s: int) -> bytes:
    """The manifest of a finished job: the same bytes wherever spec, model, files and `created_s` (Unix time) are."""
    manifest = Manifest(
        name=spec.name,
        consortium=spec.consortium,
        parties=list(spec.parties),
        job_digest=f"sha256:{jobs.digest(spec.text()).hex()}",
        training_text_digest=f"sha256:{hashlib.sha256(files['job.json']).hexdigest()}",
        catalogue_digest=spec.catalogue.digest,
        created_s=created_s,
        items=model.items,
        dimensions=model.dimensions,
        collaborative=model.collaborative,
        taste_centre=model.taste_centre,
        score_scale=model.score_scale,
        epsilon=spec.privacy.epsilon,
        epsilon_micro=to_micro(epsilon(spec.releases, spec.privacy.delta)),
        delta=spec.privacy.delta,
        unit=spec.privacy.unit,
        neighbouring=spec.privacy.neighbouring,
        noise_source=spec.privacy.noise.source,
        releases=list(spec.releases),
        versions=dict(spec.versions),
        files={
            name: FileEntry(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
            for name, data in files.items()
        },
    )
    return canonical(manifest.model_dump(mode="json", by_alias=True)).encode("ascii")


def save_model(
    directory: Path, files: Mapping[FileName, bytes], manifest: bytes, signatures: Iterable[Signature]
) -> bytes:
    """Writes the directory, whole or not at all, and returns the manifest's digest.

    Does not judge signatures: a published directory is checked where it is read. Raises `StateError` when it exists.
    """
    listed = sorted(signatures, key=lambda signature: signature.party)
    with atomic_directory(Path(directory)) as temporary:
        for name, data in files.items():
            (temporary / name).write_bytes(data)
        (temporary / "manifest.json").write_bytes(manifest)
        text = canonical([signature.model_dump(mode="json") for signature in listed])
        (temporary / "signatures.json").write_text(text, encoding="ascii")
    return manifest_digest(manifest)


def load_model(directory: Path, authority_pem: bytes, *, require_signers: Sequence[Identity] | None = None) -> Artifact:
    """Reads and verifies a whole model.

    authority_pem: certificate of the consortium's authority, from a source that the caller trusts. require_signers: who
    must have signed beside the parties that the manifest names; give them where one's consortium is known, since two
    colluding parties could publish a model of their own. Raises `ArtifactError`.
    """
    manifest, digest = verify_manifest(directory, authority_pem, require_signers=require_signers)
    ids, titles = _items(directory, manifest)
    _check_job(directory, manifest)
    server = _tensors(directory, manifest, "item_factors.safetensors", _shapes(manifest)[0])
    client = _tensors(directory, manifest, "client.safetensors", _shapes(manifest)[1])
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
    ids, titles = _items(directory, manifest)
    client = _tensors(directory, manifest, "client.safetensors", _shapes(manifest)[1])
    fold_in = FoldIn(client["fold_in"], client["norm_terms"], manifest.collaborative, manifest.taste_centre)
    return ClientArtifact(fold_in, manifest, digest, ids, titles)


def verify_manifest(
    directory: Path, authority_pem: bytes, *, require_signers: Sequence[Identity] | None = None
) -> tuple[Manifest, bytes]:
    """Steps (1) and (2): the manifest is well formed, and all who must have signed it have. Returns it and its digest.

    Arguments and errors as for `load_model`.
    """
    # (1) the manifest, canonical and within bounds
    raw = _read(directory, "manifest.json", MAX_MANIFEST_BYTES)
    manifest = _parsed(TypeAdapter(Manifest), raw, "manifest.json")
    if canonical(manifest.model_dump(mode="json", by_alias=True)).encode("ascii") != raw:
        raise ArtifactError("got a manifest.json that is not canonical, expected one made by Veil")
    # (2) a signature of everyone that it names, or that the caller requires
    listed = _parsed(
        TypeAdapter(Annotated[list[Signature], Field(max_length=64)]),
        _read(directory, "signatures.json", MAX_SIGNATURES_BYTES),
        "signatures.json",
    )
    by_party = {signature.party: signature for signature in listed}
    if len(by_party) != len(listed):
        raise ArtifactError("got two signatures of one party, expected one each")
    wanted = {*manifest.signers(), *(require_signers or ())}
    for identity in sorted(wanted):
        signature = by_party.get(identity.name)
        if signature is None or identity.role != Role.PARTY or identity.consortium != manifest.consortium:
            raise ArtifactError(f"got no signature of {identity}, expected one", hint="the model is not fully signed")
        verify_one(signature, raw, identity, authority_pem, manifest.created_s)
    if {identity.name for identity in wanted} != set(by_party):
        raise ArtifactError("got a signature of a party that the manifest does not name, expected none")
    return manifest, manifest_digest(raw)


def _shapes(manifest: Manifest) -> tuple[dict[str, tuple[int, int]], dict[str, tuple[int, int]]]:
    whole = (manifest.items, manifest.dimensions)
    return {"item_factors": whole}, {"fold_in": whole, "norm_terms": (manifest.items, 2)}


def _read(directory: Path, name: str, limit_bytes: int) -> bytes:
    try:
        return read_bounded(Path(directory) / name, limit_bytes)
    except InputError as error:
        raise ArtifactError(error.message, hint="expected a model directory written by Veil") from None


def _listed(directory: Path, manifest: Manifest, name: FileName, largest_bytes: int) -> bytes:
    """Step (3): one file, when it has the size and hash that the manifest lists, and no more than it can need."""
    entry = manifest.files[name]
    if entry.size_bytes > largest_bytes:
        raise ArtifactError(f"got {name} of {entry.size_bytes} bytes, expected at most {largest_bytes}")
    data = _read(directory, name, entry.size_bytes)
    if len(data) != entry.size_bytes or hashlib.sha256(data).hexdigest() != entry.sha256:
        raise ArtifactError(f"got {name} altered, expected the file that the manifest lists by SHA-256")
    return data


def _tensors(
    directory: Path, manifest: Manifest, name: FileName, shapes: Mapping[str, tuple[int, int]]
) -> dict[str, npt.NDArray[np.float32]]:
    largest = sum(rows * columns * 4 for rows, columns in shapes.values()) + _HEADER_BYTES
    data = _listed(directory, manifest, name, largest)
    try:
        tensors = parse_safetensors(data)
    except (SafetensorError, ValueError, KeyError):
        raise ArtifactError(f"got {name} that does not parse, expected safetensors") from None
    if {key: (array.dtype, array.shape) for key, array in tensors.items()} != {
        key: (np.dtype(np.float32), shape) for key, shape in shapes.items()
    }:
        raise ArtifactError(f"got other tensors in {name}, expected float32 {dict(shapes)}")
    return tensors


def _items(directory: Path, manifest: Manifest) -> tuple[tuple[str, ...], tuple[str, ...]]:
    data = _listed(directory, manifest, "items.jsonl", manifest.items * _ITEM_BYTES)
    lines = data.decode("ascii", "replace").split("\n")
    if lines[-1] or len(lines) != manifest.items + 1:
        raise ArtifactError(f"got {len(lines) - 1} lines in items.jsonl, expected {manifest.items}")
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


def _check_job(directory: Path, manifest: Manifest) -> None:
    text = _listed(directory, manifest, "job.json", jobs.MAX_TEXT_BYTES)
    try:
        spec = jobs.parse(text.decode("ascii"))
    except (ConfigError, UnicodeDecodeError) as error:
        raise ArtifactError(f"job.json: {error}") from None
    claims = {
        "job_digest": f"sha256:{jobs.digest(spec.text()).hex()}",
        "training_text_digest": f"sha256:{hashlib.sha256(text).hexdigest()}",
        "catalogue_digest": spec.catalogue.digest,
        "name": spec.name,
        "consortium": spec.consortium,
        "parties": list(spec.parties),
        "items": spec.catalogue.items,
        "epsilon": spec.privacy.epsilon,
        "delta": spec.privacy.delta,
        "noise_source": spec.privacy.noise.source,
        "releases": list(spec.releases),
        "versions": dict(spec.versions),
    }
    wrong = [name for name, value in claims.items() if getattr(manifest, name) != value]
    if wrong:
        raise ArtifactError(f"got a manifest whose {', '.join(wrong)} differ from its job text, expected the same")


def _parsed(adapter: TypeAdapter[_Parsed], data: bytes, name: str) -> _Parsed:
    try:
        return adapter.validate_json(data)
    except ValidationError as error:
        raise ArtifactError(f"{name}: {describe(error)}") from None
