"""Servers and channels with real mutual TLS: what works, which roles are admitted, starting and stopping."""

from __future__ import annotations

import logging
import socket
import threading
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.unit.wire.calls import ALPHA, SERVING, Party, check_health
from veil.errors import ConfigError, IdentityError, PeerLost
from veil.identity.names import Identity, Role
from veil.wire.channel import RunningServer, Service, open_channel, serve
from veil.wire.status import translated

# --- what works


@pytest.mark.parametrize("shape", ["unary", "future", "down", "up", "both"])
def test_a_member_of_an_admitted_role_is_served(server: RunningServer, party: Party, echo_of: Any, shape: str) -> None:
    for folder in ("party-beta", "coordinator-main"):
        credentials = party(folder)
        with open_channel(server.address, credentials, ALPHA) as channel:
            assert getattr(echo_of(channel), shape)("who")[-1] == credentials.identity.uri


@pytest.mark.parametrize("role", list(Role))
def test_health_and_reflection_are_open_to_every_role(server: RunningServer, party: Party, role: Role) -> None:
    credentials = party("party-beta" if role is Role.PARTY else f"{role}-main")
    with open_channel(server.address, credentials, ALPHA) as channel:
        assert check_health(channel) == SERVING
        assert check_health(channel, "test.v1.EchoService") == SERVING
        with pytest.raises(grpc.RpcError) as caught:
            check_health(channel, "no.such.Service")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        answers = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]))
        listed = {service.name for service in next(iter(answers)).list_services_response.service}
        assert listed == {
            "test.v1.EchoService",
            "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }


def test_watching_health_occupies_no_worker(party: Party) -> None:
    with (
        serve("127.0.0.1:0", party("party-alpha"), [], max_workers=1, max_concurrent_rpcs=4) as running,
        open_channel(running.address, party("party-beta"), ALPHA) as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == SERVING
        assert check_health(channel) == SERVING
        running.set_serving("", serving=False)
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()


# --- roles


@pytest.mark.parametrize("shape", ["unary", "future", "down", "up", "both"])
def test_other_roles_are_refused_on_both_sides(
    server: RunningServer, party: Party, echo_of: Any, caplog: pytest.LogCaptureFixture, shape: str
) -> None:
    with (
        caplog.at_level(logging.WARNING, "veil.wire"),
        open_channel(server.address, party("client-main"), ALPHA) as channel,
        pytest.raises(
            IdentityError, match=r"got a call of veil://trial/client/main.*expected role coordinator or party"
        ),
        translated("alpha"),
    ):
        getattr(echo_of(channel), shape)("who")
    assert "veil://trial/party/alpha refused veil://trial/client/main" in caplog.text
    assert "expected role coordinator or party" in caplog.text


def test_a_refused_role_gets_permission_denied(server: RunningServer, party: Party, echo_of: Any) -> None:
    with (
        open_channel(server.address, party("dealer-main"), ALPHA) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        echo_of(channel).unary("who")
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_a_service_that_nobody_declared_admits_nobody(party: Party, echo_of: Any, offering: Any) -> None:
    declared: Service = offering(lambda text, context: text, frozenset(Role))
    hidden: Service = offering(lambda text, context: text, frozenset(Role), "test.v1.HiddenService")

    def add_both(to: grpc.Server) -> None:
        declared.add(to)
        hidden.add(to)

    services = [Service(declared.name, add_both, declared.roles)]
    with (
        serve("127.0.0.1:0", party("party-alpha"), services) as running,
        open_channel(running.address, party("party-beta"), ALPHA) as channel,
    ):
        assert echo_of(channel).unary("hello") == ["hello"]
        with pytest.raises(IdentityError, match="expected role nobody"), translated("alpha"):
            echo_of(channel, "test.v1.HiddenService").unary("hello")


# --- starting and stopping


def test_a_port_is_listened_at_once(server: RunningServer, party: Party) -> None:
    with pytest.raises(ConfigError, match="no listening socket"):
        serve(server.address, party("party-alpha"), [])


@pytest.mark.parametrize(
    "address",
    ["", "127.0.0.1", ":0", "127.0.0.1:", "127.0.0.1:65536", "unix:/tmp/x", "dns:///a:1", "::1:80", "a b:1", "a:-1"],
)
def test_malformed_addresses_are_refused(party: Party, address: str) -> None:
    with pytest.raises(ConfigError, match="got"):
        open_channel(address, party("party-beta"), ALPHA)
    with pytest.raises(ConfigError, match="got"):
        serve(address, party("party-alpha"), [])


def test_services_must_be_named_once_and_admit_somebody(party: Party, offering: Any) -> None:
    one: Service = offering(lambda text, context: text, frozenset(Role))
    for services in (
        [one, one],
        [Service(one.name, one.add, frozenset())],
        [Service("", one.add, one.roles)],
        [Service("grpc.health.v1.Health", one.add, one.roles)],
    ):
        with pytest.raises(ConfigError):
            serve("127.0.0.1:0", party("party-alpha"), services)
    for workers, calls in ((0, None), (4, 3), (100_000, None)):
        with pytest.raises(ConfigError):
            serve("127.0.0.1:0", party("party-alpha"), [], max_workers=workers, max_concurrent_rpcs=calls)


def test_a_stopped_server_is_a_lost_peer(party: Party, echo_of: Any, offering: Any) -> None:
    entered = threading.Event()

    def hold(text: str, context: grpc.ServicerContext) -> str:
        ended = threading.Event()
        context.add_callback(ended.set)
        entered.set()
        ended.wait(30)
        return text

    running = serve("127.0.0.1:0", party("party-alpha"), [offering(hold, frozenset(Role))])
    caught: list[BaseException] = []

    def talk() -> None:
        try:
            with translated("alpha"):
                echo_of(channel).both("x")
        except PeerLost as error:
            caught.append(error)

    with open_channel(running.address, party("party-beta"), ALPHA) as channel:
        caller = threading.Thread(target=talk)
        caller.start()
        assert entered.wait(10)
        running.stop(0)
        assert running.wait(10)
        caller.join(20)
        assert [type(error) for error in caught] == [PeerLost]
        with pytest.raises(PeerLost), translated("alpha"):
            echo_of(channel).unary("x")


def test_ipv6_addresses_work(party: Party) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 loopback on this machine")
    with (
        serve("[::1]:0", party("party-alpha"), []) as running,
        open_channel(running.address, party("party-beta"), ALPHA) as channel,
    ):
        assert running.address == f"[::1]:{running.port}"
        assert check_health(channel) == SERVING
        with (
            open_channel(running.address, party("party-beta"), Identity("trial", Role.PARTY, "gamma")) as wrong,
            pytest.raises(IdentityError, match="got veil://trial/party/alpha"),
            translated("gamma"),
        ):
            check_health(wrong)
