"""Every error that Veil raises on purpose.

    VeilError
    ├── InputError              something from outside is malformed (file, request, argument)
    │   ├── ConfigError             a configuration file or option
    │   ├── DataError               rows of a data set; carries line numbers, never values of a row
    │   ├── WireError               a message from the network: unset field, wrong shape, too large
    │   └── CiphertextError         an encrypted query or evaluation key that does not fit the parameters
    ├── IdentityError           a certificate, key or peer identity is missing, expired or not the expected one
    │   └── SignatureError          a signature does not verify
    ├── PolicyError             a party refuses, by its own rules
    │   ├── BudgetError             the privacy budget does not cover it
    │   │   └── QueryBudgetError        a client's budget of queries to one model is spent
    │   ├── LimitError              too many calls at once or in too short a time
    │   └── RevealError             an opening that the signed job does not list
    ├── PeerError               another participant failed; `culprits` names who
    │   ├── PeerLost                the connection to it ended or timed out
    │   └── ProtocolMismatch        it sent something other than this step expects
    ├── ArtifactError           a published model does not verify or does not fit
    └── StateError              an operation that the present state does not allow

Messages say what was got, what was expected and what to do. They never contain a secret, a share, a row's value or a
user's id. `code` is stable and public; it travels in gRPC trailers (see `veil.wire.status`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class VeilError(Exception):
    """Root of the tree. `hint` tells the reader what to do next."""

    code = "VEIL"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class InputError(VeilError):
    """Something from outside is malformed."""

    code = "INPUT"


class ConfigError(InputError):
    """A configuration file or option is wrong."""

    code = "CONFIG"


class DataError(InputError):
    """Rows of a data set are malformed. `lines` are 1-based line numbers in the source file."""

    code = "DATA"

    def __init__(self, message: str, *, lines: Sequence[int] = (), hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.lines = tuple(lines)


class WireError(InputError):
    """A message from the network is malformed or too large."""

    code = "WIRE"


class CiphertextError(InputError):
    """An encrypted query or an evaluation key does not fit the parameters."""

    code = "CIPHERTEXT"


class IdentityError(VeilError):
    """A certificate, key or peer identity is missing, expired or not the expected one."""

    code = "IDENTITY"


class SignatureError(IdentityError):
    """A signature does not verify."""

    code = "SIGNATURE"


class PolicyError(VeilError):
    """A participant refuses, by its own rules."""

    code = "POLICY"


class BudgetError(PolicyError):
    """The privacy budget does not cover what was asked."""

    code = "BUDGET"


class QueryBudgetError(BudgetError):
    """A client's budget of queries to one model is spent. `retry_after_s`: when it renews; None when it never does."""

    code = "QUERY_BUDGET"

    def __init__(self, message: str, *, retry_after_s: float | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class LimitError(PolicyError):
    """Too many calls at once or in too short a time. `retry_after_s`: when one more may pass, as far as is known."""

    code = "LIMIT"

    def __init__(self, message: str, *, retry_after_s: float | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class RevealError(PolicyError):
    """An opening that the signed job does not list."""

    code = "REVEAL"


class PeerError(VeilError):
    """Another participant failed. `culprits` are the names of those at fault, as far as this one can tell."""

    code = "PEER"

    def __init__(self, message: str, *, culprits: Sequence[str] = (), hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.culprits = tuple(culprits)


class PeerLost(PeerError):
    """The connection to a peer ended or timed out."""

    code = "PEER_LOST"


class ProtocolMismatch(PeerError):
    """A peer sent something other than this step expects."""

    code = "PROTOCOL"


class ArtifactError(VeilError):
    """A published model does not verify or does not fit."""

    code = "ARTIFACT"


class StateError(VeilError):
    """An operation that the present state does not allow."""

    code = "STATE"


def _tree(root: type[VeilError]) -> list[type[VeilError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in _tree(child))]


# Taken here, at the end of the file: private subclasses of other modules, whose constructors differ, are not in it.
BY_CODE: Mapping[str, type[VeilError]] = {kind.code: kind for kind in _tree(VeilError)}
"""The class that a code stands for, when an error arrives from another process."""
