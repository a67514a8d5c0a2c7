"""A participant's own directory: its first request, the certificate that answers it, and renewals.

Guarantee: the private key is made here and stays here. At every moment, also after a crash between any two steps,
`Credentials.load` finds a key and a certificate that fit: a renewal is written in full beside the old pair, synced,
and then takes its place by two renames, between which the loader knows where the certificate lies.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from veil.errors import IdentityError, StateError
from veil.files import sync_directory, write_atomic
from veil.identity import certificates
from veil.identity.authority import alternative_names, check_request, key_pem
from veil.identity.credentials import (
    AUTHORITY_FILE,
    CERTIFICATE_FILE,
    KEY_FILE,
    RENEWAL_CERTIFICATE_FILE,
    RENEWAL_KEY_FILE,
    REQUEST_FILE,
    belongs,
    load_key,
)
from veil.identity.names import Identity


def make_request(directory: Path, identity: Identity) -> Path:
    """Makes key.pem (0600) and request.pem in `directory`; returns the path of the request, which is public.

    Asking again before the certificate has come gives a request for the same key. Raises `StateError` when the
    directory has a certificate already or waits for another identity's.
    """
    if (directory / CERTIFICATE_FILE).exists():
        raise StateError(f"got {directory}, which has a certificate already", hint="use `veil certs renew`")
    request_path = directory / REQUEST_FILE
    if request_path.exists():
        extensions = certificates.parse_request(certificates.read_pem(request_path)).extensions
        waiting = certificates.identity_from_names(extensions, str(request_path))
        if waiting != identity:
            raise StateError(f"got {directory}, which waits for the certificate of {waiting}", hint="use another")
    key_path = directory / KEY_FILE
    if key_path.exists():
        key = load_key(key_path)
    else:
        key = ec.generate_private_key(ec.SECP256R1())
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomic(key_path, key_pem(key), mode=0o600)
    write_atomic(request_path, _request_pem(identity, key))
    return request_path


def renew(directory: Path, *, new_key: bool = True) -> Path:
    """Makes a request for the identity that `directory` holds, also when its certificate has expired.

    With `new_key` the next key waits as renewal-key.pem; the old pair stays in use until `install` has the certificate.
    """
    held = _held_identity(directory)
    if new_key:
        waiting = directory / RENEWAL_KEY_FILE
        if waiting.exists():
            key = load_key(waiting)
        else:
            key = ec.generate_private_key(ec.SECP256R1())
            write_atomic(waiting, key_pem(key), mode=0o600)
    else:
        key = load_key(directory / KEY_FILE)
    request_path = directory / REQUEST_FILE
    write_atomic(request_path, _request_pem(held, key))
    return request_path


def install(directory: Path, certificate_pem: bytes, authority_pem: bytes | None = None) -> Identity:
    """Puts the certificate that answers request.pem in its place; returns whom it names.

    `authority_pem` comes with the first certificate. Raises `IdentityError` when the certificate does not verify, is
    for another key, or names another identity than the one that was asked for or is held; nothing has changed then.
    """
    authority_pem = _settled_authority(directory, authority_pem)
    _, identity = certificates.verify(certificate_pem, authority_pem, what="the new certificate")
    asked = directory / REQUEST_FILE
    if asked.exists():
        check_request(certificates.read_pem(asked), identity)
    if (directory / CERTIFICATE_FILE).exists():
        held = _held_identity(directory)
        if identity != held:
            raise IdentityError(f"got a certificate of {identity}, expected one of {held}, which this directory holds")
        _swap(directory, certificate_pem)
    else:
        if not belongs(load_key(directory / KEY_FILE), certificate_pem, "the new certificate"):
            raise IdentityError("got a certificate for another key", hint="sign the request.pem of this directory")
        write_atomic(directory / AUTHORITY_FILE, authority_pem)
        write_atomic(directory / CERTIFICATE_FILE, certificate_pem)
    asked.unlink(missing_ok=True)
    return identity


def _swap(directory: Path, certificate_pem: bytes) -> None:
    """Steps 1 to 3 of a renewal; after each of them `Credentials.load` finds a pair that fits."""
    waiting_key = directory / RENEWAL_KEY_FILE
    candidates = [path for path in (waiting_key, directory / KEY_FILE) if path.exists()]
    key_path = next(
        (path for path in candidates if belongs(load_key(path), certificate_pem, "the new certificate")), None
    )
    if key_path is None:
        raise IdentityError("got a certificate for another key", hint="sign the request.pem of this directory")
    # 1. both new files are durable beside the old ones
    write_atomic(directory / RENEWAL_CERTIFICATE_FILE, certificate_pem)
    # 2. the key: from here the old certificate fits no longer and the loader takes the one that waits
    if key_path == waiting_key:
        _rename(waiting_key, directory / KEY_FILE)
    # 3. the certificate
    _rename(directory / RENEWAL_CERTIFICATE_FILE, directory / CERTIFICATE_FILE)


def _rename(source: Path, target: Path) -> None:
    os.replace(source, target)
    sync_directory(target.parent)


@dataclass(frozen=True, slots=True)
class Description:
    """What a certificate or a request says; never anything of a key but whether it is there."""

    path: Path
    kind: str
    subject: str
    fingerprint: str
    valid_from: datetime | None = None
    valid_until: datetime | None = None


def describe(path: Path) -> list[Description]:
    """Every certificate and request at `path`, a file or a directory; raises `IdentityError` when there is none.

    A description is what a file says; only `Credentials.load` says whether it proves anything.
    """
    if path.is_dir():
        names = (AUTHORITY_FILE, CERTIFICATE_FILE, RENEWAL_CERTIFICATE_FILE, REQUEST_FILE)
        found = [_describe_file(path / name) for name in names if (path / name).exists()]
        if not found:
            raise IdentityError(f"got no certificate and no request in {path}", hint="expected a directory of one site")
        return found
    return [_describe_file(path)]


def _describe_file(path: Path) -> Description:
    pem = certificates.read_pem(path)
    if b"CERTIFICATE REQUEST" in pem:
        request = certificates.parse_request(pem)
        public_bytes = request.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        digest = hashes.Hash(hashes.SHA256())
        digest.update(public_bytes)
        subject = certificates.identity_from_names(request.extensions, str(path)).uri
        return Description(path, "request", subject, f"key {digest.finalize().hex(':')}")
    certificate = certificates.parse_certificate(pem, str(path))
    if certificate.subject == certificate.issuer:
        subject = f"authority of consortium {certificates.parse_authority(pem)[1]}"
        kind = "authority"
    else:
        subject = certificates.certificate_identity(certificate, str(path)).uri
        kind = "certificate"
    start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return Description(path, kind, subject, certificates.fingerprint(certificate), start, end)


def _request_pem(identity: Identity, key: ec.EllipticCurvePrivateKey) -> bytes:
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(alternative_names(identity), critical=False)
        .sign(key, hashes.SHA256())
    )
    return request.public_bytes(serialization.Encoding.PEM)


def _held_identity(directory: Path) -> Identity:
    """The identity of cert.pem, whatever its dates."""
    pem = certificates.read_pem(directory / CERTIFICATE_FILE)
    certificate = certificates.parse_certificate(pem, CERTIFICATE_FILE)
    return certificates.certificate_identity(certificate, CERTIFICATE_FILE)


def _settled_authority(directory: Path, offered_pem: bytes | None) -> bytes:
    """The authority that this directory trusts: the one it has, or else the one that comes with a first certificate."""
    path = directory / AUTHORITY_FILE
    if not path.exists():
        if offered_pem is None:
            raise IdentityError(f"got no {AUTHORITY_FILE} in {directory}", hint="give the authority's with --authority")
        certificates.parse_authority(offered_pem)
        return offered_pem
    held_pem = certificates.read_pem(path)
    if offered_pem is not None and certificates.parse_authority(offered_pem) != certificates.parse_authority(held_pem):
        raise IdentityError(
            f"got another authority than the {AUTHORITY_FILE} in {directory}",
            hint="a consortium keeps its authority; compare fingerprints with `veil certs show`",
        )
    return held_pem
