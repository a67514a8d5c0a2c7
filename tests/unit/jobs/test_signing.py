"""Approvals: who signed which digest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from veil.errors import IdentityError, SignatureError
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.identity.trial import make_consortium
from veil.jobs.signing import Approval, approve, verify

DIGEST = bytes(range(32))


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> dict[Identity, Credentials]:
    folders = make_consortium(tmp_path_factory.mktemp("certs"), "trial", ["alpha", "beta"])
    return {identity: Credentials.load(folder) for identity, folder in folders.items()}


@pytest.fixture(scope="module")
def alpha(members: dict[Identity, Credentials]) -> Credentials:
    return members[Identity("trial", Role.PARTY, "alpha")]


@pytest.fixture(scope="module")
def beta(members: dict[Identity, Credentials]) -> Credentials:
    return members[Identity("trial", Role.PARTY, "beta")]


def check(
    approval: Approval, credentials: Credentials, *, party: str = "alpha", digest: bytes = DIGEST, of: str = "trial"
) -> None:
    verify(approval, consortium=of, party=party, digest=digest, authority_pem=credentials.authority_pem)


def test_an_approval_verifies(alpha: Credentials) -> None:
    approval = approve(alpha, DIGEST)
    assert approval.party == "alpha"
    check(approval, alpha)


def test_another_digest(alpha: Credentials) -> None:
    with pytest.raises(SignatureError):
        check(approve(alpha, DIGEST), alpha, digest=bytes(32))


def test_another_party(alpha: Credentials, beta: Credentials) -> None:
    with pytest.raises(SignatureError, match="expected one of 'beta'"):
        check(approve(alpha, DIGEST), alpha, party="beta")
    # claims the name, but signs with its own key and certificate
    with pytest.raises(IdentityError):
        check(replace(approve(beta, DIGEST), party="alpha"), alpha)
    # puts the other's certificate beside its own signature
    with pytest.raises(SignatureError):
        check(replace(approve(beta, DIGEST), party="alpha", certificate_pem=alpha.certificate_pem), alpha)


def test_another_role(alpha: Credentials, members: dict[Identity, Credentials]) -> None:
    operator = members[Identity("trial", Role.OPERATOR, "main")]
    with pytest.raises(IdentityError):
        check(approve(operator, DIGEST), alpha, party="main")


def test_another_consortium(alpha: Credentials, tmp_path: Path) -> None:
    folders = make_consortium(tmp_path, "rival", ["alpha"])
    rival = Credentials.load(folders[Identity("rival", Role.PARTY, "alpha")])
    with pytest.raises(IdentityError):
        check(approve(rival, DIGEST), alpha)
    with pytest.raises(IdentityError):
        check(approve(alpha, DIGEST), alpha, of="rival")


def test_another_purpose(alpha: Credentials) -> None:
    signature = alpha.sign(b"veil/model/v1\x00", DIGEST)
    with pytest.raises(SignatureError):
        check(replace(approve(alpha, DIGEST), signature=signature), alpha)


@pytest.mark.parametrize("length", [0, 31, 33])
def test_what_is_no_digest_is_not_signed(alpha: Credentials, length: int) -> None:
    with pytest.raises(SignatureError, match=f"{length} bytes"):
        approve(alpha, bytes(length))


def test_an_approval_does_not_print_its_bytes(alpha: Credentials) -> None:
    assert repr(approve(alpha, DIGEST)) == "Approval(party='alpha')"
