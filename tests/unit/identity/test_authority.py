"""The authority signs exactly what its caller names, and only for well-formed requests."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from veil.errors import ConfigError, IdentityError, StateError
from veil.identity import certificates
from veil.identity.authority import alternative_names, make_authority, sign_request
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.identity.site import make_request
from veil.identity.trial import make_consortium

ALPHA = Identity("trial", Role.PARTY, "alpha")


def request_for(names: x509.SubjectAlternativeName | None, key: Any = None, extra: bool = False) -> bytes:
    key = key or ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if names is not None:
        builder = builder.add_extension(names, critical=False)
    if extra:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def sign_as_alpha(consortium: Path, request: bytes) -> bytes:
    return sign_request(consortium / "authority", request, role=Role.PARTY, name="alpha")


def test_a_leaf_has_the_documented_form(consortium: Path) -> None:
    pem = sign_as_alpha(consortium, request_for(alternative_names(ALPHA)))
    leaf = x509.load_pem_x509_certificate(pem)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["veil://trial/party/alpha"]
    assert names.get_values_for_type(x509.DNSName) == ["alpha.party.trial.veil.internal"]
    basic = leaf.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical and not basic.value.ca
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical and usage.value.digital_signature and not usage.value.key_cert_sign
    assert set(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    }
    validity = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    assert validity == timedelta(days=90, minutes=5)
    assert isinstance(leaf.signature_hash_algorithm, hashes.SHA256)


def test_an_authority_has_the_documented_form(consortium: Path) -> None:
    root = x509.load_pem_x509_certificate((consortium / "authority" / "authority.pem").read_bytes())
    basic = root.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical and basic.value == x509.BasicConstraints(ca=True, path_length=0)
    assert root.not_valid_after_utc - certificates.now() > timedelta(days=5 * 365 - 1)
    assert os.stat(consortium / "authority" / "authority-key.pem").st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (None, "no subject alternative name|0 extensions"),
        (alternative_names(Identity("trial", Role.PARTY, "beta")), "party/beta, expected veil://trial/party/alpha"),
        (alternative_names(Identity("trial", Role.DEALER, "alpha")), "dealer/alpha, expected veil://trial/party/alpha"),
        (alternative_names(Identity("other", Role.PARTY, "alpha")), "expected consortium trial"),
        (x509.SubjectAlternativeName([x509.UniformResourceIdentifier(ALPHA.uri)]), "1 URIs and 0 DNS names"),
        (x509.SubjectAlternativeName([x509.DNSName(ALPHA.dns)]), "0 URIs and 1 DNS names"),
        (
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(ALPHA.uri), x509.DNSName("*.veil.internal")]),
            "to match",
        ),
        (
            x509.SubjectAlternativeName([*alternative_names(ALPHA), x509.DNSName("bank.example")]),
            "1 URIs and 2 DNS names",
        ),
        (
            x509.SubjectAlternativeName([*alternative_names(ALPHA), x509.RFC822Name("a@bank.example")]),
            "among 3 names",
        ),
        (
            x509.SubjectAlternativeName(
                [*alternative_names(ALPHA), x509.UniformResourceIdentifier("veil://trial/operator/main")]
            ),
            "2 URIs",
        ),
        (
            x509.SubjectAlternativeName(
                [x509.UniformResourceIdentifier("veil://trial/party/Al_pha"), x509.DNSName(ALPHA.dns)]
            ),
            "1 to 48 of a-z",
        ),
    ],
)
def test_requests_with_other_names_are_refused(
    consortium: Path, names: x509.SubjectAlternativeName | None, sentence: str
) -> None:
    with pytest.raises(IdentityError, match=sentence):
        sign_as_alpha(consortium, request_for(names))


@pytest.mark.parametrize("key", [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)])
def test_other_keys_are_refused(consortium: Path, key: Any) -> None:
    with pytest.raises(IdentityError, match="expected an EC P-256 key"):
        sign_as_alpha(consortium, request_for(alternative_names(ALPHA), key))


def test_a_request_that_asks_to_be_an_authority_is_refused(consortium: Path) -> None:
    with pytest.raises(IdentityError, match="2 extensions"):
        sign_as_alpha(consortium, request_for(alternative_names(ALPHA), extra=True))


def test_a_request_whose_holder_did_not_sign_it_is_refused(consortium: Path) -> None:
    der = bytearray(
        x509.load_pem_x509_csr(request_for(alternative_names(ALPHA))).public_bytes(serialization.Encoding.DER)
    )
    at = bytes(der).index(b"veil://trial/party/alpha") + len("veil://trial/party/")
    der[at] ^= 1  # another name under the same signature
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)
    with pytest.raises(IdentityError, match="signature does not verify"):
        sign_as_alpha(consortium, forged)


@pytest.mark.parametrize(
    "request_pem",
    [b"", b"junk", b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", b"x" * 100_000],
)
def test_garbage_is_refused(consortium: Path, request_pem: bytes) -> None:
    with pytest.raises(IdentityError, match="request"):
        sign_as_alpha(consortium, request_pem)


def test_two_requests_in_one_file_are_refused(consortium: Path) -> None:
    one = request_for(alternative_names(ALPHA))
    with pytest.raises(IdentityError, match="exactly one"):
        sign_as_alpha(consortium, one + one)


@pytest.mark.parametrize("days", [0, 399])
def test_validity_is_bounded(consortium: Path, days: int) -> None:
    with pytest.raises(ConfigError, match="1 to 398"):
        sign_request(consortium / "authority", b"", role=Role.PARTY, name="alpha", days=days)


def test_a_leaf_never_outlives_its_authority(
    tmp_path: Path, days_from_now: Callable[[int], AbstractContextManager[None]]
) -> None:
    with days_from_now(-5 * 365 + 10):
        make_authority(tmp_path / "authority", "trial")
    request = request_for(alternative_names(ALPHA))
    leaf = x509.load_pem_x509_certificate(sign_as_alpha(tmp_path, request))
    root = x509.load_pem_x509_certificate((tmp_path / "authority" / "authority.pem").read_bytes())
    assert leaf.not_valid_after_utc == root.not_valid_after_utc
    with days_from_now(11), pytest.raises(IdentityError, match="expired"):
        sign_as_alpha(tmp_path, request)


def test_an_authority_is_never_replaced(consortium: Path) -> None:
    before = (consortium / "authority" / "authority.pem").read_bytes()
    with pytest.raises(StateError, match="keep it"):
        make_authority(consortium / "authority", "trial")
    assert (consortium / "authority" / "authority.pem").read_bytes() == before


def test_the_key_of_an_authority_can_have_a_passphrase(tmp_path: Path) -> None:
    make_authority(tmp_path / "authority", "trial", passphrase=b"correct horse")
    key_file = tmp_path / "authority" / "authority-key.pem"
    assert b"ENCRYPTED" in key_file.read_bytes()
    request = request_for(alternative_names(ALPHA))

    def sign(passphrase: bytes | None) -> bytes:
        return sign_request(tmp_path / "authority", request, role=Role.PARTY, name="alpha", passphrase=passphrase)

    assert certificates.verify(sign(b"correct horse"), (tmp_path / "authority" / "authority.pem").read_bytes())
    with pytest.raises(IdentityError, match="passphrase"):
        sign(None)
    with pytest.raises(IdentityError, match="another passphrase"):
        sign(b"wrong horse")
    with pytest.raises(ConfigError, match="8 to 1000"):
        make_authority(tmp_path / "second", "trial", passphrase=b"short")
    assert not (tmp_path / "second").exists()


def test_a_consortium_grows_under_the_same_authority(tmp_path: Path) -> None:
    first = make_consortium(tmp_path, "trial", ["alpha"])
    assert {identity.folder for identity in first} == {
        "coordinator-main",
        "dealer-main",
        "scoring-main",
        "operator-main",
        "client-main",
        "party-alpha",
        "operator-alpha",
    }
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*.pem")}
    second = make_consortium(tmp_path, "trial", ["alpha", "beta"])
    assert {path: path.read_bytes() for path in kept} == kept
    for identity, folder in second.items():
        assert Credentials.load(folder).identity == identity
        assert not (folder / "request.pem").exists()
    with pytest.raises(IdentityError, match="belongs to consortium trial"):
        make_consortium(tmp_path, "other", ["alpha"])


@pytest.mark.parametrize("parties", [[], ["alpha", "alpha"], ["Alpha"], [f"p{n}" for n in range(65)]])
def test_a_consortium_of_impossible_parties_is_refused(tmp_path: Path, parties: list[str]) -> None:
    with pytest.raises(IdentityError):
        make_consortium(tmp_path / "new", "trial", parties)
    assert not (tmp_path / "new").exists()


def test_a_site_asks_once(tmp_path: Path) -> None:
    first = make_request(tmp_path / "site", ALPHA)
    key = (tmp_path / "site" / "key.pem").read_bytes()
    make_request(tmp_path / "site", ALPHA)
    assert (tmp_path / "site" / "key.pem").read_bytes() == key
    assert os.stat(tmp_path / "site" / "key.pem").st_mode & 0o777 == 0o600
    assert b"PRIVATE" not in first.read_bytes()
    with pytest.raises(StateError, match="waits for the certificate of veil://trial/party/alpha"):
        make_request(tmp_path / "site", Identity("trial", Role.PARTY, "beta"))
