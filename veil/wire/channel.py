"""Channels and servers: the only way in and out of a Veil program.

Guarantee: mutual TLS under one consortium's authority on every connection, with no option that turns it off; a client
reaches exactly the identity that it expects or fails the handshake; a server admits exactly the roles that each of its
services names; sizes, deadlines, concurrency and dead peers are bounded by `veil.wire.limits` on both sides.
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
from veil.wire.admission import Admission, caller
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
from veil.wire.tls import channel_credentials, server_credentials

__all__ = [
    "CHUNK_BYTES",
    "DEADLINE_S",
    "MAX_MESSAGE_BYTES",
    "RunningServer",
    "Service",
    "caller",
    "open_channel",
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
    return grpc.intercept_channel(channel, Outgoing(Route(address, credentials, expect)))


@dataclass(frozen=True)
class Service:
    """A service to offer: its full gRPC name, a function that adds its servicer, and the roles that may call it."""

    name: str
    add: Callable[[grpc.Server], None]
    roles: frozenset[Role]


class RunningServer:
    """A server that listens; made by `serve`. As a context manager it stops at the end of the block."""

    def __init__(
        self, server: grpc.Server, workers: futures.ThreadPoolExecutor, states: Any, host: str, port: int
    ) -> None:
        self._server = server
        self._workers = workers
        self._states = states
        self.port = port
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

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
) -> RunningServer:
    """Listens at `address` (port 0: the system chooses) and serves `services`, health checking and reflection.

    Every running call, a stream for as long as it lasts, occupies one of `max_workers` threads: count the streams that
    stay open. Calls beyond `max_concurrent_rpcs` (default: `max_workers`, so that none waits unseen) are refused with
    RESOURCE_EXHAUSTED. Raises `ConfigError` for a malformed argument or when the address cannot be listened at.
    """
    host, _ = split_address(address)
    concurrent = max_workers if max_concurrent_rpcs is None else max_concurrent_rpcs
    if not 1 <= max_workers <= MAX_WORKERS or not max_workers <= concurrent <= 16 * MAX_WORKERS:
        raise ConfigError(
            f"got {max_workers} workers for {concurrent} calls, expected 1 to {MAX_WORKERS}, calls not fewer"
        )
    roles = _roles(services)
    workers = futures.ThreadPoolExecutor(max_workers, thread_name_prefix="veil-serve")
    server = grpc.server(
        workers,
        interceptors=[Admission(credentials.identity, roles)],
        options=server_options(check_message_limit(max_message_bytes)),
        maximum_concurrent_rpcs=concurrent,
    )
    for service in services:
        service.add(server)
    states = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(states, server)
    reflection.enable_server_reflection(tuple(roles), server)
    try:
        port = server.add_secure_port(address, server_credentials(credentials))
    except RuntimeError:
        port = 0
    if port == 0:
        workers.shutdown(wait=False)
        raise ConfigError(f"got no listening socket at {address}, expected a free address of this machine")
    server.start()
    for name in roles:
        states.set(name, health_pb2.HealthCheckResponse.SERVING)
    running = RunningServer(server, workers, states, host, port)
    _log.info("%s listens at %s for %s", credentials.identity, running.address, ", ".join(s.name for s in services))
    return running


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
