"""What every call of a client carries: a deadline when it is unary, whom it expects to reach, and the way back.

Guarantee: no unary call leaves without a deadline; every call says in `veil-expected-peer` whom it is meant for, so
that a server which is somebody else can refuse it and log it; every failed call of a channel with credentials knows
its `Route`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from veil.identity.names import Identity
from veil.wire.limits import DEADLINE_S
from veil.wire.probe import EXPECTED_PEER, Route, attach


class _Details(grpc.ClientCallDetails):
    """Call details with a deadline and the expected peer added."""

    def __init__(self, details: grpc.ClientCallDetails, timeout_s: float | None, expect: str) -> None:
        self.method = details.method
        self.timeout = details.timeout if details.timeout is not None else timeout_s
        self.metadata = (*(details.metadata or ()), (EXPECTED_PEER, expect))
        self.credentials = details.credentials
        self.wait_for_ready = details.wait_for_ready
        self.compression = details.compression


_Continuation = Callable[[grpc.ClientCallDetails, Any], Any]


class Outgoing(
    grpc.UnaryUnaryClientInterceptor,  # type: ignore[type-arg]
    grpc.UnaryStreamClientInterceptor,  # type: ignore[type-arg]
    grpc.StreamUnaryClientInterceptor,  # type: ignore[type-arg]
    grpc.StreamStreamClientInterceptor,  # type: ignore[type-arg]
):
    """The interceptor of every channel that `open_channel` makes."""

    def __init__(self, expect: Identity, route: Route | None) -> None:
        self._expect = expect.uri
        self._route = route

    def intercept_unary_unary(
        self, continuation: _Continuation, client_call_details: grpc.ClientCallDetails, request: Any
    ) -> Any:
        """One request, one response: 30 s unless the caller has said otherwise."""
        return self._call(continuation, client_call_details, request, DEADLINE_S)

    def intercept_unary_stream(
        self, continuation: _Continuation, client_call_details: grpc.ClientCallDetails, request: Any
    ) -> Any:
        """A watched stream may last; keepalive notices a dead peer."""
        return self._call(continuation, client_call_details, request, None)

    def intercept_stream_unary(
        self, continuation: _Continuation, client_call_details: grpc.ClientCallDetails, request_iterator: Any
    ) -> Any:
        """An upload may last; keepalive notices a dead peer."""
        return self._call(continuation, client_call_details, request_iterator, None)

    def intercept_stream_stream(
        self, continuation: _Continuation, client_call_details: grpc.ClientCallDetails, request_iterator: Any
    ) -> Any:
        """A conversation may last; keepalive notices a dead peer."""
        return self._call(continuation, client_call_details, request_iterator, None)

    def _call(
        self, continuation: _Continuation, details: grpc.ClientCallDetails, request: Any, timeout_s: float | None
    ) -> Any:
        call = continuation(_Details(details, timeout_s, self._expect), request)
        if self._route is not None:
            # gRPC's call object is also the exception that it raises
            attach(call, self._route)
        return call
