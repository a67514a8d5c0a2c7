"""A published directory: files under one manifest, and one signature for each party.

Guarantee: `verify_directory` returns only when every required party has signed exactly this manifest; `listed` returns
a file only when it has the size and SHA-256 that the manifest lists. Nothing is parsed before its hash is checked, and
no file name comes from outside.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from veil.errors import ArtifactError, ConfigError, InputError
from veil.files import atomic_directory, read_bounded
from veil.identity.names import Identity, Role
from veil.jobs import spec as jobs
from veil.jobs.spec import JobSpec, canonical, describe
from veil.privacy.accountant import epsilon, to_micro
from veil.recsys.manifest import (
    OUTCOME_SCHEMA,
    SCHEMA,
    FileEntry,
    JobManifest,
    Manifest,
    OutcomeManifest,
    Signature,
    manifest_digest,
    verify_one,
)

MAX_MANIFEST_BYTES: Final = 1024 * 1024
MAX_SIGNATURES_BYTES: Final = 512 * 1024

_Parsed = TypeVar("_Parsed")


def job_facts(spec: JobSpec, files: Mapping[str, bytes], *, created_s: int) -> dict[str, Any]:
    """The fields that every manifest has, for `JobManifest`'s subclasses; `files` includes job.json."""
    return {
        "name": spec.name,
        "consortium": spec.consortium,
        "parties": list(spec.parties),
        "job_digest": f"sha256:{jobs.digest(spec.text()).hex()}",
        "training_text_digest": f"sha256:{hashlib.sha256(files['job.json']).hexdigest()}",
        "catalogue_digest": None if spec.catalogue is None else spec.catalogue.digest,
        "created_s": created_s,
        "epsilon": spec.privacy.epsilon,
        "epsilon_micro": to_micro(epsilon(spec.releases, spec.privacy.delta)),
        "delta": spec.privacy.delta,
        "unit": spec.privacy.unit,
        "neighbouring": spec.privacy.neighbouring,
        "noise_source": spec.privacy.noise.source,
        "releases": list(spec.releases),
        "versions": dict(spec.versions),
        "files": {
            name: FileEntry(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
            for name, data in files.items()
        },
    }


def manifest_bytes(manifest: JobManifest) -> bytes:
    """Canonical JSON of a manifest."""
    return canonical(manifest.model_dump(mode="json", by_alias=True)).encode("ascii")


def parse_manifest(raw: bytes) -> Manifest | OutcomeManifest:
    """The manifest of either schema; raises `ArtifactError` when it is malformed or not canonical."""
    try:
        schema = json.loads(raw).get("schema")
    except (ValueError, RecursionError, AttributeError):
        raise ArtifactError("got a manifest that is no JSON object, expected one made by Veil") from None
    kinds: dict[str, TypeAdapter[Any]] = {SCHEMA: TypeAdapter(Manifest), OUTCOME_SCHEMA: TypeAdapter(OutcomeManifest)}
    if not isinstance(schema, str) or schema not in kinds:
        raise ArtifactError(f"got manifest schema {str(schema)[:40]!r}, expected one of {', '.join(kinds)}")
    manifest: Manifest | OutcomeManifest = parsed(kinds[schema], raw, "manifest.json")
    if manifest_bytes(manifest) != raw:
        raise ArtifactError("got a manifest.json that is not canonical, expected one made by Veil")
    return manifest


def verify_directory(
    directory: Path, authority_pem: bytes, *, require_signers: Sequence[Identity] | None = None
) -> tuple[Manifest | OutcomeManifest, bytes]:
    """Steps (1) and (2): the manifest is well formed, and all who must have signed it have. Returns it and its digest.

    authority_pem: certificate of the consortium's authority, from a source that the caller trusts. require_signers: who
    must have signed beside the parties that the manifest names; give them where one's consortium is known, since two
    colluding parties could publish a model of their own. Raises `ArtifactError`.
    """
    # (1) the manifest, canonical and within bounds
    raw = read(directory, "manifest.json", MAX_MANIFEST_BYTES)
    manifest = parse_manifest(raw)
    # (2) a signature of everyone that it names, or that the caller requires
    present = parsed(
        TypeAdapter(Annotated[list[Signature], Field(max_length=64)]),
        read(directory, "signatures.json", MAX_SIGNATURES_BYTES),
        "signatures.json",
    )
    by_party = {signature.party: signature for signature in present}
    if len(by_party) != len(present):
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


def save_directory(
    directory: Path, files: Mapping[str, bytes], manifest: bytes, signatures: Iterable[Signature]
) -> bytes:
    """Writes the directory, whole or not at all, and returns the manifest's digest.

    Does not judge signatures: a published directory is checked where it is read. Raises `StateError` when it exists.
    """
    ordered = sorted(signatures, key=lambda signature: signature.party)
    with atomic_directory(Path(directory)) as temporary:
        for name, data in files.items():
            (temporary / name).write_bytes(data)
        (temporary / "manifest.json").write_bytes(manifest)
        text = canonical([signature.model_dump(mode="json") for signature in ordered])
        (temporary / "signatures.json").write_text(text, encoding="ascii")
    return manifest_digest(manifest)


def read(directory: Path, name: str, limit_bytes: int) -> bytes:
    """A file of a published directory, at most `limit_bytes` long; raises `ArtifactError`."""
    path = Path(directory) / name
    if path.exists() and not path.is_file():
        # To open a pipe would wait for ever.
        raise ArtifactError(f"got {name} that is no file, expected a model directory written by Veil")
    try:
        return read_bounded(path, limit_bytes)
    except InputError as error:
        raise ArtifactError(error.message, hint="expected a model directory written by Veil") from None


def listed(directory: Path, manifest: JobManifest, name: str, largest_bytes: int) -> bytes:
    """Step (3): one file, when it has the size and hash that the manifest lists, and no more than it can need."""
    entry = manifest.entry(name)
    if entry.size_bytes > largest_bytes:
        raise ArtifactError(f"got {name} of {entry.size_bytes} bytes, expected at most {largest_bytes}")
    data = read(directory, name, entry.size_bytes)
    if len(data) != entry.size_bytes or hashlib.sha256(data).hexdigest() != entry.sha256:
        raise ArtifactError(f"got {name} altered, expected the file that the manifest lists by SHA-256")
    return data


def check_job(directory: Path, manifest: JobManifest) -> JobSpec:
    """The job text in the directory, when the manifest says of the job what the text says."""
    text = listed(directory, manifest, "job.json", jobs.MAX_TEXT_BYTES)
    try:
        spec = jobs.parse(text.decode("ascii"))
    except (ConfigError, UnicodeDecodeError) as error:
        raise ArtifactError(f"job.json: {error}") from None
    if spec.privacy_ is None:
        raise ArtifactError(f"job.json: got a job of trainer {spec.trainer.kind}, expected one that publishes a model")
    claims = {
        "job_digest": f"sha256:{jobs.digest(spec.text()).hex()}",
        "training_text_digest": f"sha256:{hashlib.sha256(text).hexdigest()}",
        "catalogue_digest": None if spec.catalogue is None else spec.catalogue.digest,
        "name": spec.name,
        "consortium": spec.consortium,
        "parties": list(spec.parties),
        "epsilon": spec.privacy.epsilon,
        "delta": spec.privacy.delta,
        "noise_source": spec.privacy.noise.source,
        "releases": list(spec.releases),
        "versions": dict(spec.versions),
    }
    wrong = [name for name, value in claims.items() if getattr(manifest, name) != value]
    if wrong:
        raise ArtifactError(f"got a manifest whose {', '.join(wrong)} differ from its job text, expected the same")
    return spec


def parsed(adapter: TypeAdapter[_Parsed], data: bytes, name: str) -> _Parsed:
    """JSON of a file, checked; raises `ArtifactError` that names the wrong fields."""
    try:
        return adapter.validate_json(data)
    except ValidationError as error:
        raise ArtifactError(f"{name}: {describe(error)}") from None
