"""How a client reaches a server: by its certificate (mutual TLS), or by a bearer token over the server's TLS.

Guarantee: in both ways the server shows a certificate of the consortium's authority with exactly the identity that is
expected, or nothing is sent. A token is sent as `authorization: Bearer <token>` by gRPC itself, which does so over TLS
only; it is never shown by `repr`, logged, or compared.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import grpc

from veil.errors import ConfigError, IdentityError
from veil.files import read_bounded
from veil.identity import certificates
from veil.identity.credentials import AUTHORITY_FILE, Credentials
from veil.identity.names import Identity, Role
from veil.wire import aio, channel
from veil.wire.probe import Route

TOKEN_FILE = "token"  # noqa: S105 - the name of a file
_LONGEST_FILE_BYTES = 64 * 1024


@dataclass(frozen=True, eq=False)
class TokenCredentials:
    """What a client without a certificate holds: the consortium's authority, and a token that the server gave."""

    authority_pem: bytes = field(repr=False)
    token: str = field(repr=False)

    def __post_init__(self) -> None:
        channel.check_token(self.token)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Reads authority.pem and token. Raises `IdentityError` when others may read the token, `ConfigError` when it
        can be none, `InputError` when a file is absent."""
        path = directory / TOKEN_FILE
        try:
            wide = stat.S_IMODE(path.stat().st_mode) & 0o077
        except OSError:
            raise IdentityError(f"got no file {TOKEN_FILE} in {directory}, expected a token there") from None
        if wide:
            raise IdentityError(f"got {path} that others may read, expected mode 0600", hint=f"chmod 600 {path}")
        text = read_bounded(path, 4096).decode("ascii", "replace").strip()
        return cls(read_bounded(directory / AUTHORITY_FILE, _LONGEST_FILE_BYTES), text)

    @property
    def consortium(self) -> str:
        """The consortium of the authority. Raises `IdentityError` when authority.pem is none."""
        return certificates.parse_authority(self.authority_pem)[1]


def load_credentials(directory: Path) -> Credentials | TokenCredentials:
    """What lies in a directory: authority.pem and token, or authority.pem, cert.pem and key.pem."""
    return TokenCredentials.load(directory) if (directory / TOKEN_FILE).exists() else Credentials.load(directory)


def scoring_server(credentials: Credentials | TokenCredentials, name: str = "main") -> Identity:
    """The identity of the scoring server of that name in one's own consortium."""
    own = credentials.consortium if isinstance(credentials, TokenCredentials) else credentials.identity.consortium
    return Identity(own, Role.SCORING, name)


@dataclass(frozen=True, eq=False)
class Connection:
    """Where a server is, who it must be, and what we show it. Raises `ConfigError` for other credentials."""

    address: str
    credentials: Credentials | TokenCredentials
    expect: Identity

    def __post_init__(self) -> None:
        if not isinstance(self.credentials, Credentials | TokenCredentials):
            raise ConfigError("got something else than Credentials or TokenCredentials to connect with")

    @property
    def peer(self) -> str:
        """The server's name in messages."""
        return self.expect.uri

    @property
    def authority_pem(self) -> bytes:
        """Certificate of the consortium's authority."""
        return self.credentials.authority_pem

    @property
    def route(self) -> Route | None:
        """For `veil.wire.aio.translated`; None with a token, as there is no certificate to show for a second look."""
        if isinstance(self.credentials, TokenCredentials):
            return None
        return Route(self.address, self.credentials, self.expect)

    def open(self) -> grpc.Channel:
        """A channel for threads; connects on the first call."""
        own = self.credentials
        if isinstance(own, TokenCredentials):
            return channel.open_token_channel(self.address, own.authority_pem, own.token, self.expect)
        return channel.open_channel(self.address, own, self.expect)

    def open_async(self) -> grpc.aio.Channel:
        """A channel for the running event loop; connects on the first call."""
        own = self.credentials
        if isinstance(own, TokenCredentials):
            return aio.open_token_channel(self.address, own.authority_pem, own.token, self.expect)
        return aio.open_channel(self.address, own, self.expect)
