"""Channels for asyncio: TLS, identity checks and limits of `veil.wire.channel` for programs with an event loop.

Guarantee: as there. A client reaches exactly the identity that it expects or fails the handshake; a bearer token is
sent over such a connection only; every call says whom it is meant for and a unary call has a deadline; sizes and dead
peers are bounded by `veil.wire.limits`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc

from veil.identity.credentials import Credentials
from veil.identity.names import Identity
from veil.wire.channel import check_token
from veil.wire.limits import DEADLINE_S, MAX_MESSAGE_BYTES, check_message_limit, client_options
from veil.wire.probe import EXPECTED_PEER, Route, attach
from veil.wire.status import from_rpc
from veil.wire.tls import channel_credentials, token_channel_credentials


def open_channel(
    address: str, credentials: Credentials, expect: Identity, *, max_message_bytes: int = MAX_MESSAGE_BYTES
) -> grpc.aio.Channel:
    """As `veil.wire.channel.open_channel`; call it within the event loop that will use the channel.

    Failed calls raise `grpc.aio.AioRpcError`; `translated` makes a `VeilError` of it.
    """
    return _open(address, channel_credentials(credentials), expect, max_message_bytes)


def open_token_channel(
    address: str, authority_pem: bytes, token: str, expect: Identity, *, max_message_bytes: int = MAX_MESSAGE_BYTES
) -> grpc.aio.Channel:
    """As `veil.wire.channel.open_token_channel`; call it within the event loop that will use the channel."""
    return _open(address, token_channel_credentials(authority_pem, check_token(token)), expect, max_message_bytes)


@asynccontextmanager
async def translated(peer: str, route: Route | None) -> AsyncIterator[None]:
    """Within the block, an `RpcError` becomes the `VeilError` that `veil.wire.status.from_rpc` makes of it.

    route: where the channel of `open_channel` leads, so that a question of identity is told from an absent server.
    """
    try:
        yield
    except grpc.RpcError as error:
        if route is not None:
            attach(error, route)
        # it may look at the server's certificate, which takes time that the loop needs for others
        raise await asyncio.to_thread(from_rpc, error, peer) from error


def _open(
    address: str, credentials: grpc.ChannelCredentials, expect: Identity, max_message_bytes: int
) -> grpc.aio.Channel:
    options = client_options(address, expect.dns, check_message_limit(max_message_bytes))
    return grpc.aio.secure_channel(address, credentials, options, interceptors=_interceptors(expect.uri))


def _details(details: Any, timeout_s: float | None, expect: str) -> Any:
    metadata = grpc.aio.Metadata(*(details.metadata or ()), (EXPECTED_PEER, expect))
    timeout = details.timeout if details.timeout is not None else timeout_s
    return grpc.aio.ClientCallDetails(details.method, timeout, metadata, details.credentials, details.wait_for_ready)


class _Unary(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[type-arg]
    """One request, one response: 30 s unless the caller has said otherwise."""

    def __init__(self, expect: str) -> None:
        self._expect = expect

    async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(_details(client_call_details, DEADLINE_S, self._expect), request)


class _Down(grpc.aio.UnaryStreamClientInterceptor):  # type: ignore[type-arg]
    """A watched stream may last; keepalive notices a dead peer."""

    def __init__(self, expect: str) -> None:
        self._expect = expect

    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return await continuation(_details(client_call_details, None, self._expect), request)


class _Up(grpc.aio.StreamUnaryClientInterceptor):  # type: ignore[type-arg]
    """An upload may last."""

    def __init__(self, expect: str) -> None:
        self._expect = expect

    async def intercept_stream_unary(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await continuation(_details(client_call_details, None, self._expect), request_iterator)


class _Both(grpc.aio.StreamStreamClientInterceptor):  # type: ignore[type-arg]
    """A conversation may last."""

    def __init__(self, expect: str) -> None:
        self._expect = expect

    async def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return await continuation(_details(client_call_details, None, self._expect), request_iterator)


def _interceptors(expect: str) -> Sequence[Any]:
    return [kind(expect) for kind in (_Unary, _Down, _Up, _Both)]
