"""Deadlines, sizes and numbers of calls: what goes beyond is refused, and the server lives."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.unit.mpc.network import Proxy
from tests.unit.wire.calls import ALPHA, Party, raw_channel
from veil.errors import ConfigError, PeerError, PeerLost, WireError
from veil.identity.names import Role
from veil.wire.channel import MAX_MESSAGE_BYTES, RunningServer, open_channel, serve
from veil.wire.status import translated


def test_unary_calls_have_a_deadline(server: RunningServer, party: Party, echo_of: Any) -> None:
    with open_channel(server.address, party("party-beta"), ALPHA) as channel:
        echo = echo_of(channel)
        # gRPC rounds a deadline up on its way
        assert 0 < float(echo.unary("deadline")[0]) < 32
        assert 32 < float(echo.unary("deadline", timeout=500)[0]) < 510
        assert 0 < float(echo.future("deadline")[0]) < 32
        assert float(echo.both("deadline")[0]) > 1e9  # a conversation may last


def test_a_server_far_away_or_busy_is_reached(server: RunningServer, party: Party, echo_of: Any) -> None:
    """TCP, TLS and HTTP/2 take some round trips before the first call, and a call is made once."""
    proxy = Proxy(f"127.0.0.1:{server.port}", delay_s=0.2)
    try:
        with open_channel(proxy.address, party("party-beta"), ALPHA) as channel, translated("alpha"):
            assert echo_of(channel).both("who") == ["veil://trial/party/beta"]
    finally:
        proxy.close()


def test_unary_calls_without_a_deadline_are_refused(server: RunningServer, party: Party, echo_of: Any) -> None:
    with raw_channel(server, party("party-beta")) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            echo_of(channel).unary("who")
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(WireError, match="without a deadline"), translated("alpha"):
            echo_of(channel).unary("who")
        assert echo_of(channel).both("who") == ["veil://trial/party/beta"]


def test_a_deadline_that_passes_is_a_lost_peer(party: Party, echo_of: Any, offering: Any) -> None:
    ended = threading.Event()

    def wait(text: str, context: grpc.ServicerContext) -> str:
        context.add_callback(ended.set)
        ended.wait(30)
        return text

    with (
        serve("127.0.0.1:0", party("party-alpha"), [offering(wait, frozenset(Role))]) as running,
        open_channel(running.address, party("party-beta"), ALPHA) as channel,
        pytest.raises(PeerLost, match="did not answer before the deadline") as caught,
        translated("alpha"),
    ):
        echo_of(channel).unary("x", timeout=0.2)
    assert caught.value.culprits == ("alpha",)
    assert ended.wait(10)


def test_oversize_messages_are_refused_and_the_server_lives(party: Party, echo_of: Any, offering: Any) -> None:
    def grow(text: str, context: grpc.ServicerContext) -> str:
        return str(MAX_MESSAGE_BYTES + 1) if text == "7" else text

    with (
        serve("127.0.0.1:0", party("party-alpha"), [offering(grow, frozenset(Role))]) as running,
        open_channel(running.address, party("party-beta"), ALPHA) as channel,
    ):
        echo = echo_of(channel)
        most = MAX_MESSAGE_BYTES - 5  # tag and length of the field
        assert echo.size(most) == most
        for size_bytes, got in ((most + 1, MAX_MESSAGE_BYTES + 1), (7, MAX_MESSAGE_BYTES + 6)):
            sentence = f"got a message of {got} bytes, expected at most {MAX_MESSAGE_BYTES}.*stream of chunks"
            with pytest.raises(WireError, match=sentence), translated("alpha"):
                echo.size(size_bytes)
        assert echo.size(3) == 3
        # a client without Veil's limits: it is the server that refuses
        with raw_channel(running, party("party-beta")) as unlimited:
            with pytest.raises(WireError, match=f"expected at most {MAX_MESSAGE_BYTES}"), translated("alpha"):
                echo_of(unlimited).size(most + 1, timeout=10)
            assert echo_of(unlimited).size(3, timeout=10) == 3


def test_limits_can_be_lowered_on_either_side(party: Party, echo_of: Any, offering: Any) -> None:
    services = [offering(lambda text, context: text, frozenset(Role))]
    with (
        serve("127.0.0.1:0", party("party-alpha"), services, max_message_bytes=2048) as running,
        open_channel(running.address, party("party-beta"), ALPHA) as wide,
        open_channel(running.address, party("party-beta"), ALPHA, max_message_bytes=1024) as narrow,
    ):
        assert echo_of(wide).size(1500) == 1500
        with pytest.raises(WireError, match="expected at most 2048"), translated("alpha"):
            echo_of(wide).size(3000)
        with pytest.raises(WireError, match="expected at most 1024"), translated("alpha"):
            echo_of(narrow).size(1500)


@pytest.mark.parametrize("limit", [0, 1023, MAX_MESSAGE_BYTES + 1])
def test_limits_cannot_be_raised(server: RunningServer, party: Party, limit: int) -> None:
    with pytest.raises(ConfigError, match="1024 to 4194304"):
        open_channel(server.address, party("party-beta"), ALPHA, max_message_bytes=limit)
    with pytest.raises(ConfigError, match="1024 to 4194304"):
        serve("127.0.0.1:0", party("party-alpha"), [], max_message_bytes=limit)


def test_oversize_metadata_is_refused_and_the_server_lives(server: RunningServer, party: Party, echo_of: Any) -> None:
    with open_channel(server.address, party("party-beta"), ALPHA) as channel:
        with pytest.raises(WireError), translated("alpha"):
            echo_of(channel).unary("who", metadata=(("x-long", "x" * 40_000),))
        assert echo_of(channel).unary("still") == ["still"]


@pytest.mark.parametrize("payload", [b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x0a\x02\xff\xfe"])
def test_garbage_is_an_invalid_argument_and_no_incident(
    server: RunningServer, party: Party, echo_of: Any, caplog: pytest.LogCaptureFixture, payload: bytes
) -> None:
    with open_channel(server.address, party("party-beta"), ALPHA) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            echo_of(channel).raw(payload)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(WireError, match="expected Protocol Buffers"), translated("alpha"):
            echo_of(channel).raw(payload)
        assert echo_of(channel).unary("still") == ["still"]
    assert "Traceback" not in caplog.text


def test_calls_beyond_the_limit_are_told_to_come_again(party: Party, echo_of: Any, offering: Any) -> None:
    entered, release = threading.Event(), threading.Event()

    def hold(text: str, context: grpc.ServicerContext) -> str:
        entered.set()
        release.wait(30)
        return text

    with (
        serve("127.0.0.1:0", party("party-alpha"), [offering(hold, frozenset(Role))], max_workers=1) as running,
        open_channel(running.address, party("party-beta"), ALPHA) as channel,
    ):
        first = threading.Thread(target=echo_of(channel).unary, args=("first",))
        first.start()
        assert entered.wait(10)
        with pytest.raises(PeerError, match=r"as many calls as it may.*try again"), translated("alpha"):
            echo_of(channel).unary("second")
        release.set()
        first.join(10)
        assert not first.is_alive()


@pytest.mark.parametrize("shape", ["unary_unary", "unary_stream", "stream_unary", "stream_stream"])
def test_callers_who_are_not_admitted_occupy_no_worker(
    party: Party, echo_of: Any, offering: Any, shape: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A call without its request would hold a worker for ever, were the request waited for before the door."""
    method = {"unary_unary": "Unary", "unary_stream": "Down", "stream_unary": "Up", "stream_stream": "Both"}[shape]
    stop = threading.Event()

    def never() -> Any:
        stop.wait(30)
        yield from ()

    service = offering(lambda text, _: text, frozenset({Role.PARTY}))
    with (
        serve("127.0.0.1:0", party("party-alpha"), [service], max_workers=2) as running,
        open_channel(running.address, party("client-main"), ALPHA) as client,
        open_channel(running.address, party("party-beta"), ALPHA) as member,
    ):
        calls = [client.stream_stream(f"/{service.name}/{method}")(never()) for _ in range(4)]
        for call in calls:
            with pytest.raises(grpc.RpcError):
                next(call)
        assert echo_of(member).unary("served") == ["served"]
        stop.set()


def test_health_and_reflection_leave_workers_to_the_services(party: Party, echo_of: Any, offering: Any) -> None:
    stop = threading.Event()

    def ask_and_stay() -> Any:
        yield reflection_pb2.ServerReflectionRequest(list_services="")
        stop.wait(30)

    service = offering(lambda text, _: text, frozenset({Role.PARTY}))
    with (
        serve("127.0.0.1:0", party("party-alpha"), [service], max_workers=8) as running,
        open_channel(running.address, party("client-main"), ALPHA) as client,
        open_channel(running.address, party("party-beta"), ALPHA) as member,
    ):
        stub = reflection_pb2_grpc.ServerReflectionStub(client)
        calls = [stub.ServerReflectionInfo(ask_and_stay()) for _ in range(7)]
        answered = 0
        for call in calls:
            with contextlib.suppress(grpc.RpcError):
                next(call)
                answered += 1
        assert answered == 4
        assert echo_of(member).unary("served") == ["served"]
        stop.set()


def test_a_request_that_does_not_come_ends_its_call(
    party: Party, offering: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("veil.wire.requests._REQUEST_WITHIN_S", 0.2)
    stop = threading.Event()

    def never() -> Any:
        stop.wait(30)
        yield from ()

    service = offering(lambda text, _: text, frozenset({Role.PARTY}))
    with (
        serve("127.0.0.1:0", party("party-alpha"), [service], max_workers=1) as running,
        open_channel(running.address, party("party-beta"), ALPHA) as member,
    ):
        with pytest.raises(grpc.RpcError) as cut_off:
            member.stream_unary(f"/{service.name}/Unary")(never(), timeout=20)
        assert cut_off.value.code() is grpc.StatusCode.CANCELLED
        with pytest.raises(WireError, match="without its request"), translated("alpha"):
            member.stream_unary(f"/{service.name}/Unary")(iter(()), timeout=20)
        stop.set()
