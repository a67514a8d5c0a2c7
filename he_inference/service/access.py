"""Who asks: a client with a certificate of role `client`, or one with a bearer token over the server's own TLS.

Guarantee: a `Client` stands for a proof that was checked for this very call. The two ways never meet: an account says
by which way it came, so that a token called "app" and a certificate called "app" share neither keys nor budgets.
Tokens (`he_inference.service.tokens`) open InferenceService alone, at an address of its own that the configuration
must name; the other address stays mutual TLS.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

import grpc
from pydantic import StringConstraints, model_validator

from he_inference.service.tokens import TokenFile
from veil.errors import IdentityError
from veil.identity.names import Role
from veil.settings import Address, Section
from veil.wire.admission import bearer_token, no_token
from veil.wire.channel import caller

CERTIFICATE = "certificate"
TOKEN = "token"  # noqa: S105

Account = Annotated[str, StringConstraints(pattern=r"^(certificate|token)/[a-z0-9][a-z0-9-]{0,47}$")]
"""certificate/<name> or token/<name>, in configuration files."""


class AccessSettings(Section):
    """Clients without certificates. Neither key given: there are none."""

    # Address at which callers with tokens are listened for.
    token_listen: Address | None = None
    # The file that `veil tokens add` writes; mode 0600. Changes count at once.
    tokens: Path | None = None

    @model_validator(mode="after")
    def _both(self) -> Self:
        if (self.token_listen is None) != (self.tokens is None):
            raise ValueError("expected token_listen and tokens together, or neither")
        return self


@dataclass(frozen=True, slots=True)
class Client:
    """One client. account: what its keys, budget and limits are kept under; it is shown in no log."""

    account: str

    def __repr__(self) -> str:
        return f"Client({self.account.partition('/')[0]})"


class Access:
    """Tells clients by their calls. Threads may share it."""

    def __init__(self, tokens: TokenFile | None = None) -> None:
        self._tokens = tokens

    @property
    def takes_tokens(self) -> bool:
        """Whether there are clients without certificates."""
        return self._tokens is not None

    def check_bearer(self, token: str) -> str:
        """For `veil.wire.channel.Service.bearer`: the name behind a token; raises `IdentityError`."""
        if self._tokens is None:
            raise no_token()
        return self._tokens.name_of(token)

    def client(self, context: grpc.ServicerContext) -> Client:
        """Who makes this call; raises `IdentityError` when it proves nobody who may ask."""
        if context.auth_context().get("x509_pem_cert"):
            identity = caller(context)
            if identity.role is not Role.CLIENT:
                raise IdentityError(f"got a call of role {identity.role}, expected role {Role.CLIENT}")
            return Client(f"{CERTIFICATE}/{identity.name}")
        return Client(f"{TOKEN}/{self.check_bearer(bearer_token(context))}")


def open_access(settings: AccessSettings) -> Access:
    """As the configuration says. Raises `ConfigError` when the file of tokens cannot be used."""
    return Access(TokenFile(settings.tokens) if settings.tokens is not None else None)
