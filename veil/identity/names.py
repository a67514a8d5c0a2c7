"""Who a participant is: a consortium, a role in it and a name.

Guarantee: an `Identity` that exists is well formed, and text maps to at most one identity: `parse(uri).uri == uri`.
The URI form stands in certificates as a subject alternative name (RFC 5280, section 4.2.1.6); the DNS form is derived
from it, so that a TLS client can insist on one identity by ordinary host-name verification (RFC 6125, section 6.4).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from veil.errors import IdentityError

SCHEME = "veil://"
DNS_SUFFIX = "veil.internal"
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,47}")
_NAME_RULE = "1 to 48 of a-z, 0-9 and '-', the first not '-'"
# scheme, three names of at most 48 characters, two slashes
_LONGEST_URI = len(SCHEME) + 3 * 48 + 2


class Role(StrEnum):
    """What a participant is for. A service admits roles; a certificate carries exactly one."""

    PARTY = "party"
    COORDINATOR = "coordinator"
    DEALER = "dealer"
    SCORING = "scoring"
    CLIENT = "client"
    OPERATOR = "operator"


def check_name(text: str, what: str) -> str:
    """`text`, when it is a name; raises `IdentityError` otherwise. `what` says whose name it is."""
    # fullmatch, not `$`: the latter would let a trailing newline through
    if not _NAME.fullmatch(text):
        raise IdentityError(f"got {text[:64]!r} as {what}, expected {_NAME_RULE}")
    return text


def parse_role(text: str) -> Role:
    """The role called `text`; raises `IdentityError` for any other."""
    try:
        return Role(text)
    except ValueError:
        roles = ", ".join(Role)
        raise IdentityError(f"got role {text[:64]!r}, expected one of {roles}") from None


@dataclass(frozen=True, slots=True, order=True)
class Identity:
    """One participant of one consortium. Raises `IdentityError` when a name or the role is malformed."""

    consortium: str
    role: Role
    name: str

    def __post_init__(self) -> None:
        check_name(self.consortium, "the name of a consortium")
        check_name(self.name, "the name of a participant")
        object.__setattr__(self, "role", parse_role(self.role))

    @property
    def uri(self) -> str:
        """`veil://<consortium>/<role>/<name>`."""
        return f"{SCHEME}{self.consortium}/{self.role}/{self.name}"

    @property
    def dns(self) -> str:
        """`<name>.<role>.<consortium>.veil.internal`; resolves nowhere, TLS only compares it."""
        return f"{self.name}.{self.role}.{self.consortium}.{DNS_SUFFIX}"

    @property
    def folder(self) -> str:
        """`<role>-<name>`: the directory of this identity within a trial consortium."""
        return f"{self.role}-{self.name}"

    @classmethod
    def parse(cls, uri: str) -> Self:
        """The identity that `uri` names; raises `IdentityError` for any other text."""
        parts = uri.removeprefix(SCHEME).split("/") if len(uri) <= _LONGEST_URI and uri.startswith(SCHEME) else []
        if len(parts) != 3:
            raise IdentityError(f"got {uri[:80]!r}, expected {SCHEME}<consortium>/<role>/<name>")
        consortium, role, name = parts
        return cls(consortium, parse_role(role), name)

    def __str__(self) -> str:
        return self.uri
