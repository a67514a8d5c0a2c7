"""Who refuses whom under real mutual TLS, with which words on both sides."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509

from tests.unit.wire.calls import ALPHA, Party, check_health, raw_channel
from veil.errors import IdentityError, PeerLost
from veil.identity import authority, certificates
from veil.identity.credentials import Credentials, load_key
from veil.identity.names import Identity, Role
from veil.identity.site import make_request
from veil.wire.channel import RunningServer, open_channel, serve
from veil.wire.status import translated

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
