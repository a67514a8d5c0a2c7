"""Veil's errors as gRPC statuses, and back: what a handler raises here is what its caller meets there.

Guarantee: every class of `veil.errors` has a status and a code, the code comes back as the same class, and what a
status says is a `VeilError`'s public sentence or nothing about the inside: paths are cut to their last part, any other
exception becomes an identifier that also stands in the server's log. Text from a peer is bounded and stripped of
control characters before it enters a message. Status codes as defined in grpc/doc/statuscodes.md.

Trailers: `veil-code` (always), `veil-culprits` (names, comma-separated), `veil-lines` (numbers, comma-separated),
`veil-retry-after-s` (a number of seconds).
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, cast

import grpc

from veil import errors
from veil.errors import (
    DataError,
    IdentityError,
    InputError,
    LimitError,
    PeerError,
    PeerLost,
    QueryBudgetError,
    StateError,
    VeilError,
    WireError,
)
from veil.wire.probe import diagnose, route_of

CODE_TRAILER = "veil-code"
CULPRITS_TRAILER = "veil-culprits"
LINES_TRAILER = "veil-lines"
RETRY_TRAILER = "veil-retry-after-s"

_INTERNAL = "INTERNAL"
# a sentence is percent-encoded on the wire: 600 characters are at most 7.2 KB of the 16 KiB of metadata
_LONGEST_SENTENCE = 600
_MOST_CULPRITS = 64
_MOST_LINES = 100
# nobody need wait longer than this, whatever a peer says
_LONGEST_RETRY_S = 366 * 86_400.0
_log = logging.getLogger("veil.wire.status")

# Every class of the tree; a test walks `veil.errors` and fails when one is absent. UNAVAILABLE is left to gRPC: it
# means that nobody answered, so a `PeerLost` that a server reports about a third participant is ABORTED.
STATUS_OF: dict[type[VeilError], grpc.StatusCode] = {
    errors.VeilError: grpc.StatusCode.UNKNOWN,
    errors.InputError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ConfigError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.DataError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.WireError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.CiphertextError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.IdentityError: grpc.StatusCode.PERMISSION_DENIED,
    errors.SignatureError: grpc.StatusCode.UNAUTHENTICATED,
    errors.PolicyError: grpc.StatusCode.PERMISSION_DENIED,
    errors.BudgetError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.QueryBudgetError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.LimitError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.RevealError: grpc.StatusCode.PERMISSION_DENIED,
    errors.PeerError: grpc.StatusCode.ABORTED,
    errors.PeerLost: grpc.StatusCode.ABORTED,
    errors.ProtocolMismatch: grpc.StatusCode.ABORTED,
    errors.ArtifactError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.StateError: grpc.StatusCode.FAILED_PRECONDITION,
}

# What a status without `veil-code` means: it comes from gRPC itself, or from a server that is not Veil's.
_PLAIN: dict[grpc.StatusCode, type[VeilError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InputError,
    grpc.StatusCode.OUT_OF_RANGE: InputError,
    grpc.StatusCode.UNAUTHENTICATED: IdentityError,
    grpc.StatusCode.PERMISSION_DENIED: IdentityError,
    grpc.StatusCode.FAILED_PRECONDITION: StateError,
    grpc.StatusCode.ALREADY_EXISTS: StateError,
    grpc.StatusCode.NOT_FOUND: StateError,
    grpc.StatusCode.UNIMPLEMENTED: errors.ProtocolMismatch,
    grpc.StatusCode.UNAVAILABLE: PeerLost,
    grpc.StatusCode.DEADLINE_EXCEEDED: PeerLost,
    grpc.StatusCode.CANCELLED: PeerLost,
}

# an absolute path of two parts or more, but not the inside of a URI or of a relative path
_FOLDERS = re.compile(r"(?<![\w:/.-])/(?:[^/\s'\"(),;]+/)+")
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9:/._-]{0,159}")
# "Received message larger than max (9 vs. 4)" from whoever receives, "Sent message …" from whoever sends
_OVERSIZE = re.compile(r"(Received|Sent) message larger than max \((\d{1,19}) vs\. (\d{1,19})\)")
_BUSY = "Concurrent RPC limit exceeded"


def public_sentence(text: str) -> str:
    """One line of at most 600 characters, without control characters and without the folders of absolute paths."""
    line = _FOLDERS.sub("", _UNPRINTABLE.sub(" ", text))
    return line if len(line) <= _LONGEST_SENTENCE else line[: _LONGEST_SENTENCE - 1] + "…"


def to_status(error: BaseException) -> tuple[grpc.StatusCode, str, str]:
    """Status, stable code and public sentence of an error.

    What is no `VeilError` becomes INTERNAL with an identifier, under which the traceback is logged here.
    """
    if isinstance(error, VeilError):
        kind = next(kind for kind in type(error).__mro__ if kind in STATUS_OF)
        return STATUS_OF[kind], error.code, public_sentence(str(error))
    incident = secrets.token_hex(6)
    _log.error("incident %s", incident, exc_info=error)
    return grpc.StatusCode.INTERNAL, _INTERNAL, f"internal error, incident {incident}: the server's log has the details"


def trailers(error: BaseException, code: str) -> tuple[tuple[str, str], ...]:
    """The trailing metadata that lets `from_rpc` build the error again."""
    found = [(CODE_TRAILER, code)]
    if isinstance(error, PeerError) and error.culprits:
        names = [name for name in error.culprits if _NAME.fullmatch(name)][:_MOST_CULPRITS]
        found.append((CULPRITS_TRAILER, ",".join(names)[:4000]))
    if isinstance(error, DataError) and error.lines:
        found.append((LINES_TRAILER, ",".join(str(int(line)) for line in error.lines[:_MOST_LINES])))
    if isinstance(error, (LimitError, QueryBudgetError)) and error.retry_after_s is not None:
        found.append((RETRY_TRAILER, f"{error.retry_after_s:.3f}"))
    return tuple(found)


def abort(context: grpc.ServicerContext, error: BaseException, status: grpc.StatusCode | None = None) -> NoReturn:
    """Ends the call with the status of `error`, or with `status` where the caller knows a more exact one."""
    usual, code, sentence = to_status(error)
    context.set_trailing_metadata((*(context.trailing_metadata() or ()), *trailers(error, code)))
    context.abort(status or usual, sentence)


def from_rpc(error: grpc.RpcError, peer: str) -> VeilError:
    """The error that `peer` raised, as the same class; for what gRPC itself reports, the nearest one.

    `peer` names the other side in the message and, unless it named others, among the culprits. When nobody could be
    reached through a channel of `open_channel`, the address is probed first: an identity, authority or date that does
    not fit becomes an `IdentityError` that says what was got and what was expected. May take some seconds then.
    """
    call: object = error
    if not isinstance(call, grpc.Call | grpc.aio.AioRpcError):
        return PeerLost(f"the call to {peer} ended before it had begun", culprits=(peer,))
    status, details = call.code(), public_sentence(call.details() or "")
    # gRPC's stubs type it differently for its two kinds of calls
    metadata: Iterable[tuple[str, object]] = cast(Any, call.trailing_metadata()) or ()
    sent = {key: value for key, value in metadata if isinstance(value, str)}
    kind = errors.BY_CODE.get(sent.get(CODE_TRAILER, ""))
    if kind is not None:
        return _again(kind, f"{peer}: {details}", peer, sent)
    if sent.get(CODE_TRAILER) == _INTERNAL:
        return PeerError(f"{peer}: {details}", culprits=(peer,))
    route = route_of(error)
    if status is grpc.StatusCode.UNAVAILABLE and route is not None:
        finding = diagnose(route)
        if finding is not None:
            return finding
    return _from_grpc_itself(status, details, peer)


@contextmanager
def translated(peer: str) -> Iterator[None]:
    """Within the block, an `RpcError` becomes the `VeilError` that `from_rpc` makes of it."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc(error, peer) from error


def _from_grpc_itself(status: grpc.StatusCode, details: str, peer: str) -> VeilError:
    oversize = _OVERSIZE.search(details)
    if status is grpc.StatusCode.RESOURCE_EXHAUSTED and oversize:
        _, got, limit = oversize.groups()
        return WireError(
            f"{peer}: got a message of {got} bytes, expected at most {limit}", hint="send it as a stream of chunks"
        )
    if status is grpc.StatusCode.RESOURCE_EXHAUSTED and _BUSY in details:
        return PeerError(f"{peer} serves as many calls as it may", culprits=(peer,), hint="try again later")
    if status is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return WireError(f"{peer}: {details}")
    kind = _PLAIN.get(status, PeerError)
    if kind is PeerLost:
        reasons = {
            grpc.StatusCode.DEADLINE_EXCEEDED: "did not answer before the deadline",
            grpc.StatusCode.CANCELLED: "was not waited for: the call was cancelled",
        }
        reason = reasons.get(status, "cannot be reached, or ended the connection")
        return PeerLost(f"{peer} {reason} ({details})", culprits=(peer,))
    return _again(kind, f"{peer}: {status.name}: {details}", peer, {})


def _again(kind: type[VeilError], message: str, peer: str, sent: dict[str, str]) -> VeilError:
    if issubclass(kind, PeerError):
        named = sent.get(CULPRITS_TRAILER, "").split(",")[:_MOST_CULPRITS]
        culprits = tuple(name for name in named if _NAME.fullmatch(name))
        return kind(message, culprits=culprits or (peer,))
    if issubclass(kind, DataError):
        numbers = sent.get(LINES_TRAILER, "").split(",")[:_MOST_LINES]
        return kind(message, lines=[int(n) for n in numbers if n.isascii() and n.isdigit() and len(n) <= 18])
    if issubclass(kind, (LimitError, QueryBudgetError)):
        return kind(message, retry_after_s=_seconds(sent.get(RETRY_TRAILER, "")))
    return kind(message)


def _seconds(text: str) -> float | None:
    """What a peer says about waiting; None for anything but a plain number within a year."""
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", text):
        return None
    return min(float(text), _LONGEST_RETRY_S)
