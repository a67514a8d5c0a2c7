"""A site's directory through its life: request, certificate, renewals, crashes in between."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from veil.errors import IdentityError, StateError
from veil.identity import site as site_module
from veil.identity.authority import sign_request
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.identity.site import describe, install, make_request, renew

ALPHA = Identity("trial", Role.PARTY, "alpha")
Clock = Callable[[int], AbstractContextManager[None]]


def signed(consortium: Path, request: Path, name: str = "alpha") -> bytes:
    return sign_request(consortium / "authority", request.read_bytes(), role=Role.PARTY, name=name)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_from_nothing_to_credentials(consortium: Path, tmp_path: Path) -> None:
    folder = tmp_path / "site"
    request = make_request(folder, Identity("trial", Role.PARTY, "delta"))
    with pytest.raises(IdentityError):
        Credentials.load(folder)
    certificate_pem = signed(consortium, request, "delta")
    with pytest.raises(IdentityError, match="--authority"):
        install(folder, certificate_pem)
    authority_pem = (consortium / "authority" / "authority.pem").read_bytes()
    assert install(folder, certificate_pem, authority_pem).name == "delta"
    assert Credentials.load(folder).identity.name == "delta"
    assert set(contents(folder)) == {"key.pem", "cert.pem", "authority.pem"}
    with pytest.raises(StateError, match="veil certs renew"):
        make_request(folder, Identity("trial", Role.PARTY, "delta"))


def test_a_renewal_brings_a_new_key(consortium: Path, site: Path) -> None:
    before = contents(site)
    request = renew(site)
    assert contents(site).items() >= before.items()
    Credentials.load(site)  # the old pair still works while the request is on its way
    assert os.stat(site / "renewal-key.pem").st_mode & 0o777 == 0o600
    assert install(site, signed(consortium, request)) == ALPHA
    after = contents(site)
    assert set(after) == {"key.pem", "cert.pem", "authority.pem"}
    assert after["key.pem"] != before["key.pem"] and after["cert.pem"] != before["cert.pem"]
    assert os.stat(site / "key.pem").st_mode & 0o777 == 0o600
    assert Credentials.load(site).identity == ALPHA


def test_a_renewal_may_keep_its_key(consortium: Path, site: Path) -> None:
    before = contents(site)
    install(site, signed(consortium, renew(site, new_key=False)))
    after = contents(site)
    assert after["key.pem"] == before["key.pem"] and after["cert.pem"] != before["cert.pem"]
    Credentials.load(site)


def test_asking_again_asks_for_the_same_key(site: Path) -> None:
    renew(site)
    waiting = (site / "renewal-key.pem").read_bytes()
    renew(site)
    assert (site / "renewal-key.pem").read_bytes() == waiting


def test_an_expired_site_can_renew(consortium: Path, site: Path, days_from_now: Clock) -> None:
    with days_from_now(100):
        with pytest.raises(IdentityError, match="expired"):
            Credentials.load(site)
        install(site, signed(consortium, renew(site)))
        assert Credentials.load(site).identity == ALPHA


@pytest.mark.parametrize("crash_before", [1, 2])
def test_a_crash_within_a_renewal_leaves_a_pair_that_fits(
    consortium: Path, site: Path, monkeypatch: pytest.MonkeyPatch, crash_before: int
) -> None:
    old = Credentials.load(site).certificate_pem
    new = signed(consortium, renew(site))
    calls = 0

    def rename(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == crash_before:
            raise KeyboardInterrupt
        os.rename(source, target)

    monkeypatch.setattr(site_module, "_rename", rename)
    with pytest.raises(KeyboardInterrupt):
        install(site, new)
    # before the first rename the old pair holds; after it, the new
    loaded = Credentials.load(site)
    assert loaded.certificate_pem == (old if crash_before == 1 else new)
    monkeypatch.undo()
    install(site, new)
    assert Credentials.load(site).certificate_pem == new
    assert set(contents(site)) == {"key.pem", "cert.pem", "authority.pem"}


def test_certificates_that_do_not_answer_the_request_change_nothing(
    consortium: Path, site: Path, tmp_path: Path
) -> None:
    renew(site)
    before = contents(site)
    elsewhere = make_request(tmp_path / "elsewhere", ALPHA)
    beta = make_request(tmp_path / "beta", Identity("trial", Role.PARTY, "beta"))
    for pem, sentence in (
        (signed(consortium, elsewhere), "another key"),
        (signed(consortium, beta, "beta"), "alpha, expected veil://trial/party/beta"),
        ((consortium / "authority" / "authority.pem").read_bytes(), "subject alternative name"),
        (b"junk", "exactly one PEM certificate"),
    ):
        with pytest.raises(IdentityError, match=sentence):
            install(site, pem)
        assert contents(site) == before


def test_a_site_keeps_its_authority(consortium: Path, site: Path, tmp_path: Path) -> None:
    from veil.identity.authority import make_authority

    make_authority(tmp_path / "twin", "trial")
    other = (tmp_path / "twin" / "authority.pem").read_bytes()
    with pytest.raises(IdentityError, match="another authority"):
        install(site, signed(consortium, renew(site)), other)


def test_descriptions_show_what_is_public(consortium: Path, site: Path) -> None:
    renew(site)
    found = describe(site)
    assert [(d.kind, d.subject) for d in found] == [
        ("authority", "authority of consortium trial"),
        ("certificate", "veil://trial/party/alpha"),
        ("request", "veil://trial/party/alpha"),
    ]
    assert found[1].valid_until is not None and len(found[1].fingerprint) == 95
    assert describe(site / "cert.pem")[0].fingerprint == found[1].fingerprint
    for path in (site / "key.pem", site / "nothing.pem", site.parent):
        with pytest.raises(IdentityError):
            describe(path)
