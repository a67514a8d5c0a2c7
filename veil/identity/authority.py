"""The consortium's authority: it signs which key speaks for which participant, and nothing else.

Guarantee: `sign_request` signs only the role and the name that its caller gives, for a request that asks for exactly
these, within the authority's own consortium, for a P-256 key whose holder has signed the request. The authority never
sees a participant's private key. Certificates follow RFC 5280; an authority has path length 0, so that nothing that it
signs can sign in turn.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from veil.errors import ConfigError, IdentityError, StateError
from veil.files import atomic_directory, write_atomic
from veil.identity import certificates
from veil.identity.credentials import AUTHORITY_FILE, belongs, load_key
from veil.identity.names import Identity, Role, check_name

AUTHORITY_KEY_FILE = "authority-key.pem"
AUTHORITY_DAYS = 5 * 365
LEAF_DAYS = 90
LONGEST_LEAF_DAYS = 398
# clocks of organisations differ; a certificate must work at once
BACKDATED = timedelta(minutes=5)


def make_authority(directory: Path, consortium: str, *, passphrase: bytes | None = None) -> None:
    """Makes `directory` with authority-key.pem (0600, encrypted when a passphrase is given) and authority.pem.

    Valid for 5 years. Raises `StateError` when the directory exists: an authority is never replaced, because every
    certificate that it signed would stop working.
    """
    check_name(consortium, "the name of a consortium")
    if directory.exists():
        raise StateError(
            f"got {directory}, which exists, expected a place for a new authority",
            hint="keep it: a new authority would end every certificate of the old one; a new consortium goes elsewhere",
        )
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(consortium, f"{consortium} authority")
    start = certificates.now()
    certificate = (
        _builder(subject, subject, key.public_key(), start - BACKDATED, start + timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    with atomic_directory(directory) as folder:
        write_atomic(folder / AUTHORITY_KEY_FILE, key_pem(key, passphrase), mode=0o600)
        write_atomic(folder / AUTHORITY_FILE, certificate.public_bytes(serialization.Encoding.PEM))


def sign_request(
    directory: Path,
    request_pem: bytes,
    *,
    role: Role,
    name: str,
    passphrase: bytes | None = None,
    days: int = LEAF_DAYS,
) -> bytes:
    """The PEM certificate for a request, signed by the authority in `directory`; valid for `days` (1 to 398).

    The certificate never outlives its authority. Raises `IdentityError` when the request asks for anything but `role`
    and `name` in this consortium, when its own signature does not verify, or when its key is not EC P-256.
    """
    if not 1 <= days <= LONGEST_LEAF_DAYS:
        raise ConfigError(f"got {days} days, expected 1 to {LONGEST_LEAF_DAYS}")
    key = load_key(directory / AUTHORITY_KEY_FILE, passphrase)
    authority_pem = certificates.read_pem(directory / AUTHORITY_FILE)
    if not belongs(key, authority_pem, AUTHORITY_FILE):
        raise IdentityError(f"got an {AUTHORITY_KEY_FILE} in {directory} that does not belong to its {AUTHORITY_FILE}")
    authority, consortium = certificates.parse_authority(authority_pem)
    start = certificates.now()
    certificates.check_dates(authority, start, "an authority", "make a new consortium with `veil certs init`")
    identity = Identity(consortium, role, name)
    subject_key = check_request(request_pem, identity)
    end = min(start + timedelta(days=days), authority.not_valid_after_utc)
    certificate = (
        _builder(_subject(consortium, f"{role}/{name}"), authority.subject, subject_key, start - BACKDATED, end)
        .add_extension(alternative_names(identity), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def check_request(request_pem: bytes, expect: Identity) -> ec.EllipticCurvePublicKey:
    """The key of a request that asks for exactly `expect`; raises `IdentityError` otherwise."""
    request = certificates.parse_request(request_pem)
    try:
        signed, extensions = request.is_signature_valid, request.extensions
        key = certificates.check_key(request.public_key(), "the request")
    except (
        ValueError,
        InvalidSignature,
        UnsupportedAlgorithm,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ):
        raise IdentityError("got a request that cannot be read", hint="make it with `veil certs issue`") from None
    if not signed:
        raise IdentityError("got a request whose signature does not verify", hint="ask the site for a new one")
    if len(extensions) != 1:
        raise IdentityError(
            f"got {len(extensions)} extensions in the request, expected the subject alternative name alone",
            hint="make it with `veil certs issue`",
        )
    identity = certificates.identity_from_names(extensions, "the request")
    if identity.consortium != expect.consortium:
        raise IdentityError(f"got a request of {identity}, expected consortium {expect.consortium}")
    if identity != expect:
        raise IdentityError(
            f"got a request of {identity}, expected {expect}", hint="sign only what you have agreed with the site"
        )
    return key


def alternative_names(identity: Identity) -> x509.SubjectAlternativeName:
    """The two names of a certificate: the URI, and the DNS name that follows from it."""
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity.uri), x509.DNSName(identity.dns)])


def key_pem(key: ec.EllipticCurvePrivateKey, passphrase: bytes | None = None) -> bytes:
    """A private key in PKCS #8 PEM; raises `ConfigError` for a passphrase that protects nothing or is too long."""
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase is not None:
        if not 8 <= len(passphrase) <= 1000:
            raise ConfigError(f"got a passphrase of {len(passphrase)} bytes, expected 8 to 1000")
        encryption = serialization.BestAvailableEncryption(passphrase)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def key_is_encrypted(path: Path) -> bool:
    """Whether the key file at `path` needs a passphrase, by its PEM label (RFC 7468, section 11)."""
    return b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in certificates.read_pem(path)


def _subject(consortium: str, common_name: str) -> x509.Name:
    """For people to read; programs look at the alternative names only."""
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, consortium),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    """Certificates for an authority, digital signatures (all that TLS 1.3 and job digests need) for a participant."""
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
