"""The server's door: who calls, whether the called service admits them, and what a failure inside tells them.

Guarantee, for every method of every service on a Veil server, in this order: (1) the caller's certificate carries
exactly one identity of this consortium and is in date now, also on a connection that was opened long ago; (2) the
caller means this server; (3) the service admits the caller's role, and a service that nobody declared admits none;
(4) a unary call has a deadline; (5) its request comes soon and parses (`veil.wire.requests`); (6) whatever the handler
raises becomes a status by `veil.wire.status`. Refusals of (1) to (3) are logged as warnings with both identities.
A caller whom (3) refuses occupies no worker, whatever it leaves unsent: no byte of a request is waited for before.
What every role may call (health, reflection) gets `_PUBLIC_CALLS` workers at most, each for `_PUBLIC_WITHIN_S` at most.

Chain and key possession were verified by TLS before. On a mutual port callers without a certificate of this authority
fail there and are not seen here (see `veil.wire.probe`). On a port for tokens nobody shows a certificate: such a call
reaches only a service with a check for bearer tokens, and only when its token (RFC 6750, section 2.1, as metadata
`authorization: Bearer ...`) passes; every other one ends with UNAUTHENTICATED and one and the same sentence.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import datetime
from functools import lru_cache
from typing import Any

import grpc
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from veil.errors import IdentityError, StateError, VeilError, WireError
from veil.identity import certificates
from veil.identity.names import Identity, Role
from veil.wire.probe import EXPECTED_PEER
from veil.wire.requests import Parsed, only_request, parsed_request, patience
from veil.wire.status import abort

# gRPC reports a missing deadline as one in the far future
_LONGEST_DEADLINE_S = 24 * 3600.0
_PUBLIC = frozenset({health.SERVICE_NAME, reflection.SERVICE_NAME})
_PUBLIC_CALLS = 4
_PUBLIC_WITHIN_S = 20.0
_LONGEST_TOKEN = 256
# strangers may call at a port for tokens; they must not be able to fill the log
_QUIET_S = 1.0

BearerCheck = Callable[[str], object]
"""Raises `IdentityError` unless the token is one that is known; what it returns is not looked at."""
_log = logging.getLogger("veil.wire.server")


def caller(context: grpc.ServicerContext) -> Identity:
    """Who calls, by the certificate of the connection; raises `IdentityError` when it proves nobody, or no longer."""
    presented = context.auth_context().get("x509_pem_cert")
    if not presented:
        raise IdentityError("got a call without a client certificate, expected mutual TLS")
    # one certificate per connection; the stubs of gRPC type the list of values as one value
    pem = presented if isinstance(presented, bytes) else bytes(presented[0])
    identity, start, end = _claims(pem)
    if not start <= certificates.now() <= end:
        raise IdentityError(
            f"got a call of {identity}, whose certificate is valid from {start:%Y-%m-%d %H:%M} UTC "
            f"to {end:%Y-%m-%d %H:%M} UTC",
            hint="renew it with `veil certs renew` and connect again",
        )
    return identity


def bearer_token(context: grpc.ServicerContext) -> str:
    """The token of a call without a client certificate; raises `IdentityError` when there is none or a certificate.

    It has to be judged by whoever asks for it. Never log or keep it.
    """
    # the stubs of gRPC type the list of values as one value
    connection: Mapping[str, Any] = context.auth_context()
    found = [value for key, value in context.invocation_metadata() or () if key == "authorization"]
    kind, _, token = str(found[0]).partition(" ") if len(found) == 1 else ("", "", "")
    over_tls = connection.get("transport_security_type") == [b"ssl"]
    if (
        not over_tls
        or connection.get("x509_pem_cert")
        or kind.lower() != "bearer"
        or not 0 < len(token) <= _LONGEST_TOKEN
    ):
        raise no_token()
    return token


def no_token() -> IdentityError:
    """The one answer to every token that is absent, malformed, unknown, expired or revoked."""
    return IdentityError("got no client certificate and no valid token, expected one of them")


@lru_cache(maxsize=1024)
def _claims(certificate_pem: bytes) -> tuple[Identity, datetime, datetime]:
    """Identity and dates of a certificate that TLS has verified; kept, since every call asks."""
    certificate = certificates.parse_certificate(certificate_pem, "the client certificate")
    identity = certificates.certificate_identity(certificate, "the client certificate")
    return identity, certificate.not_valid_before_utc, certificate.not_valid_after_utc


class Admission(grpc.ServerInterceptor):  # type: ignore[type-arg]
    """The interceptor of every server that `serve` makes.

    `roles` maps full service names to the roles admitted, `bearers` those that take tokens to what judges a token.
    """

    def __init__(
        self, own: Identity, roles: Mapping[str, frozenset[Role]], bearers: Mapping[str, BearerCheck] | None = None
    ) -> None:
        self._own = own
        self._roles = dict(roles)
        self._bearers = dict(bearers or {})
        self._quiet = threading.Lock()
        self._quiet_until = 0.0
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._public_calls = threading.BoundedSemaphore(_PUBLIC_CALLS)

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler[Any, Any] | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler behind the door; None for a method that does not exist, which gRPC answers itself."""
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = continuation(handler_call_details)
            if handler is None:
                return None
            wrapped = self._wrap(handler, method)
            self._wrapped[method] = wrapped
        return wrapped

    def _wrap(self, handler: grpc.RpcMethodHandler[Any, Any], method: str) -> grpc.RpcMethodHandler[Any, Any]:
        deserialize = handler.request_deserializer
        unary = not handler.request_streaming and not handler.response_streaming
        inner: Any = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream

        def parsed(raw: Iterator[bytes], context: grpc.ServicerContext) -> Any:
            if handler.request_streaming:
                return Parsed(raw, deserialize)
            return parsed_request(only_request(raw, context), deserialize)

        def respond(raw: Iterator[bytes], context: grpc.ServicerContext) -> Any:
            with self._guarded(method, context, unary):
                return inner(parsed(raw, context), context)

        def respond_in_parts(raw: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Any]:
            with self._guarded(method, context, unary):
                yield from inner(parsed(raw, context), context)

        def respond_later(raw: Iterator[bytes], context: grpc.ServicerContext, send: Callable[[Any], None]) -> None:
            with self._guarded(method, context, unary):
                inner(parsed(raw, context), context, send)

        behaviour: Any = respond_in_parts if handler.response_streaming else respond
        if getattr(inner, "experimental_non_blocking", False):
            # health's Watch answers from the thread that changes the health, so that a watcher occupies no worker
            behaviour = respond_later
            behaviour.experimental_non_blocking = True
        # Always as a stream of requests, which is the same on the wire: gRPC would wait for the one request of a unary
        # call, for ever if need be, before anybody has looked at who calls.
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        # requests are parsed behind the door: gRPC would answer malformed ones with INTERNAL and a traceback in the log
        return make(behaviour, request_deserializer=None, response_serializer=handler.response_serializer)

    @contextmanager
    def _guarded(self, method: str, context: grpc.ServicerContext, unary: bool) -> Iterator[None]:
        try:
            self._admit(method, context, unary)
            with self._public(context) if _service(method) in _PUBLIC else nullcontext():
                yield
        except VeilError as error:
            _log.info("%s failed: %s: %s", method, error.code, error)
            abort(context, error)
        except Exception as error:
            # a handler's own `context.abort` and gRPC's sign that the caller has gone are not errors of the handler
            aborted = type(error) is Exception and context.code() is not None  # type: ignore[attr-defined]
            gone = isinstance(error, grpc.RpcError) and not isinstance(error, grpc.Call)
            if aborted or gone:
                raise
            abort(context, error)

    @contextmanager
    def _public(self, context: grpc.ServicerContext) -> Iterator[None]:
        """One call of a service that is open to every role: few at a time, and not for long."""
        if not self._public_calls.acquire(blocking=False):
            busy = StateError("got too many calls of health checking and reflection at a time", hint="try again later")
            abort(context, busy, grpc.StatusCode.RESOURCE_EXHAUSTED)
        try:
            with patience.after(_PUBLIC_WITHIN_S, context.cancel):
                yield
        finally:
            self._public_calls.release()

    def _admit(self, method: str, context: grpc.ServicerContext, unary: bool) -> None:
        """Steps 1 to 4; ends the call with a status where one fails."""
        service = _service(method)
        if self._bearers and not context.auth_context().get("x509_pem_cert"):
            self._admit_bearer(method, service, context)
            self._meant(method, context, "a caller with a token")
        else:
            self._admit_member(method, service, context)
        if unary and context.time_remaining() > _LONGEST_DEADLINE_S:
            raise WireError("got a unary call without a deadline, expected one of at most 24 hours")

    def _admit_bearer(self, method: str, service: str, context: grpc.ServicerContext) -> None:
        """A caller without a certificate: only with a valid token, and only to a service that takes tokens."""
        check = self._bearers.get(service)
        try:
            token = bearer_token(context)
            if check is None:
                raise no_token()
            check(token)
        except IdentityError:
            with self._quiet:
                now = time.monotonic()
                loud = now >= self._quiet_until
                self._quiet_until = now + _QUIET_S if loud else self._quiet_until
            if loud:
                _log.warning("%s refused a caller without certificate and valid token on %s", self._own, method)
            abort(context, no_token(), grpc.StatusCode.UNAUTHENTICATED)

    def _admit_member(self, method: str, service: str, context: grpc.ServicerContext) -> None:
        """A caller with a certificate: of this consortium, in date, of a role that the service admits."""
        try:
            peer = caller(context)
        except IdentityError as error:
            self._refuse(method, context, error, "a caller", grpc.StatusCode.UNAUTHENTICATED)
            raise
        if peer.consortium != self._own.consortium:
            self._refuse(
                method,
                context,
                IdentityError(f"got a call of {peer}, expected a member of consortium {self._own.consortium}"),
                str(peer),
                grpc.StatusCode.PERMISSION_DENIED,
            )
        self._meant(method, context, str(peer))
        admitted = self._roles.get(service, frozenset())
        if peer.role not in admitted:
            roles = " or ".join(sorted(admitted)) or "nobody"
            self._refuse(
                method,
                context,
                IdentityError(f"got a call of {peer} to {service}, expected role {roles}"),
                str(peer),
                grpc.StatusCode.PERMISSION_DENIED,
            )

    def _meant(self, method: str, context: grpc.ServicerContext, who: str) -> None:
        """Step 2: a call that says whom it is for is for this server."""
        expected = [value for key, value in context.invocation_metadata() or () if key == EXPECTED_PEER]
        if expected and expected != [self._own.uri]:
            meant = _shown(expected)
            self._refuse(
                method,
                context,
                IdentityError(f"got {self._own}, expected {meant}", hint="check the address"),
                f"{who}, which expected {meant}",
                grpc.StatusCode.FAILED_PRECONDITION,
            )

    def _refuse(
        self, method: str, context: grpc.ServicerContext, error: IdentityError, who: str, status: grpc.StatusCode
    ) -> None:
        _log.warning("%s refused %s on %s: %s", self._own, who, method, error)
        abort(context, error, status)


def _service(method: str) -> str:
    return method.strip("/").rpartition("/")[0]


def _shown(expected: list[Any]) -> str:
    """Metadata from outside, fit for a log: an identity, or the statement that it is none."""
    try:
        return Identity.parse(str(expected[0])).uri if len(expected) == 1 else f"{len(expected)} identities"
    except IdentityError:
        return "something that is no identity"
