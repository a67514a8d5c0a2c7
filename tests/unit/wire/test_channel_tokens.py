"""A port for bearer tokens: TLS without client certificates, one service, and nothing for anybody else."""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.unit.wire.calls import ALPHA, Party, check_health
from veil.errors import ConfigError, IdentityError, PeerLost
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.wire.admission import bearer_token
from veil.wire.channel import RunningServer, Service, caller, open_channel, open_token_channel, serve
from veil.wire.status import translated

GOOD = "veil_" + "A" * 43
BAD = "veil_" + "B" * 43
OPEN, CLOSED = "test.v1.OpenService", "test.v1.ClosedService"
SHAPES = ["unary", "future", "down", "up", "both"]


def judge(token: str) -> str:
    if token != GOOD:
        raise IdentityError("this sentence must not reach anybody: the token's second half is wrong")
    return "app"


def answer(text: str, context: grpc.ServicerContext) -> str:
    if text == "who":
        return caller(context).uri
    if text == "token":
        return judge(bearer_token(context))
    return text


@pytest.fixture(scope="module")
def tokened(party: Party, offering: Callable[..., Service]) -> Iterator[RunningServer]:
    """Party alpha's server: one service takes tokens, the other does not."""
    members = frozenset({Role.PARTY})
    taking = offering(answer, members, OPEN)
    services = [Service(OPEN, taking.add, members, bearer=judge), offering(answer, members, CLOSED)]
    with serve("127.0.0.1:0", party("party-alpha"), services, token_address="127.0.0.1:0") as running:
        yield running


@pytest.fixture(scope="module")
def authority(party: Party) -> bytes:
    return party("party-alpha").authority_pem


def status_of(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error: Any = caught.value
    return error.code(), error.details()


def port(running: RunningServer) -> str:
    assert running.token_address is not None
    return running.token_address


@pytest.mark.parametrize("shape", SHAPES)
def test_a_valid_token_is_let_in(tokened: RunningServer, authority: bytes, echo_of: Any, shape: str) -> None:
    with open_token_channel(port(tokened), authority, GOOD, ALPHA) as channel:
        assert getattr(echo_of(channel, OPEN), shape)("token")[-1] == "app"


@pytest.mark.parametrize("shape", SHAPES)
def test_a_token_gives_nobody_an_identity(tokened: RunningServer, authority: bytes, echo_of: Any, shape: str) -> None:
    with (
        open_token_channel(port(tokened), authority, GOOD, ALPHA) as channel,
        pytest.raises(IdentityError, match="without a client certificate"),
        translated("alpha"),
    ):
        getattr(echo_of(channel, OPEN), shape)("who")


def test_every_wrong_token_gets_the_same_answer(
    tokened: RunningServer, authority: bytes, echo_of: Any, caplog: pytest.LogCaptureFixture
) -> None:
    roots = grpc.ssl_channel_credentials(authority)
    headers = [
        (),
        (("authorization", f"Bearer {BAD}"),),
        (("authorization", GOOD),),
        (("authorization", "Bearer "),),
        (("authorization", f"Basic {GOOD}"),),
        (("authorization", f"Bearer  {GOOD}"),),
        (("authorization", f"Bearer {GOOD} "),),
        (("authorization", "Bearer " + "A" * 5000),),
        (("authorization", f"Bearer {GOOD}"), ("authorization", f"Bearer {GOOD}")),
        (("veil-token", GOOD),),
    ]
    with (
        caplog.at_level(logging.DEBUG, "veil"),
        grpc.secure_channel(port(tokened), roots, [("grpc.ssl_target_name_override", ALPHA.dns)]) as channel,
    ):
        found = {
            status_of(
                lambda sent=sent, service=service: echo_of(channel, service).unary("x", metadata=sent, timeout=10)
            )
            for sent in headers
            for service in (OPEN, CLOSED)
        }
        # and one that is right, at a service that takes none
        right = (("authorization", f"Bearer {GOOD}"),)
        found.add(status_of(lambda: echo_of(channel, CLOSED).unary("x", metadata=right, timeout=10)))
        # while at the other it opens, with any case of the word (RFC 9110, section 11.1)
        for word in ("Bearer", "bearer"):
            sent = (("authorization", f"{word} {GOOD}"),)
            assert echo_of(channel, OPEN).unary("token", metadata=sent, timeout=10) == ["app"]
    (status, sentence) = found.pop()
    assert not found
    assert status is grpc.StatusCode.UNAUTHENTICATED
    assert sentence == "got no client certificate and no valid token, expected one of them"
    assert GOOD not in caplog.text and BAD not in caplog.text


@pytest.mark.parametrize("token", [GOOD, None], ids=["a token", "no token"])
def test_health_and_reflection_are_for_members(tokened: RunningServer, authority: bytes, token: str | None) -> None:
    roots = grpc.ssl_channel_credentials(authority)
    sent = (("authorization", f"Bearer {token}"),) if token else ()
    with grpc.secure_channel(port(tokened), roots, [("grpc.ssl_target_name_override", ALPHA.dns)]) as channel:
        status, _ = status_of(lambda: check_health(channel, metadata=sent, timeout=10))
        assert status is grpc.StatusCode.UNAUTHENTICATED
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        status, _ = status_of(lambda: list(stub.ServerReflectionInfo(iter([ask]), metadata=sent, timeout=10)))
        assert status is grpc.StatusCode.UNAUTHENTICATED


def test_strangers_cannot_fill_the_log(
    tokened: RunningServer, authority: bytes, echo_of: Any, caplog: pytest.LogCaptureFixture
) -> None:
    roots = grpc.ssl_channel_credentials(authority)
    with (
        caplog.at_level(logging.INFO, "veil.wire"),
        grpc.secure_channel(port(tokened), roots, [("grpc.ssl_target_name_override", ALPHA.dns)]) as channel,
    ):
        for _ in range(60):
            status_of(lambda: echo_of(channel, OPEN).unary("x", timeout=10))
    # one a second at most; 60 refusals take no 20 seconds
    assert len(caplog.records) <= 20


def test_the_mutual_port_takes_no_token(tokened: RunningServer, authority: bytes, echo_of: Any, party: Party) -> None:
    with (
        open_token_channel(tokened.address, authority, GOOD, ALPHA) as channel,
        pytest.raises(PeerLost),
        translated("alpha"),
    ):
        echo_of(channel, OPEN).unary("token")
    # a member's own certificate counts there, whatever token it sends
    with open_channel(tokened.address, party("party-beta"), ALPHA) as channel:
        sent = (("authorization", f"Bearer {BAD}"),)
        assert echo_of(channel, OPEN).unary("who", metadata=sent) == ["veil://trial/party/beta"]
        assert echo_of(channel, CLOSED).unary("who") == ["veil://trial/party/beta"]
        with pytest.raises(IdentityError, match="no valid token"), translated("alpha"):
            # and a token beside a certificate is no token call
            echo_of(channel, OPEN).unary("token", metadata=(("authorization", f"Bearer {GOOD}"),))


def test_a_certificate_does_not_help_at_the_token_port(tokened: RunningServer, party: Party, echo_of: Any) -> None:
    with (
        open_channel(port(tokened), party("party-beta"), ALPHA) as channel,
        pytest.raises(IdentityError, match="no valid token"),
        translated("alpha"),
    ):
        echo_of(channel, OPEN).unary("who")


def test_a_token_is_not_sent_to_another_server(tokened: RunningServer, authority: bytes, echo_of: Any) -> None:
    with (
        open_token_channel(port(tokened), authority, GOOD, Identity("trial", Role.PARTY, "beta")) as channel,
        pytest.raises(PeerLost),
        translated("beta"),
    ):
        echo_of(channel, OPEN).unary("token")


def test_the_server_is_of_the_authority_that_the_client_trusts(
    tokened: RunningServer, another: Any, echo_of: Any
) -> None:
    foreign = Credentials.load(another / "party-alpha").authority_pem
    with (
        open_token_channel(port(tokened), foreign, GOOD, ALPHA) as channel,
        pytest.raises(PeerLost),
        translated("alpha"),
    ):
        echo_of(channel, OPEN).unary("token")


def test_the_token_port_speaks_tls_only(tokened: RunningServer, echo_of: Any) -> None:
    with grpc.insecure_channel(port(tokened)) as channel:
        sent = (("authorization", f"Bearer {GOOD}"),)
        status, _ = status_of(lambda: echo_of(channel, OPEN).unary("token", metadata=sent, timeout=5))
    assert status is grpc.StatusCode.UNAVAILABLE
    host, _, number = port(tokened).rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((host, int(number)), timeout=5) as plain, context.wrap_socket(plain) as secure:
        assert secure.version() == "TLSv1.3"


def test_a_call_meant_for_another_is_refused_with_a_token_too(
    tokened: RunningServer, authority: bytes, echo_of: Any
) -> None:
    with open_token_channel(port(tokened), authority, GOOD, ALPHA) as channel:
        sent = (("veil-expected-peer", "veil://trial/party/beta"),)
        # what the channel itself says comes in addition: two statements are one too many
        status, _ = status_of(lambda: echo_of(channel, OPEN).unary("token", metadata=sent))
    assert status is grpc.StatusCode.FAILED_PRECONDITION


def test_both_or_neither_in_the_configuration(party: Party, offering: Callable[..., Service]) -> None:
    plain = offering(answer, frozenset({Role.PARTY}), OPEN)
    with pytest.raises(ConfigError, match="expected both or neither"):
        serve("127.0.0.1:0", party("party-alpha"), [plain], token_address="127.0.0.1:0")
    taking = Service(OPEN, plain.add, plain.roles, bearer=judge)
    with pytest.raises(ConfigError, match="expected both or neither"):
        serve("127.0.0.1:0", party("party-alpha"), [taking])


def test_a_taken_token_address_is_told(tokened: RunningServer, party: Party, offering: Callable[..., Service]) -> None:
    plain = offering(answer, frozenset({Role.PARTY}), OPEN)
    taking = Service(OPEN, plain.add, plain.roles, bearer=judge)
    with pytest.raises(ConfigError, match="no listening socket"):
        serve("127.0.0.1:0", party("party-alpha"), [taking], token_address=port(tokened))


def test_without_the_option_there_is_one_port(server: RunningServer) -> None:
    assert server.token_address is None


@pytest.mark.parametrize("token", ["", "short", "with a space in it, long", "ä" * 20, "x" * 257, "line\nbreak" * 3])
def test_what_can_be_no_token_is_not_sent(authority: bytes, token: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_token_channel("127.0.0.1:1", authority, token, ALPHA)
    assert not token or token not in str(caught.value)
