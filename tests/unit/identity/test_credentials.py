"""Credentials fit together or do not exist; signatures bind content, purpose, signer and date."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from veil.errors import IdentityError, InputError, SignatureError, StateError
from veil.identity import certificates
from veil.identity.credentials import Credentials, load_key, verify_signature
from veil.identity.names import Identity, Role
from veil.identity.trial import make_consortium

ALPHA = Identity("trial", Role.PARTY, "alpha")
Clock = Callable[[int], AbstractContextManager[None]]


def test_credentials_load_and_stay_silent(consortium: Path) -> None:
    credentials = Credentials.load(consortium / "party-alpha")
    assert credentials.identity == ALPHA
    key_text = (consortium / "party-alpha" / "key.pem").read_text()
    body = key_text.splitlines()[1]
    for shown in (repr(credentials), str(credentials), f"{credentials}"):
        assert body not in shown and "PRIVATE" not in shown and "key" not in shown
    assert credentials.key_pem().decode() == key_text
    assert b"ENCRYPTED" in credentials.key_pem(b"one-time password")
    with pytest.raises(StateError):
        pickle.dumps(credentials)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620])
def test_a_key_that_others_may_touch_is_refused(site: Path, mode: int) -> None:
    (site / "key.pem").chmod(mode)
    with pytest.raises(IdentityError, match=f"got mode {mode:04o}.*chmod 600"):
        Credentials.load(site)


@pytest.mark.parametrize("name", ["key.pem", "cert.pem", "authority.pem"])
@pytest.mark.parametrize("content", [None, b"", b"junk", b"\x00" * 100, b"A" * 200_000])
def test_missing_and_malformed_files_are_refused(site: Path, name: str, content: bytes | None) -> None:
    if content is None:
        (site / name).unlink()
    else:
        (site / name).write_bytes(content)
    with pytest.raises(IdentityError, match="got"):
        Credentials.load(site)


def test_a_key_of_somebody_else_is_refused(site: Path, consortium: Path) -> None:
    (site / "key.pem").write_bytes((consortium / "party-beta" / "key.pem").read_bytes())
    with pytest.raises(IdentityError, match="does not belong"):
        Credentials.load(site)


def test_another_authority_is_refused(site: Path, tmp_path: Path) -> None:
    make_consortium(tmp_path / "twin", "trial", ["alpha"])
    (site / "authority.pem").write_bytes((tmp_path / "twin" / "authority" / "authority.pem").read_bytes())
    with pytest.raises(IdentityError, match=r"did not sign.*compare the fingerprints"):
        Credentials.load(site)


def test_a_leaf_is_no_authority(site: Path, consortium: Path) -> None:
    (site / "authority.pem").write_bytes((consortium / "party-beta" / "cert.pem").read_bytes())
    with pytest.raises(IdentityError, match=r"authority\.pem that no authority"):
        Credentials.load(site)


def test_dates_are_checked(consortium: Path, days_from_now: Clock) -> None:
    with days_from_now(89):
        Credentials.load(consortium / "party-alpha")
    with days_from_now(91), pytest.raises(IdentityError, match=r"expired on 20.*veil certs renew"):
        Credentials.load(consortium / "party-alpha")
    with days_from_now(-1), pytest.raises(IdentityError, match="check the clocks"):
        Credentials.load(consortium / "party-alpha")


def test_other_curves_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.touch(mode=0o600)
    path.write_bytes(
        ec.generate_private_key(ec.SECP384R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    with pytest.raises(IdentityError, match="P-256"):
        load_key(path)


def forged(consortium: Path, *, usages: list[x509.ObjectIdentifier] | None, authority: bool = False) -> bytes:
    """A certificate of party alpha that the real authority signed, but not by Veil's rules."""
    root = x509.load_pem_x509_certificate((consortium / "authority" / "authority.pem").read_bytes())
    root_key = load_key(consortium / "authority" / "authority-key.pem")
    key = load_key(consortium / "party-alpha" / "key.pem").public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(root.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(certificates.now() - timedelta(days=1))
        .not_valid_after(certificates.now() + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(ALPHA.uri), x509.DNSName(ALPHA.dns)]), True
        )
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), critical=False)
    )
    if usages is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    return builder.sign(root_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_usages_are_required(site: Path, consortium: Path) -> None:
    both = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    (site / "cert.pem").write_bytes(forged(consortium, usages=both))
    assert Credentials.load(site).identity == ALPHA  # the forgery differs from a good one in nothing else
    for usages in (None, [ExtendedKeyUsageOID.SERVER_AUTH], [ExtendedKeyUsageOID.EMAIL_PROTECTION]):
        (site / "cert.pem").write_bytes(forged(consortium, usages=usages))
        with pytest.raises(IdentityError, match="expected serverAuth and clientAuth"):
            Credentials.load(site)
    (site / "cert.pem").write_bytes(forged(consortium, usages=both, authority=True))
    with pytest.raises(IdentityError, match="profile"):
        Credentials.load(site)


@pytest.fixture(scope="module")
def alpha(consortium: Path) -> Credentials:
    return Credentials.load(consortium / "party-alpha")


def check(alpha: Credentials, signature: bytes, **changes: object) -> None:
    arguments: dict[str, object] = {
        "certificate_pem": alpha.certificate_pem,
        "authority_pem": alpha.authority_pem,
        "expect": ALPHA,
        "domain": b"veil/job",
        "message": b"digest",
        "signature": signature,
    }
    verify_signature(**(arguments | changes))  # type: ignore[arg-type]


def test_a_signature_verifies_for_what_was_signed(alpha: Credentials) -> None:
    signature = alpha.sign(b"veil/job", b"digest")
    assert len(signature) <= 72
    check(alpha, signature)


def test_a_signature_verifies_for_nothing_else(alpha: Credentials, consortium: Path) -> None:
    signature = alpha.sign(b"veil/job", b"digest")
    for changes in ({"message": b"digesT"}, {"message": b""}, {"domain": b"veil/manifest"}):
        with pytest.raises(SignatureError, match="did not make over this content"):
            check(alpha, signature, **changes)
    # the border between domain and message is part of what is signed
    with pytest.raises(SignatureError):
        check(alpha, signature, domain=b"veil/jobd", message=b"igest")
    flipped = bytes([*signature[:-1], signature[-1] ^ 1])
    for other in (flipped, b"", b"\x00" * 70, signature + b"\x00", b"x" * 1000):
        with pytest.raises(SignatureError):
            check(alpha, other)
    beta_pem = (consortium / "party-beta" / "cert.pem").read_bytes()
    with pytest.raises(IdentityError, match="party/beta, expected the signer veil://trial/party/alpha"):
        check(alpha, signature, certificate_pem=beta_pem)
    with pytest.raises(SignatureError):
        check(alpha, signature, certificate_pem=beta_pem, expect=Identity("trial", Role.PARTY, "beta"))


def test_a_signature_is_worth_what_its_certificate_is(alpha: Credentials, tmp_path: Path, days_from_now: Clock) -> None:
    signature = alpha.sign(b"veil/job", b"digest")
    signed_at = certificates.now()
    with days_from_now(100):
        with pytest.raises(IdentityError, match="expired"):
            check(alpha, signature)
        check(alpha, signature, at=signed_at)
    make_consortium(tmp_path, "trial", ["alpha"])
    with pytest.raises(IdentityError, match="did not sign"):
        check(alpha, signature, authority_pem=(tmp_path / "authority" / "authority.pem").read_bytes())
    twin = Credentials.load(tmp_path / "party-alpha")
    with pytest.raises(IdentityError, match="did not sign"):
        check(alpha, twin.sign(b"veil/job", b"digest"), certificate_pem=twin.certificate_pem)


@pytest.mark.parametrize("domain", [b"", b"x" * 65])
def test_domains_are_bounded(alpha: Credentials, domain: bytes) -> None:
    with pytest.raises(InputError, match="1 to 64"):
        alpha.sign(domain, b"digest")
