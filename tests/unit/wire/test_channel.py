"""Servers and channels with real mutual TLS: what works, and who is refused with which words on both sides."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from veil.errors import ConfigError, IdentityError, PeerError, PeerLost, WireError
from veil.identity import authority, certificates
from veil.identity.credentials import Credentials, load_key
from veil.identity.names import Identity, Role
from veil.identity.site import make_request
from veil.wire.channel import MAX_MESSAGE_BYTES, RunningServer, Service, open_channel, serve
from veil.wire.status import translated

ALPHA = Identity("trial", Role.PARTY, "alpha")
Party = Callable[[str], Credentials]
SERVING = health_pb2.HealthCheckResponse.SERVING


def check_health(channel: grpc.Channel, service: str = "", **options: Any) -> Any:
    return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service), **options).status


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


# --- whom the client reaches


@pytest.mark.parametrize("shape", ["unary", "future", "down", "up", "both"])
@pytest.mark.parametrize(
    "expect",
    [Identity("trial", Role.PARTY, "gamma"), Identity("trial", Role.DEALER, "alpha")],
    ids=["another name", "another role"],
)
def test_a_server_with_another_identity_is_refused_on_both_sides(
    server: RunningServer,
    party: Party,
    echo_of: Any,
    caplog: pytest.LogCaptureFixture,
    expect: Identity,
    shape: str,
) -> None:
    with (
        caplog.at_level(logging.WARNING, "veil.wire"),
        open_channel(server.address, party("party-beta"), expect) as channel,
        pytest.raises(IdentityError, match=f"got veil://trial/party/alpha at 127.0.0.1:.*, expected {expect}"),
        translated("the other"),
    ):
        getattr(echo_of(channel), shape)("who")
    # the server never saw the call, but was told of it
    assert f"refused veil://trial/party/beta, which expected {expect}" in caplog.text


def test_grpc_itself_refuses_a_server_with_another_identity(server: RunningServer, party: Party, echo_of: Any) -> None:
    expect = Identity("trial", Role.PARTY, "gamma")
    with (
        open_channel(server.address, party("party-beta"), expect) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        echo_of(channel).unary("who")
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("name", ["veil://trial/party/gamma", "junk, forged log line", "veil://trial/party/alpha, x"])
def test_metadata_that_means_somebody_else_is_refused_and_logged(
    server: RunningServer, party: Party, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    with (
        raw_channel(server, party("party-beta")) as channel,
        caplog.at_level(logging.WARNING, "veil.wire"),
        pytest.raises(grpc.RpcError) as caught,
    ):
        check_health(channel, timeout=5, metadata=(("veil-expected-peer", name),))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "got veil://trial/party/alpha, expected" in caplog.text
    assert "junk" not in caplog.text


def test_another_consortium_is_refused(another: Path, party: Party, echo_of: Any, offering: Any) -> None:
    services = [offering(lambda text, context: text, frozenset(Role))]
    with (
        serve("127.0.0.1:0", Credentials.load(another / "party-alpha"), services) as running,
        open_channel(running.address, party("party-beta"), ALPHA) as channel,
        pytest.raises(IdentityError, match="our authority did not sign, expected one of veil://trial/party/alpha"),
        translated("alpha"),
    ):
        echo_of(channel).unary("who")


def test_an_expired_server_is_refused(aged: tuple[Path, dict[str, Credentials]], echo_of: Any) -> None:
    folder, expired = aged
    with (
        serve("127.0.0.1:0", expired["party-alpha"], []) as running,
        open_channel(running.address, Credentials.load(folder / "party-beta"), ALPHA) as channel,
        pytest.raises(IdentityError, match=r"has expired, expected one of veil://trial/party/alpha.*veil certs renew"),
        translated("alpha"),
    ):
        check_health(channel)


def test_nobody_at_the_address_is_a_lost_peer(party: Party, echo_of: Any) -> None:
    with socket.socket() as placeholder:
        placeholder.bind(("127.0.0.1", 0))  # taken, but not listening
        address = f"127.0.0.1:{placeholder.getsockname()[1]}"
        with (
            open_channel(address, party("party-beta"), ALPHA) as channel,
            pytest.raises(PeerLost, match="alpha cannot be reached") as caught,
            translated("alpha"),
        ):
            echo_of(channel).unary("who")
    assert caught.value.culprits == ("alpha",)


def test_a_server_without_tls_is_refused(party: Party, echo_of: Any) -> None:
    def babble(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(ConnectionError):
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(4096):
                    pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=babble, args=(listener,))
        thread.start()
        with (
            open_channel(f"127.0.0.1:{listener.getsockname()[1]}", party("party-beta"), ALPHA) as channel,
            pytest.raises(IdentityError, match="no TLS of Veil's kind"),
            translated("alpha"),
        ):
            echo_of(channel).unary("who")
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)
    assert not thread.is_alive()


# --- whom the server admits


def raw_channel(server: RunningServer, credentials: Credentials) -> grpc.Channel:
    """What a program in another language opens: TLS as Veil asks for it, nothing else of Veil's."""
    tls = grpc.ssl_channel_credentials(credentials.authority_pem, credentials.key_pem(), credentials.certificate_pem)
    return grpc.secure_channel(server.address, tls, [("grpc.ssl_target_name_override", ALPHA.dns)])


def test_a_plain_grpc_client_is_served(server: RunningServer, party: Party, echo_of: Any) -> None:
    with raw_channel(server, party("party-beta")) as channel:
        assert echo_of(channel).unary("who", timeout=10) == ["veil://trial/party/beta"]


def test_a_client_without_a_certificate_is_refused(server: RunningServer, party: Party) -> None:
    tls = grpc.ssl_channel_credentials(party("party-beta").authority_pem)
    options = [("grpc.ssl_target_name_override", ALPHA.dns)]
    with grpc.secure_channel(server.address, tls, options) as channel, pytest.raises(grpc.RpcError) as caught:
        check_health(channel, timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    context = ssl.create_default_context(cadata=party("party-beta").authority_pem.decode())
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", server.port), 10) as plain,
        context.wrap_socket(plain, server_hostname=ALPHA.dns) as secure,
    ):
        try:
            assert secure.recv(1) == b""
        except OSError as error:
            assert isinstance(error, ConnectionError | ssl.SSLError)  # closed without ceremony


def test_a_client_without_tls_is_refused(server: RunningServer) -> None:
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        check_health(channel, timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_client_of_another_authority_is_refused(another: Path, consortium: Path, echo_of: Any) -> None:
    # the client trusts the server's authority, but the server does not trust the client's
    stranger = Credentials.load(another / "party-beta")
    mixed = Credentials(
        ALPHA,
        Credentials.load(consortium / "party-alpha").certificate_pem,
        stranger.authority_pem,
        Credentials.load(consortium / "party-alpha")._key,
    )
    with serve("127.0.0.1:0", mixed, []) as running:
        honest = Credentials.load(consortium / "party-beta")
        with (
            open_channel(running.address, honest, ALPHA) as channel,
            pytest.raises(
                IdentityError, match=r"ended the connection on seeing our certificate of.*authority\.pem differs"
            ),
            translated("alpha"),
        ):
            check_health(channel)
        with (
            open_channel(running.address, stranger, ALPHA) as channel,
            pytest.raises(IdentityError, match="our authority did not sign"),
            translated("alpha"),
        ):
            check_health(channel)


def test_an_expired_client_is_refused(aged: tuple[Path, dict[str, Credentials]]) -> None:
    folder, expired = aged
    with (
        serve("127.0.0.1:0", Credentials.load(folder / "party-alpha"), []) as running,
        open_channel(running.address, expired["party-beta"], ALPHA) as channel,
        pytest.raises(IdentityError, match=r"our own cert\.pem of veil://trial/party/beta, which expired.*certs renew"),
        translated("alpha"),
    ):
        check_health(channel)


def test_a_certificate_that_expires_on_an_open_connection_is_refused(
    server: RunningServer,
    party: Party,
    echo_of: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with open_channel(server.address, party("party-beta"), ALPHA) as channel:
        assert echo_of(channel).unary("who") == ["veil://trial/party/beta"]
        later = certificates.parse_certificate(party("party-beta").certificate_pem, "x").not_valid_after_utc
        monkeypatch.setattr(certificates, "now", lambda: later.replace(year=later.year + 1))
        with pytest.raises(IdentityError, match=r"whose certificate is valid from.*renew it"), translated("alpha"):
            echo_of(channel).unary("who")
        with pytest.raises(grpc.RpcError) as caught:
            echo_of(channel).unary("who")
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "refused a caller" in caplog.text


@pytest.mark.parametrize(
    ("names", "status", "sentence"),
    [
        (
            ["veil://other/party/beta", "beta.party.other.veil.internal"],
            grpc.StatusCode.PERMISSION_DENIED,
            "got a call of veil://other/party/beta, expected a member of consortium trial",
        ),
        (
            ["veil://trial/party/beta", "veil://trial/operator/main", "beta.party.trial.veil.internal"],
            grpc.StatusCode.UNAUTHENTICATED,
            "got 2 URIs",
        ),
        (["beta.party.trial.veil.internal"], grpc.StatusCode.UNAUTHENTICATED, "got 0 URIs"),
        (["veil://trial/party/beta"], grpc.StatusCode.UNAUTHENTICATED, "0 DNS names"),
        (
            ["veil://trial/operator/main", "beta.party.trial.veil.internal"],
            grpc.StatusCode.UNAUTHENTICATED,
            "to match veil://trial/operator/main",
        ),
        (
            ["veil://trial/king/beta", "beta.king.trial.veil.internal"],
            grpc.StatusCode.UNAUTHENTICATED,
            "got role 'king'",
        ),
    ],
)
def test_names_that_the_authority_should_never_have_signed_are_refused(
    server: RunningServer,
    consortium: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    names: list[str],
    status: grpc.StatusCode,
    sentence: str,
) -> None:
    beta = Identity("trial", Role.PARTY, "beta")
    request = make_request(tmp_path, beta)
    forged = [x509.UniformResourceIdentifier(n) if "://" in n else x509.DNSName(n) for n in names]
    monkeypatch.setattr(authority, "alternative_names", lambda identity: x509.SubjectAlternativeName(forged))
    pem = authority.sign_request(consortium / "authority", request.read_bytes(), role=beta.role, name=beta.name)
    authority_pem = (consortium / "authority" / "authority.pem").read_bytes()
    credentials = Credentials(beta, pem, authority_pem, load_key(tmp_path / "key.pem"))
    with (
        caplog.at_level(logging.WARNING, "veil.wire"),
        open_channel(server.address, credentials, ALPHA) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        check_health(channel)
    assert caught.value.code() is status
    assert sentence in str(caught.value.details())
    assert sentence in caplog.text
    # nor would the holder's own program take such a certificate
    with pytest.raises(IdentityError):
        certificates.verify(pem, authority_pem)


# --- limits


def test_unary_calls_have_a_deadline(server: RunningServer, party: Party, echo_of: Any) -> None:
    with open_channel(server.address, party("party-beta"), ALPHA) as channel:
        echo = echo_of(channel)
        # gRPC rounds a deadline up on its way
        assert 0 < float(echo.unary("deadline")[0]) < 32
        assert 32 < float(echo.unary("deadline", timeout=500)[0]) < 510
        assert 0 < float(echo.future("deadline")[0]) < 32
        assert float(echo.both("deadline")[0]) > 1e9  # a conversation may last


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
    monkeypatch.setattr("veil.wire.admission._REQUEST_WITHIN_S", 0.2)
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
