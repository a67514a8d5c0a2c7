"""Channels and servers: the only way in and out of a Veil program.

Guarantee: TLS under one consortium's authority on every connection, mutual on every port but one; a client reaches
exactly the identity that it expects or fails the handshake; a server admits exactly the roles that each of its services
names; sizes, deadlines, concurrency and dead peers are bounded by `veil.wire.limits` on both sides.

The one: a server that is given a `token_address` listens there too, for callers without a certificate. They reach the
services that name a `bearer` check and no other, health and reflection neither, and only with a token that passes it.
The first port stays mutual: a token is no way in there, and a caller without a certificate has no `caller`, no role.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent import futures
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from veil.errors import ConfigError
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.wire.admission import Admission, BearerCheck, caller
from veil.wire.limits import (
    CHUNK_BYTES,
    DEADLINE_S,
    MAX_MESSAGE_BYTES,
    MAX_WORKERS,
    check_message_limit,
    client_options,
    server_options,
    split_address,
)
from veil.wire.outgoing import Outgoing
from veil.wire.probe import Route
from veil.wire.tls import (
    channel_credentials,
    server_credentials,
    token_channel_credentials,
    token_server_credentials,
)

__all__ = [
    "CHUNK_BYTES",
    "DEADLINE_S",
    "MAX_MESSAGE_BYTES",
    "RunningServer",
    "Service",
    "caller",
    "check_token",
    "open_channel",
    "open_token_channel",
    "serve",
]

_EVERY_ROLE = frozenset(Role)
_log = logging.getLogger("veil.wire.server")


def open_channel(
    address: str, credentials: Credentials, expect: Identity, *, max_message_bytes: int = MAX_MESSAGE_BYTES
) -> grpc.Channel:
    """A channel to `expect` at `address` ("host:port" or "[IPv6]:port"); connects on the first call.

    Whoever else answers there fails the handshake; calls then end with UNAVAILABLE, and `veil.wire.status.translated`
    says who was met. Unary calls get a deadline of 30 s unless they bring one. Raises `ConfigError` for a malformed
    address or a limit outside 1 KiB .. 4 MiB.
    """
    options = client_options(address, expect.dns, check_message_limit(max_message_bytes))
    channel = grpc.secure_channel(address, channel_credentials(credentials), options)
    return grpc.intercept_channel(channel, Outgoing(expect, Route(address, credentials, expect)))


def open_token_channel(
    address: str, authority_pem: bytes, token: str, expect: Identity, *, max_message_bytes: int = MAX_MESSAGE_BYTES
) -> grpc.Channel:
    """As `open_channel`, for a client that has a bearer token in place of a certificate, at a server's token address.

    authority_pem: certificate of the consortium's authority. Whoever else than `expect` answers fails the handshake
    before the token is sent; calls then end with UNAVAILABLE (`PeerLost`). Raises `ConfigError` as `open_channel` does,
    and for a text that can be no token.
    """
    options = client_options(address, expect.dns, check_message_limit(max_message_bytes))
    channel = grpc.secure_channel(address, token_channel_credentials(authority_pem, check_token(token)), options)
    return grpc.intercept_channel(channel, Outgoing(expect, None))


def check_token(token: str) -> str:
    """The bearer token; raises `ConfigError` for a text that can be none."""
    if not 16 <= len(token) <= 256 or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(f"got a token of {len(token)} characters, expected 16 to 256 of printable ASCII, no spaces")
    return token


@dataclass(frozen=True)
class Service:
    """A service to offer: its full gRPC name, a function that adds its servicer, and the roles that may call it.

    bearer: what judges the token of a caller without a certificate (raises `IdentityError`); None: no such caller.
    """

    name: str
    add: Callable[[grpc.Server], None]
    roles: frozenset[Role]
    bearer: BearerCheck | None = None


class RunningServer:
    """A server that listens; made by `serve`. As a context manager it stops at the end of the block."""

    def __init__(
        self,
        server: grpc.Server,
        workers: futures.ThreadPoolExecutor,
        states: Any,
        address: str,
        token_address: str | None = None,
    ) -> None:
        self._server = server
        self._workers = workers
        self._states = states
        self.port = split_address(address)[1]
        self.address = address
        self.token_address = token_address

    def set_serving(self, service: str, serving: bool) -> None:
        """What health checking says of one service; "" is the server as a whole."""
        status = health_pb2.HealthCheckResponse
        self._states.set(service, status.SERVING if serving else status.NOT_SERVING)

    def stop(self, grace_s: float | None = None) -> None:
        """Takes no new calls, gives running ones `grace_s` seconds (none: cancels them at once), then returns."""
        self._states.enter_graceful_shutdown()
        self._server.stop(grace_s).wait()
        self._workers.shutdown(wait=False, cancel_futures=True)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Blocks until the server has stopped; False when `timeout_s` passed first."""
        return not self._server.wait_for_termination(timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(0)

    def __repr__(self) -> str:
        return f"RunningServer({self.address})"


def serve(
    address: str,
    credentials: Credentials,
    services: Sequence[Service],
    *,
    max_workers: int = 16,
    max_concurrent_rpcs: int | None = None,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    token_address: str | None = None,
) -> RunningServer:
    """Listens at `address` (port 0: the system chooses) and serves `services`, health checking and reflection.

    token_address: where callers with a bearer token in place of a certificate are listened for, too; see the module.

    Every running call, a stream for as long as it lasts, occupies one of `max_workers` threads: count the streams that
    stay open. Calls beyond `max_concurrent_rpcs` (default: `max_workers`, so that none waits unseen) are refused with
    RESOURCE_EXHAUSTED. Raises `ConfigError` for a malformed argument or when the address cannot be listened at.
    """
    split_address(address)
    bearers = {service.name: service.bearer for service in services if service.bearer is not None}
    if (token_address is None) == bool(bearers):
        raise ConfigError(
            f"got {len(bearers)} services for bearer tokens and {'no' if token_address is None else 'an'} address for "
            "them, expected both or neither"
        )
    concurrent = max_workers if max_concurrent_rpcs is None else max_concurrent_rpcs
    if not 1 <= max_workers <= MAX_WORKERS or not max_workers <= concurrent <= 16 * MAX_WORKERS:
        raise ConfigError(
            f"got {max_workers} workers for {concurrent} calls, expected 1 to {MAX_WORKERS}, calls not fewer"
        )
    roles = _roles(services)
    workers = futures.ThreadPoolExecutor(max_workers, thread_name_prefix="veil-serve")
    server = grpc.server(
        workers,
        interceptors=[Admission(credentials.identity, roles, bearers)],
        options=server_options(check_message_limit(max_message_bytes)),
        maximum_concurrent_rpcs=concurrent,
    )
    for service in services:
        service.add(server)
    states = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(states, server)
    reflection.enable_server_reflection(tuple(roles), server)
    try:
        bound = _listen(server, address, server_credentials(credentials))
        token_bound = None
        if token_address is not None:
            token_bound = _listen(server, token_address, token_server_credentials(credentials))
    except ConfigError:
        server.stop(None)
        workers.shutdown(wait=False)
        raise
    server.start()
    for name in roles:
        states.set(name, health_pb2.HealthCheckResponse.SERVING)
    running = RunningServer(server, workers, states, bound, token_bound)
    _log.info("%s listens at %s for %s", credentials.identity, running.address, ", ".join(s.name for s in services))
    if token_bound is not None:
        _log.info("%s listens at %s for tokens, to %s", credentials.identity, token_bound, ", ".join(bearers))
    return running


def _listen(server: grpc.Server, address: str, credentials: grpc.ServerCredentials) -> str:
    """Binds; returns the address with the port that the system chose. Raises `ConfigError`."""
    host, _ = split_address(address)
    try:
        port = server.add_secure_port(address, credentials)
    except RuntimeError:
        port = 0
    if port == 0:
        raise ConfigError(f"got no listening socket at {address}, expected a free address of this machine")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _roles(services: Sequence[Service]) -> dict[str, frozenset[Role]]:
    """Who may call what; health checking and reflection are open to the whole consortium."""
    roles = {service.name: service.roles for service in services}
    roles[health.SERVICE_NAME] = roles[reflection.SERVICE_NAME] = _EVERY_ROLE
    if len(roles) != len(services) + 2:
        raise ConfigError(
            f"got services {[s.name for s in services]}, expected different names, not health or reflection"
        )
    if any(not service.name or not service.roles for service in services):
        raise ConfigError("got a service without a name or without roles, expected both")
    return roles
