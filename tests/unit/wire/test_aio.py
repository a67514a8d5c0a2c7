"""Channels for event loops: identity, deadlines and errors as those of `veil.wire.channel`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.unit.wire.calls import ALPHA, SERVING, Party
from veil.errors import ConfigError, IdentityError, PeerLost
from veil.identity.names import Identity, Role
from veil.wire import aio
from veil.wire.channel import RunningServer
from veil.wire.probe import Route

ELSE = Identity("trial", Role.PARTY, "gamma")


def ask(open_it: Callable[[], grpc.aio.Channel], then: Callable[[Any], Awaitable[Any]]) -> Any:
    async def talk() -> Any:
        async with open_it() as channel:
            return await then(health_pb2_grpc.HealthStub(channel))

    return asyncio.run(talk())


def test_members_are_served(server: RunningServer, party: Party) -> None:
    async def check(stub: Any) -> int:
        return int((await stub.Check(health_pb2.HealthCheckRequest())).status)

    assert ask(lambda: aio.open_channel(server.address, party("party-beta"), ALPHA), check) == SERVING


def test_streams_are_served(server: RunningServer, party: Party) -> None:
    async def watch(stub: Any) -> int:
        call = stub.Watch(health_pb2.HealthCheckRequest(), timeout=20)
        first = await call.read()
        call.cancel()
        return int(first.status)

    assert ask(lambda: aio.open_channel(server.address, party("party-beta"), ALPHA), watch) == SERVING


def test_a_server_that_is_somebody_else_is_not_asked_and_named(server: RunningServer, party: Party) -> None:
    own = party("party-beta")

    async def check(stub: Any) -> None:
        async with aio.translated(str(ELSE), Route(server.address, own, ELSE)):
            await stub.Check(health_pb2.HealthCheckRequest())

    with pytest.raises(IdentityError, match="gamma"):
        ask(lambda: aio.open_channel(server.address, own, ELSE), check)


def test_a_server_without_a_port_for_tokens_takes_none(server: RunningServer, party: Party) -> None:
    async def check(stub: Any) -> None:
        async with aio.translated(str(ALPHA), None):
            await stub.Check(health_pb2.HealthCheckRequest())

    authority = party("party-beta").authority_pem
    with pytest.raises(PeerLost):
        ask(lambda: aio.open_token_channel(server.address, authority, "a-token-of-a-test-01", ALPHA), check)


def test_malformed_addresses_and_tokens(party: Party) -> None:
    own = party("party-beta")
    with pytest.raises(ConfigError, match="address"):
        ask(lambda: aio.open_channel("nowhere", own, ALPHA), lambda stub: stub)
    for token in ("short", "with a space in it, long", "ünïcödé-ünïcödé-ünïcödé"):
        with pytest.raises(ConfigError, match="token") as refused:
            ask(lambda token=token: aio.open_token_channel("127.0.0.1:1", own.authority_pem, token, ALPHA), lambda _: _)
        assert token not in str(refused.value)
