"""What the tests of channels share: whom they call, and how."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.wire.channel import RunningServer

ALPHA = Identity("trial", Role.PARTY, "alpha")
Party = Callable[[str], Credentials]
SERVING = health_pb2.HealthCheckResponse.SERVING


def check_health(channel: grpc.Channel, service: str = "", **options: Any) -> Any:
    return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), **options).status


def raw_channel(server: RunningServer, credentials: Credentials) -> grpc.Channel:
    """What a program in another language opens: TLS as Veil asks for it, nothing else of Veil's."""
    tls = grpc.ssl_channel_credentials(credentials.authority_pem, credentials.key_pem(), credentials.certificate_pem)
    return grpc.secure_channel(server.address, tls, [("grpc.ssl_target_name_override", ALPHA.dns)])
