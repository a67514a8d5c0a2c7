"""What one participant holds: its private key, its certificate and its consortium's authority.

Guarantee: `Credentials` that exist fit together: the key belongs to the certificate, the authority signed the
certificate, and both were in date when they were loaded. The key is never printed, compared or pickled. Signatures are
ECDSA on P-256 with SHA-256 (FIPS 186-5), over the domain and the message together, so that a signature given for one
purpose verifies for no other.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import NoReturn, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from veil.errors import IdentityError, InputError, SignatureError, StateError
from veil.identity import certificates
from veil.identity.names import Identity

KEY_FILE = "key.pem"
CERTIFICATE_FILE = "cert.pem"
AUTHORITY_FILE = "authority.pem"
REQUEST_FILE = "request.pem"
# A renewal waits beside the old files under these names until both new ones are durable.
RENEWAL_KEY_FILE = "renewal-key.pem"
RENEWAL_CERTIFICATE_FILE = "renewal-cert.pem"

_SIGNATURE_DOMAIN = b"veil/signature/v1\x00"
_LONGEST_DOMAIN_BYTES = 64
# two integers of 33 bytes and their DER headers: 72
_LONGEST_SIGNATURE_BYTES = 80


@dataclass(frozen=True, eq=False)
class Credentials:
    """A participant's key, certificate and authority; made by `load`, which checks them against each other."""

    identity: Identity
    certificate_pem: bytes = field(repr=False)
    authority_pem: bytes = field(repr=False)
    _key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Reads key.pem, cert.pem and authority.pem in `directory`.

        Raises `IdentityError` when one is absent or malformed, when key.pem may be read by anyone but its owner, when
        they do not fit together, or when a certificate is out of date.
        """
        authority_pem = certificates.read_pem(directory / AUTHORITY_FILE)
        # A renewal may replace both files between the two reads; the second round then meets a pair that fits.
        for _ in range(2):
            key = load_key(directory / KEY_FILE)
            certificate_pem = _certificate_of(key, directory)
            if certificate_pem is not None:
                break
        else:
            raise IdentityError(
                f"got a key.pem in {directory} that does not belong to the cert.pem beside it",
                hint="restore the pair, or make a new one with `veil certs issue` in another directory",
            )
        _, identity = certificates.verify(certificate_pem, authority_pem)
        return cls(identity, certificate_pem, authority_pem, key)

    def sign(self, domain: bytes, message: bytes) -> bytes:
        """A DER-encoded ECDSA signature (at most 72 bytes) of `message` for the purpose `domain` (1 to 64 bytes)."""
        return self._key.sign(_framed(domain, message), ec.ECDSA(hashes.SHA256()))

    def key_pem(self, password: bytes | None = None) -> bytes:
        """The private key in PKCS #8, for a TLS library; encrypted when `password` is given. Never log or store it."""
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if password is not None:
            encryption = serialization.BestAvailableEncryption(password)
        return self._key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)

    def __reduce__(self) -> NoReturn:
        raise StateError("got a request to serialise credentials, expected never: load them where they are needed")


def verify_signature(
    *,
    certificate_pem: bytes,
    authority_pem: bytes,
    expect: Identity,
    domain: bytes,
    message: bytes,
    signature: bytes,
    at: datetime | None = None,
) -> None:
    """Returns when `expect` signed `message` for `domain`, and its certificate was valid at the moment `at`.

    `at` is now unless given: for what outlives certificates, such as a published model, give the time at which it says
    it was signed. That time is the signers' word, no time stamp of a third party. Raises `IdentityError` when the
    certificate does not prove `expect`, `SignatureError` when the signature does not verify.
    """
    certificate, identity = certificates.verify(certificate_pem, authority_pem, at=at, what="the signer's certificate")
    if identity != expect:
        raise IdentityError(f"got a certificate of {identity}, expected the signer {expect}")
    key = certificates.check_key(certificate.public_key(), "the signer's certificate")
    framed = _framed(domain, message)
    if not 0 < len(signature) <= _LONGEST_SIGNATURE_BYTES:
        raise SignatureError(f"got a signature of {len(signature)} bytes from {expect}, expected 1 to 80")
    try:
        key.verify(signature, framed, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise SignatureError(
            f"got a signature that {expect} did not make over this content",
            hint="the content, the purpose or the signer differs",
        ) from None


def load_key(path: Path, passphrase: bytes | None = None) -> ec.EllipticCurvePrivateKey:
    """The EC P-256 private key at `path`; refuses a file that anyone but its owner may read or write."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise IdentityError(
            f"got no readable key at {path}: {error.strerror}", hint="make one with `veil certs issue`"
        ) from None
    # the opened file is the one whose mode is judged, whatever the path comes to mean meanwhile
    with os.fdopen(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode & 0o777
        if mode & 0o077:
            raise IdentityError(f"got mode {mode:04o} on {path}, expected 0600", hint=f"run `chmod 600 {path}`")
        try:
            pem = file.read(certificates.PEM_LIMIT_BYTES + 1)
        except OSError as error:
            raise IdentityError(f"got no readable key at {path}: {error.strerror}") from None
    if len(pem) > certificates.PEM_LIMIT_BYTES:
        raise IdentityError(f"got more than {certificates.PEM_LIMIT_BYTES} bytes in {path}, expected a PEM key")
    try:
        key = serialization.load_pem_private_key(pem, passphrase)
    except TypeError:
        wanted = "none" if passphrase else "one"
        raise IdentityError(f"got the wrong use of a passphrase for {path}, expected {wanted}") from None
    except (ValueError, UnsupportedAlgorithm):
        what = "another passphrase, or a malformed key," if passphrase else "a malformed key"
        raise IdentityError(f"got {what} at {path}, expected a PKCS #8 PEM key") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise IdentityError(f"got another kind of key in {path}, expected an EC P-256 key")
    certificates.check_key(key.public_key(), str(path))
    return key


def belongs(key: ec.EllipticCurvePrivateKey, certificate_pem: bytes, what: str) -> bool:
    """Whether the certificate is for this key."""
    return certificates.parse_certificate(certificate_pem, what).public_key() == key.public_key()


def _certificate_of(key: ec.EllipticCurvePrivateKey, directory: Path) -> bytes | None:
    """The certificate that fits the key: cert.pem, or, between the two renames of a renewal, the one that waits."""
    certificate_pem = certificates.read_pem(directory / CERTIFICATE_FILE)
    if belongs(key, certificate_pem, CERTIFICATE_FILE):
        return certificate_pem
    waiting = directory / RENEWAL_CERTIFICATE_FILE
    if waiting.exists():
        # the second rename may happen between the test and the read; the caller then reads again
        try:
            renewed_pem = certificates.read_pem(waiting)
        except IdentityError:
            return None
        if belongs(key, renewed_pem, RENEWAL_CERTIFICATE_FILE):
            return renewed_pem
    return None


def _framed(domain: bytes, message: bytes) -> bytes:
    """What is signed: version, length of the domain, domain, message. The length makes the split unambiguous."""
    if not 1 <= len(domain) <= _LONGEST_DOMAIN_BYTES:
        raise InputError(f"got a signature domain of {len(domain)} bytes, expected 1 to {_LONGEST_DOMAIN_BYTES}")
    return _SIGNATURE_DOMAIN + len(domain).to_bytes(1, "big") + domain + message
