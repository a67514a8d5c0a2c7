"""Streams that go on beside gRPC: the same messages, who is let in, and what happens when the direct way fails."""

from __future__ import annotations

import hashlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from tests.unit.mpc.network import Proxy
from veil.errors import IdentityError, PeerLost
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.identity.trial import make_consortium
from veil.mpc.grpc_mesh import GrpcMesh, MeshServicer
from veil.mpc.mesh_dialler import _Direct
from veil.mpc.mesh_frames import MOST_BYTES
from veil.mpc.mesh_outbox import Stream
from veil.mpc.mesh_pair import Pair
from veil.wire.channel import RunningServer, serve
from veil.wire.direct import DirectStream, dial
from veil.wire.direct_listener import DirectListener
from veil.wire.tls import direct_context, probe_context

NAMES = ("alpha", "beta", "gamma")
DIGEST = bytes(32)


class Site:
    """One party: gRPC server, direct listener, mesh; others reach the listener through a proxy."""

    def __init__(self, name: str, credentials: Credentials) -> None:
        self.name, self.credentials = name, credentials
        self.servicer = MeshServicer()
        self.server: RunningServer = serve("127.0.0.1:0", credentials, [self.servicer.service()])
        self.listener = self.servicer.listen_direct("127.0.0.1:0", credentials)
        self.proxy = Proxy(f"127.0.0.1:{self.listener.port}")
        self.servicer.direct_port = int(self.proxy.address.rpartition(":")[2])

    def close(self) -> None:
        self.proxy.close()
        self.listener.close()
        self.server.stop(0)


@pytest.fixture
def sites(credentials: dict[str, Credentials]) -> Iterator[list[Site]]:
    found = [Site(name, credentials[f"party-{name}"]) for name in NAMES]
    yield found
    for site in found:
        site.close()


def connected(sites: list[Site], *, direct: bool = True) -> list[GrpcMesh]:
    roster = {site.name: f"127.0.0.1:{site.server.port}" for site in sites}
    for site in sites:
        site.servicer.direct_port *= direct
    meshes = [GrpcMesh("job", DIGEST, site.name, roster, site.credentials, site.servicer) for site in sites]
    with ThreadPoolExecutor(len(sites)) as pool:
        list(pool.map(lambda mesh: mesh.connect(20), meshes))
    return meshes


def settle(meshes: list[GrpcMesh], streams: int = 2) -> None:
    """Returns when every pair has had so many streams, at both ends."""
    until = time.monotonic() + 10
    while any(pair.streams < streams for mesh in meshes for pair in mesh._pairs.values()):
        assert time.monotonic() < until
        time.sleep(0.01)


def close_all(meshes: list[GrpcMesh]) -> None:
    with ThreadPoolExecutor(len(meshes)) as pool:
        list(pool.map(lambda mesh: mesh.close(), meshes))


def message(sender: int, number: int) -> bytes:
    size = (0, 17, 9_000, 40_000, 2_500_000)[number % 5]
    return hashlib.shake_128(bytes([sender, number])).digest(size)


def exchange(meshes: list[GrpcMesh], count: int) -> None:
    def act(rank: int) -> None:
        others = [peer for peer in range(len(meshes)) if peer != rank]
        for number in range(count):
            for peer in others:
                meshes[rank].send(peer, message(rank, number))
            for peer in others:
                assert meshes[rank].recv(peer, 30) == message(peer, number)

    with ThreadPoolExecutor(len(meshes)) as pool:
        list(pool.map(act, range(len(meshes))))


def test_messages_between_all_pairs_pass_beside_grpc(sites: list[Site]) -> None:
    meshes = connected(sites)
    exchange(meshes, 40)  # while it changes over
    settle(meshes)
    before = sites[0].proxy.passed_bytes
    exchange(meshes, 10)
    # What alpha exchanges with two others, both ways, is in the direct connections now.
    assert sites[0].proxy.passed_bytes - before > 4 * sum(len(message(0, number)) for number in range(10))
    close_all(meshes)


def test_who_has_no_port_stays_on_grpc(sites: list[Site]) -> None:
    meshes = connected(sites[:2], direct=False)
    exchange(meshes, 5)
    assert not sites[0].proxy.connections and meshes[1]._pairs[0].streams == 1
    close_all(meshes)


def test_a_port_that_nobody_answers_leaves_the_pair_on_grpc(
    sites: list[Site], caplog: pytest.LogCaptureFixture
) -> None:
    sites[0].proxy.refuse()
    meshes = connected(sites[:2])
    exchange(meshes, 5)
    until = time.monotonic() + 10
    while "going on over gRPC" not in caplog.text and time.monotonic() < until:
        time.sleep(0.01)
    assert "alpha is not reached at its direct port, going on over gRPC" in caplog.text
    exchange(meshes, 5)
    close_all(meshes)


def test_messages_arrive_once_and_in_order_across_cuts(sites: list[Site], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("veil.mpc.pauses.MOST_S", 0.02)
    meshes, done = connected(sites[:2]), threading.Event()
    settle(meshes)

    def cut() -> None:
        while not done.wait(0.2):
            sites[0].proxy.cut()

    cutter = threading.Thread(target=cut)
    cutter.start()
    try:
        exchange(meshes, 100)
    finally:
        done.set()
        cutter.join()
    assert meshes[1]._pairs[0].streams > 3  # back on gRPC, and from there to the port again
    close_all(meshes)


def test_a_port_whose_streams_keep_breaking_is_left_alone(
    sites: list[Site], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("veil.mpc.pauses.MOST_S", 0.02)
    meshes, until = connected(sites[:2]), time.monotonic() + 20
    pair = meshes[1]._pairs[0]
    while "beside gRPC keep breaking, going on over gRPC" not in caplog.text and time.monotonic() < until:
        if pair.streams % 2 == 0:
            sites[0].proxy.cut()
        time.sleep(0.01)
    exchange(meshes, 10)
    assert pair.streams == 9 and sites[0].proxy.connections == 4
    close_all(meshes)


def test_a_stream_that_comes_up_while_the_mesh_closes_is_closed(
    sites: list[Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    attach, closers = Pair.attach, list[threading.Thread]()

    def late(pair: Pair, stream: Stream, received: int) -> None:
        if pair.streams == 1 and pair.peer == "alpha":
            until = time.monotonic() + 20
            while pair not in meshes[1]._pairs.values() and time.monotonic() < until:
                time.sleep(0.01)
            closers.append(threading.Thread(target=meshes[1].close))
            closers[0].start()
            closers[0].join(20)
        attach(pair, stream, received)

    roster = {site.name: f"127.0.0.1:{site.server.port}" for site in sites[:2]}
    meshes = [GrpcMesh("job", DIGEST, site.name, roster, site.credentials, site.servicer) for site in sites[:2]]
    monkeypatch.setattr(Pair, "attach", late)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda mesh: mesh.connect(20), meshes))
    dialler, until = meshes[1]._diallers[0], time.monotonic() + 20
    while not (isinstance(dialler._open, _Direct) and dialler._open._connection._closed):
        assert time.monotonic() < until
        time.sleep(0.01)
    meshes[0].close()


def test_the_last_message_of_a_party_that_leaves_arrives(sites: list[Site]) -> None:
    for leaver, stayer in ((0, 1), (1, 0)):
        meshes = connected(sites[:2])
        settle(meshes)
        meshes[leaver].send(stayer, b"x" * 3_000_000)
        meshes[leaver].close()
        assert len(meshes[stayer].recv(leaver, 10)) == 3_000_000
        with pytest.raises(PeerLost, match="closed"):
            meshes[stayer].recv(leaver, 10)
        meshes[stayer].close()


def test_nobody_but_a_party_of_the_job_gets_a_stream(
    sites: list[Site], credentials: dict[str, Credentials], caplog: pytest.LogCaptureFixture
) -> None:
    from veil.mpc import mesh_frames

    meshes = connected(sites[:2])
    settle(meshes)
    alpha = Identity("trial", Role.PARTY, "alpha")
    address = f"127.0.0.1:{sites[0].listener.port}"
    for name in ("dealer-main", "party-stranger", "party-gamma"):
        stream = dial(address, credentials[name], alpha, most_bytes=MOST_BYTES)
        stream.send(mesh_frames.hello(meshes[1].hello(meshes[1]._pairs[0], 0)))
        assert list(stream.frames()) == []  # ended without an answer
        stream.close()
    assert caplog.text.count("refused a direct stream") == 3
    exchange(meshes, 3)
    close_all(meshes)


@pytest.fixture
def listener(credentials: dict[str, Credentials]) -> Iterator[DirectListener]:
    def echo(peer: Identity, stream: DirectStream) -> None:
        with suppress(OSError):
            for frame in stream.frames():
                stream.send(frame)

    found = DirectListener("127.0.0.1:0", credentials["party-alpha"], echo, most_bytes=1000)
    yield found
    found.close()


def test_the_server_must_be_who_is_expected(listener: DirectListener, credentials: dict[str, Credentials]) -> None:
    for name, role in (("gamma", Role.PARTY), ("alpha", Role.DEALER)):
        with pytest.raises(IdentityError, match="expected"):
            dial(
                f"127.0.0.1:{listener.port}",
                credentials["party-beta"],
                Identity("trial", role, name),
                most_bytes=1000,
            )


def test_other_consortia_and_the_nameless_are_refused(
    listener: DirectListener, credentials: dict[str, Credentials], tmp_path_factory: pytest.TempPathFactory
) -> None:
    alpha = Identity("trial", Role.PARTY, "alpha")
    members = make_consortium(tmp_path_factory.mktemp("other"), "trial", ("alpha", "beta"))
    other = Credentials.load(next(folder for identity, folder in members.items() if identity.name == "beta"))
    with pytest.raises(IdentityError, match="certificate"):
        dial(f"127.0.0.1:{listener.port}", other, alpha, most_bytes=1000)
    # Whoever takes the server on trust still has to show a certificate of its authority, and speak TLS 1.3.
    careless = direct_context(other, server=False)
    careless.check_hostname, careless.verify_mode = False, ssl.CERT_NONE
    old = probe_context(credentials["party-beta"])
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.check_hostname, bare.verify_mode = False, ssl.CERT_NONE
    for context in (careless, old, bare):
        assert _answer(listener.port, context) == b""
    honest = direct_context(credentials["party-beta"], server=False)
    honest.check_hostname = False
    assert _answer(listener.port, honest) == b"\x00\x00\x00\x02ab"


def _answer(port: int, context: ssl.SSLContext) -> bytes:
    try:
        with socket.create_connection(("127.0.0.1", port), 10) as plain, context.wrap_socket(plain) as secure:
            secure.sendall(b"\x00\x00\x00\x02ab")
            return secure.recv(64)
    except OSError:
        return b""


def test_a_frame_that_is_too_long_ends_the_connection(
    listener: DirectListener, credentials: dict[str, Credentials]
) -> None:
    alpha = Identity("trial", Role.PARTY, "alpha")
    stream = dial(f"127.0.0.1:{listener.port}", credentials["party-beta"], alpha, most_bytes=1000)
    frames = stream.frames()
    for size in (1, 999, 1000):
        stream.send(bytes(size))
        assert next(frames) == bytes(size)
    stream.send(bytes(1001))
    assert list(frames) == []
    stream.close()


def test_who_says_nothing_is_sent_away(
    listener: DirectListener, credentials: dict[str, Credentials], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("veil.wire.direct.HANDSHAKE_S", 0.3)
    with socket.create_connection(("127.0.0.1", listener.port), 10) as silent:
        hello = b"\x16\x03\x01\x02\x00"
        began = time.monotonic()
        with suppress(OSError):
            while time.monotonic() - began < 10:
                silent.sendall(hello[:1])  # byte after byte, each in time
                hello = hello[1:] or b"\x01"
                time.sleep(0.05)
        assert time.monotonic() - began < 5
    alpha = Identity("trial", Role.PARTY, "alpha")
    monkeypatch.setattr("veil.wire.direct.HANDSHAKE_S", 10.0)
    dial(f"127.0.0.1:{listener.port}", credentials["party-beta"], alpha, most_bytes=1000).close()
