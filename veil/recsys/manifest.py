"""The manifest of a published model, and what parties sign of it.

Guarantee: a manifest is within bounds and names no file but those that its kind has; `verify_one` returns only when
the expected party signed exactly these bytes with a certificate of the given authority.

A signature is made over the SHA-256 of the manifest under the domain `SIGNATURE_DOMAIN`. Certificates are judged at the
manifest's `created_s`, as a model outlives them; that time is the signers' word, which every party checks against its
own clock before it signs (`check_created`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from veil.errors import ArtifactError, IdentityError
from veil.identity.credentials import verify_signature
from veil.identity.names import Identity, Role
from veil.jobs.spec import MOST_RELEASES, Name, Release, Sha256
from veil.recsys.model import MAX_DIMENSIONS

SCHEMA: Final = "veil.model/1"
OUTCOME_SCHEMA: Final = "veil.outcome/1"
SIGNATURE_DOMAIN: Final = b"veil/model-manifest/v1"
MAX_CLOCK_DIFFERENCE_S: Final = 3600
_MAX_FILE_BYTES: Final = 8 * 1024**3

FileName = Literal["job.json", "items.jsonl", "item_factors.safetensors", "client.safetensors"]
OutcomeFileName = Literal[
    "job.json",
    "weights.safetensors",
    "module.json",
    "answers.json",
    "columns.json",
    "client.safetensors",
    "items.jsonl",
    "item_factors.safetensors",
    "side.safetensors",
    "side.json",
]
Sign = Callable[[bytes, bytes], bytes]
"""(domain, message) to signature: `veil.identity.credentials.Credentials.sign`."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=True)


class FileEntry(_Frozen):
    """One file's SHA-256 and size."""

    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    size_bytes: int = Field(ge=0, le=_MAX_FILE_BYTES)


class JobManifest(_Frozen):
    """What every published directory says of the job that made it and of what it cost.

    `epsilon_micro` is what the releases cost together, in millionths, rounded up; `epsilon` is the budget that the job
    was given.
    """

    name: Name
    consortium: Name
    parties: list[Name] = Field(min_length=2, max_length=16)
    job_digest: Sha256
    training_text_digest: Sha256
    catalogue_digest: Sha256 | None
    created_s: int = Field(ge=0, lt=2**40)
    epsilon: float = Field(gt=0)
    epsilon_micro: int = Field(gt=0)
    delta: float = Field(gt=0, lt=0.01)
    unit: Literal["user"]
    neighbouring: Literal["add-or-remove-one-user"]
    noise_source: Literal["dealer", "parties"]
    releases: list[Release] = Field(min_length=1, max_length=MOST_RELEASES)
    versions: dict[str, str]

    @field_validator("parties")
    @classmethod
    def _distinct_parties(cls, parties: list[str]) -> list[str]:
        # A party that stands twice would make one signature do for two.
        if len(set(parties)) != len(parties):
            raise ValueError("got a party twice, expected each once")
        return parties

    def signers(self) -> list[Identity]:
        """The identities of the parties that the manifest names."""
        return [Identity(self.consortium, Role.PARTY, party) for party in self.parties]

    def entry(self, name: str) -> FileEntry:
        """Size and digest of a listed file; raises `ArtifactError` when it is not listed."""
        found: FileEntry | None = dict(getattr(self, "files", {})).get(name)
        if found is None:
            raise ArtifactError(f"got a manifest without {name}, expected it listed")
        return found


class Manifest(JobManifest):
    """A recommender whose scores are linear: what `he_inference` serves."""

    schema_: Literal["veil.model/1"] = Field(default=SCHEMA, alias="schema")
    catalogue_digest: Sha256
    items: int = Field(gt=0, le=10_000_000)
    dimensions: int = Field(gt=0, le=MAX_DIMENSIONS)
    collaborative: int = Field(ge=0, le=MAX_DIMENSIONS)
    taste_centre: float
    score_scale: float = Field(gt=0)
    files: dict[FileName, FileEntry] = Field(min_length=4, max_length=4)


class OutcomeManifest(JobManifest):
    """What other jobs leave: weights of a module or of a model on split columns, answers, a recommender on both."""

    schema_: Literal["veil.outcome/1"] = Field(default=OUTCOME_SCHEMA, alias="schema")
    kind: Literal["module", "answers", "columns", "side"]
    files: dict[OutcomeFileName, FileEntry] = Field(min_length=2, max_length=6)


class Signature(_Frozen):
    """One party's word for a manifest. `signature` is base64 of the DER encoding."""

    party: Name
    certificate_pem: Annotated[str, StringConstraints(max_length=16 * 1024)]
    signature: Annotated[str, StringConstraints(max_length=256)]


def manifest_digest(manifest: bytes) -> bytes:
    """SHA-256 of the manifest's bytes, 32 bytes: what parties sign and what names a model."""
    return hashlib.sha256(manifest).digest()


def check_created(created_s: int, now_s: float) -> None:
    """Raises `ArtifactError` when the proposed time of a manifest is more than an hour off a party's own clock."""
    if abs(created_s - now_s) > MAX_CLOCK_DIFFERENCE_S:
        raise ArtifactError(
            f"got a manifest dated {created_s - now_s:+.0f} s from this clock, expected at most "
            f"{MAX_CLOCK_DIFFERENCE_S} s either way",
            hint="set the clocks",
        )


def sign_manifest(manifest: bytes, party: str, certificate_pem: bytes, sign: Sign) -> Signature:
    """A party's signature. It must have built `manifest` itself, or compared it with what it built."""
    made = sign(SIGNATURE_DOMAIN, manifest_digest(manifest))
    return Signature(
        party=party,
        certificate_pem=certificate_pem.decode("ascii", "strict"),
        signature=base64.b64encode(made).decode("ascii"),
    )


def verify_one(signature: Signature, manifest: bytes, expect: Identity, authority_pem: bytes, created_s: int) -> None:
    """Returns when `signature` is that of `expect` over the manifest's bytes; raises `ArtifactError` otherwise."""
    try:
        verify_signature(
            certificate_pem=signature.certificate_pem.encode("ascii"),
            authority_pem=authority_pem,
            expect=expect,
            domain=SIGNATURE_DOMAIN,
            message=manifest_digest(manifest),
            signature=base64.b64decode(signature.signature, validate=True),
            at=datetime.fromtimestamp(created_s, tz=UTC),
        )
    except (UnicodeEncodeError, binascii.Error, OverflowError, ValueError):
        raise ArtifactError(f"got a malformed signature of {expect}, expected PEM and base64") from None
    except IdentityError as error:
        raise ArtifactError(f"signature of {expect}: {error}") from error
