"""A party's consent to a job: its signature over the digest that it computed itself.

Guarantee: an approval that verifies was made by the named party of the named consortium, for exactly this digest and
for no other purpose (the domain below separates it from every other signature that Veil makes).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from veil.errors import SignatureError
from veil.identity.credentials import Credentials, verify_signature
from veil.identity.names import Identity, Role

APPROVAL_DOMAIN = b"veil/job-approval/v1\x00"
DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Approval:
    """What a party hands out: `signature` is DER-encoded ECDSA P-256, `certificate_pem` the signer's certificate."""

    party: str
    signature: bytes = field(repr=False)
    certificate_pem: bytes = field(repr=False)


def approve(credentials: Credentials, digest: bytes) -> Approval:
    """Signs a job digest (32 bytes, from `veil.jobs.spec.digest`) in the name of the credentials' own identity."""
    _check_digest(digest)
    return Approval(
        party=credentials.identity.name,
        signature=credentials.sign(APPROVAL_DOMAIN, digest),
        certificate_pem=credentials.certificate_pem,
    )


def verify(approval: Approval, *, consortium: str, party: str, digest: bytes, authority_pem: bytes) -> None:
    """Returns when `party` of `consortium` signed `digest`; raises `SignatureError` or `IdentityError` otherwise."""
    _check_digest(digest)
    if approval.party != party:
        raise SignatureError(f"got an approval of {approval.party!r}, expected one of {party!r}")
    verify_signature(
        certificate_pem=approval.certificate_pem,
        authority_pem=authority_pem,
        expect=Identity(consortium, Role.PARTY, party),
        domain=APPROVAL_DOMAIN,
        message=digest,
        signature=approval.signature,
    )


def _check_digest(digest: bytes) -> None:
    if len(digest) != DIGEST_BYTES:
        raise SignatureError(f"got a job digest of {len(digest)} bytes, expected {DIGEST_BYTES}")
