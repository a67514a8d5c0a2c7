"""The server's door: who calls, whether the called service admits them, and what a failure inside tells them.

Guarantee, for every method of every service on a Veil server, in this order: (1) the caller's certificate carries
exactly one identity of this consortium and is in date now, also on a connection that was opened long ago; (2) the
caller means this server; (3) the service admits the caller's role, and a service that nobody declared admits none;
(4) a unary call has a deadline; (5) the request parses; (6) whatever the handler raises becomes a status by
`veil.wire.status`. Refusals of (1) to (3) are logged as warnings with both identities.

Chain and key possession were verified by TLS before. Callers without a certificate of this authority fail there and
are not seen here (see `veil.wire.probe`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from veil.errors import IdentityError, VeilError, WireError
from veil.identity import certificates
from veil.identity.names import Identity, Role
from veil.wire.probe import EXPECTED_PEER
from veil.wire.status import abort

# gRPC reports a missing deadline as one in the far future
_LONGEST_DEADLINE_S = 24 * 3600.0
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


@lru_cache(maxsize=1024)
def _claims(certificate_pem: bytes) -> tuple[Identity, datetime, datetime]:
    """Identity and dates of a certificate that TLS has verified; kept, since every call asks."""
    certificate = certificates.parse_certificate(certificate_pem, "the client certificate")
    identity = certificates.certificate_identity(certificate, "the client certificate")
    return identity, certificate.not_valid_before_utc, certificate.not_valid_after_utc


class Admission(grpc.ServerInterceptor):  # type: ignore[type-arg]
    """The interceptor of every server that `serve` makes. `roles` maps full service names to the roles admitted."""

    def __init__(self, own: Identity, roles: Mapping[str, frozenset[Role]]) -> None:
        self._own = own
        self._roles = dict(roles)
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

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

        def parsed(request: Any) -> Any:
            return _Parsed(request, deserialize) if handler.request_streaming else _parse(request, deserialize)

        def respond(request: Any, context: grpc.ServicerContext) -> Any:
            with self._guarded(method, context, unary):
                return inner(parsed(request), context)

        def respond_in_parts(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with self._guarded(method, context, unary):
                yield from inner(parsed(request), context)

        def respond_later(request: Any, context: grpc.ServicerContext, send: Callable[[Any], None]) -> None:
            with self._guarded(method, context, unary):
                inner(parsed(request), context, send)

        behaviour: Any = respond_in_parts if handler.response_streaming else respond
        if getattr(inner, "experimental_non_blocking", False):
            # health's Watch answers from the thread that changes the health, so that a watcher occupies no worker
            behaviour = respond_later
            behaviour.experimental_non_blocking = True
        make = {
            (False, False): grpc.unary_unary_rpc_method_handler,
            (False, True): grpc.unary_stream_rpc_method_handler,
            (True, False): grpc.stream_unary_rpc_method_handler,
            (True, True): grpc.stream_stream_rpc_method_handler,
        }[bool(handler.request_streaming), bool(handler.response_streaming)]
        # requests are parsed behind the door: gRPC would answer malformed ones with INTERNAL and a traceback in the log
        return make(behaviour, request_deserializer=None, response_serializer=handler.response_serializer)

    @contextmanager
    def _guarded(self, method: str, context: grpc.ServicerContext, unary: bool) -> Iterator[None]:
        try:
            self._admit(method, context, unary)
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

    def _admit(self, method: str, context: grpc.ServicerContext, unary: bool) -> None:
        """Steps 1 to 4; ends the call with a status where one fails."""
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
        expected = [value for key, value in context.invocation_metadata() or () if key == EXPECTED_PEER]
        if expected and expected != [self._own.uri]:
            meant = _shown(expected)
            self._refuse(
                method,
                context,
                IdentityError(f"got {self._own}, expected {meant}", hint="check the address"),
                f"{peer}, which expected {meant}",
                grpc.StatusCode.FAILED_PRECONDITION,
            )
        service = method.strip("/").rpartition("/")[0]
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
        if unary and context.time_remaining() > _LONGEST_DEADLINE_S:
            raise WireError("got a unary call without a deadline, expected one of at most 24 hours")

    def _refuse(
        self, method: str, context: grpc.ServicerContext, error: IdentityError, who: str, status: grpc.StatusCode
    ) -> None:
        _log.warning("%s refused %s on %s: %s", self._own, who, method, error)
        abort(context, error, status)


class _Parsed:
    """A stream of requests, each parsed when it is asked for; may be read from any thread, as gRPC's own."""

    def __init__(self, raw: Iterator[bytes], deserialize: Callable[[bytes], Any] | None) -> None:
        self._raw = raw
        self._deserialize = deserialize

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return _parse(next(self._raw), self._deserialize)


def _parse(raw: bytes, deserialize: Callable[[bytes], Any] | None) -> Any:
    if deserialize is None:
        return raw
    try:
        return deserialize(raw)
    except DecodeError:
        raise WireError(f"got {len(raw)} bytes that are no message of this method, expected Protocol Buffers") from None


def _shown(expected: list[Any]) -> str:
    """Metadata from outside, fit for a log: an identity, or the statement that it is none."""
    try:
        return Identity.parse(str(expected[0])).uri if len(expected) == 1 else f"{len(expected)} identities"
    except IdentityError:
        return "something that is no identity"
