"""The end of a job: every party builds the same manifest, signs it, and writes the same directory.

Steps are numbered as in docs/protocol.md, "Publishing". The worker builds, the daemon signs: `check_manifest` is what
the daemon insists on before it lends its key.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from veil.errors import ArtifactError, ProtocolMismatch
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.jobs.spec import JobSpec, canonical, describe
from veil.recsys.manifest import Signature, check_created, sign_manifest, verify_one
from veil.recsys.signed import parse_manifest, save_directory
from veil.trainers.seam import Publication

if TYPE_CHECKING:
    # Not at run time: the daemon uses `check_manifest` and stays free of CrypTen.
    from veil.mpc.session import Session

_LEAD = 0


def publish(
    spec: JobSpec,
    publication: Publication,
    session: Session,
    *,
    rank: int,
    sign: Callable[[str], dict[str, Any]],
    directory: Path,
    authority_pem: bytes,
) -> bytes:
    """Builds, signs, exchanges signatures, verifies them all, writes `directory`; returns the manifest's digest.

    `sign` asks the daemon for its signature of a manifest. Raises `ProtocolMismatch` that names whose signature does
    not fit, in which case nothing is written.
    """
    proposed = str(int(time.time())).encode() if rank == _LEAD else None
    created_s = _created(session.broadcast_public(proposed, src=_LEAD), spec)  # (1)
    files = publication.files(spec)
    manifest = publication.manifest(spec, files, created_s=created_s)
    own = Signature.model_validate(sign(manifest.decode("ascii")))  # (2)
    gathered = session.all_gather_bytes(canonical(own.model_dump(mode="json")).encode("ascii"))
    signatures = [
        _verified(data, party, spec, manifest, authority_pem, created_s)
        for party, data in zip(spec.parties, gathered, strict=True)
    ]
    return save_directory(directory, files, manifest, signatures)


def check_manifest(manifest: str, job_digest: bytes, *, now_s: float) -> bytes:
    """The manifest's bytes, when it is that of this job and dated now; raises `ArtifactError` otherwise."""
    raw = manifest.encode("ascii", "replace")
    parsed = parse_manifest(raw)
    expected = f"sha256:{job_digest.hex()}"
    if parsed.job_digest != expected:
        raise ArtifactError(f"got a manifest of job {parsed.job_digest[:23]}…, expected {expected[:23]}…")
    check_created(parsed.created_s, now_s)
    return raw


def sign(manifest: str, spec: JobSpec, job_digest: bytes, credentials: Credentials) -> dict[str, Any]:
    """Step (2): the daemon's signature of a manifest, as JSON types.

    Raises `ArtifactError` for one of another job, and for any where the job publishes nothing.
    """
    if spec.privacy_ is None:
        raise ArtifactError(f"got a manifest of a job of trainer {spec.trainer.kind}, expected none: it has no model")
    checked = check_manifest(manifest, job_digest, now_s=time.time())
    signature = sign_manifest(checked, credentials.identity.name, credentials.certificate_pem, credentials.sign)
    return signature.model_dump(mode="json")


def _created(data: object, spec: JobSpec) -> int:
    if not isinstance(data, bytes) or not data.isdigit() or len(data) > 12:
        raise ProtocolMismatch("got no time from the lead, expected Unix seconds", culprits=(spec.parties[_LEAD],))
    created_s = int(data)
    check_created(created_s, time.time())
    return created_s


def _verified(
    data: bytes, party: str, spec: JobSpec, manifest: bytes, authority_pem: bytes, created_s: int
) -> Signature:
    try:
        signature = Signature.model_validate_json(data)
        expect = Identity(spec.consortium, Role.PARTY, party)
        verify_one(signature, manifest, expect, authority_pem, created_s)
    except (ValidationError, ArtifactError) as error:
        reason = describe(error) if isinstance(error, ValidationError) else error.message
        raise ProtocolMismatch(
            f"the signature of {party} does not fit the manifest that this party built: {reason}", culprits=(party,)
        ) from None
    return signature
