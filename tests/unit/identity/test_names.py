"""Identities: one text form each, and nothing else is one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veil.errors import IdentityError
from veil.identity.names import Identity, Role, parse_role

NAMES = st.from_regex(r"[a-z0-9][a-z0-9-]{0,47}", fullmatch=True)


@given(NAMES, st.sampled_from(Role), NAMES)
def test_uri_and_identity_are_one_to_one(consortium: str, role: Role, name: str) -> None:
    identity = Identity(consortium, role, name)
    assert Identity.parse(identity.uri) == identity
    assert str(identity) == identity.uri == f"veil://{consortium}/{role.value}/{name}"
    assert identity.dns == f"{name}.{role.value}.{consortium}.veil.internal"
    assert len(identity.dns) <= 253
    assert all(len(label) <= 63 for label in identity.dns.split("."))


@given(st.text(max_size=200))
def test_any_text_is_an_identity_or_a_clear_error(text: str) -> None:
    try:
        assert Identity.parse(text).uri == text
    except IdentityError as error:
        assert "got" in str(error) and "expected" in str(error)


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "veil://",
        "veil://trial/party",
        "veil://trial/party/alpha/",
        "veil://trial/party/alpha\n",
        "veil://trial/party/Alpha",
        "veil://trial/party/-alpha",
        "veil://trial/party/" + "a" * 49,
        "veil://trial/queen/alpha",
        "veil://trial//alpha",
        "VEIL://trial/party/alpha",
        "https://trial/party/alpha",
        "veil://trial/party/al.pha",
        "veil://trial/party/*",
        "veil://" + "a" * 10_000,
    ],
)
def test_malformed_uris_are_refused(uri: str) -> None:
    with pytest.raises(IdentityError, match="expected"):
        Identity.parse(uri)


def test_a_role_given_as_text_becomes_a_role() -> None:
    assert Identity("trial", "dealer", "main").role is Role.DEALER  # type: ignore[arg-type]
    with pytest.raises(IdentityError, match="party, coordinator, dealer, scoring, client, operator"):
        parse_role("king")
