"""Reading certificates and requests from outside, and deciding what they prove.

Guarantee: `verify` returns an identity only for a certificate in date that this authority signed, for an EC P-256 key,
for use in TLS both ways, with exactly one URI and the one DNS name derived from it. The path is validated by
`cryptography.x509.verification` (RFC 5280 as profiled by the CA/Browser baseline); the rest is checked here.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from veil.errors import IdentityError, InputError
from veil.files import read_bounded
from veil.identity.names import Identity, check_name

PEM_LIMIT_BYTES = 16 * 1024
_CERTIFICATE = re.compile(rb"\s*-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----\s*")
_REQUEST = re.compile(rb"\s*-----BEGIN CERTIFICATE REQUEST-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE REQUEST-----\s*")


def read_pem(path: Path) -> bytes:
    """The file at `path`; raises `IdentityError` when it is absent, unreadable or too large for a certificate."""
    try:
        return read_bounded(path, PEM_LIMIT_BYTES)
    except InputError as error:
        raise IdentityError(error.message, hint="make one with `veil certs init` or `veil certs issue`") from None


def now() -> datetime:
    """The present moment, in UTC."""
    return datetime.now(UTC)


def parse_certificate(pem: bytes, what: str) -> x509.Certificate:
    """Exactly one certificate from PEM text; raises `IdentityError` that names `what`."""
    if len(pem) > PEM_LIMIT_BYTES or not _CERTIFICATE.fullmatch(pem):
        raise IdentityError(f"got {len(pem)} bytes as {what}, expected exactly one PEM certificate")
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise IdentityError(f"got a malformed certificate as {what}", hint="ask for the file again") from None


def parse_request(pem: bytes) -> x509.CertificateSigningRequest:
    """Exactly one certificate request from PEM text; raises `IdentityError`."""
    if len(pem) > PEM_LIMIT_BYTES or not _REQUEST.fullmatch(pem):
        raise IdentityError(f"got {len(pem)} bytes as a request, expected exactly one PEM certificate request")
    try:
        return x509.load_pem_x509_csr(pem)
    except ValueError:
        raise IdentityError("got a malformed certificate request", hint="make it with `veil certs issue`") from None


def identity_from_names(extensions: x509.Extensions, what: str) -> Identity:
    """The identity in the subject alternative names: one URI, and the one DNS name that follows from it."""
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise IdentityError(f"got no subject alternative name in {what}, expected one veil:// URI") from None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    hosts = names.get_values_for_type(x509.DNSName)
    if len(uris) != 1 or len(hosts) != 1 or len(list(names)) != 2:
        raise IdentityError(
            f"got {len(uris)} URIs and {len(hosts)} DNS names among {len(list(names))} names in {what}, "
            "expected one URI, one DNS name and no other"
        )
    identity = Identity.parse(uris[0])
    if hosts[0] != identity.dns:
        raise IdentityError(f"got DNS name {hosts[0][:120]!r} in {what}, expected {identity.dns} to match {identity}")
    return identity


def certificate_identity(certificate: x509.Certificate, what: str = "the certificate") -> Identity:
    """The identity that the certificate claims; whether the claim is worth anything is for `verify`."""
    try:
        extensions = certificate.extensions
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise IdentityError(f"got extensions that cannot be read in {what}") from None
    return identity_from_names(extensions, what)


def check_key(key: object, what: str) -> ec.EllipticCurvePublicKey:
    """`key`, when it is an EC P-256 public key; raises `IdentityError` otherwise."""
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise IdentityError(f"got another kind of key in {what}, expected an EC P-256 key")
    return key


def check_dates(certificate: x509.Certificate, at: datetime, what: str, hint: str) -> None:
    """Raises `IdentityError` unless `at` lies within the validity of the certificate."""
    if at > certificate.not_valid_after_utc:
        raise IdentityError(
            f"got {what}, which expired on {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC", hint=hint
        )
    if at < certificate.not_valid_before_utc:
        start = certificate.not_valid_before_utc
        raise IdentityError(f"got {what}, which is valid from {start:%Y-%m-%d %H:%M} UTC on", hint="check the clocks")


def parse_authority(pem: bytes) -> tuple[x509.Certificate, str]:
    """The authority's certificate and the consortium that it signs for; its dates are not looked at here."""
    certificate = parse_certificate(pem, "authority.pem")
    check_key(_public_key(certificate, "authority.pem"), "authority.pem")
    consortia = certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
    if len(consortia) != 1 or certificate.subject != certificate.issuer:
        raise IdentityError(
            "got an authority.pem that no authority of Veil is",
            hint="copy authority.pem from the authority, not a cert.pem",
        )
    return certificate, check_name(str(consortia[0].value), "the consortium of authority.pem")


def verify(
    certificate_pem: bytes, authority_pem: bytes, *, at: datetime | None = None, what: str = "cert.pem"
) -> tuple[x509.Certificate, Identity]:
    """The certificate and the identity that it proves at the moment `at` (now, unless given).

    Raises `IdentityError` when another authority signed it, it is out of date, it is not for TLS both ways, its key
    is not P-256, its names do not have Veil's form, or its consortium is not the authority's.
    """
    moment = at or now()
    certificate = parse_certificate(certificate_pem, what)
    authority, consortium = parse_authority(authority_pem)
    identity = certificate_identity(certificate, what)
    if identity.consortium != consortium:
        raise IdentityError(f"got {identity} in {what}, expected a member of consortium {consortium}")
    check_key(_public_key(certificate, what), what)
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        raise IdentityError(
            f"got {what} of {identity}, which this consortium's authority did not sign",
            hint="compare the fingerprints of authority.pem on both sides with `veil certs show`",
        ) from None
    check_dates(authority, moment, "an authority.pem", "the consortium needs a new authority")
    check_dates(certificate, moment, f"{what} of {identity}", "ask for a new one with `veil certs renew`")
    usages = (
        certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value if _has_usage(certificate) else ()
    )
    if {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH} - set(usages):
        raise IdentityError(f"got {what} of {identity} without both TLS usages, expected serverAuth and clientAuth")
    try:
        PolicyBuilder().store(Store([authority])).time(moment).build_client_verifier().verify(certificate, [])
    except (VerificationError, ValueError, UnsupportedAlgorithm):
        raise IdentityError(
            f"got {what} of {identity}, which does not follow the profile of Veil's authority"
        ) from None
    return certificate, identity


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the whole certificate, in lower-case hexadecimal pairs; what people compare over the telephone."""
    return certificate.fingerprint(hashes.SHA256()).hex(":")


def remaining(certificate: x509.Certificate, at: datetime | None = None) -> timedelta:
    """Time left until the certificate expires; negative afterwards."""
    return certificate.not_valid_after_utc - (at or now())


def _has_usage(certificate: x509.Certificate) -> bool:
    return any(isinstance(extension.value, x509.ExtendedKeyUsage) for extension in certificate.extensions)


def _public_key(certificate: x509.Certificate, what: str) -> object:
    try:
        return certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise IdentityError(f"got a key that cannot be read in {what}, expected an EC P-256 key") from None
