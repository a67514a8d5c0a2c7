"""Connections beside gRPC under stress: slow and silent peers, both directions at once, bounds, ends, dates."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from veil.errors import ConfigError, IdentityError, PeerLost
from veil.identity import certificates
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.identity.trial import make_consortium
from veil.mpc import mesh_frames
from veil.mpc.grpc_mesh import MeshServicer
from veil.wire import direct
from veil.wire.direct import DirectStream, dial
from veil.wire.direct_listener import DirectListener
from veil.wire.tls import direct_context

ALPHA = Identity("trial", Role.PARTY, "alpha")
MOST = 2**20


class Ends:
    """Both ends of one connection."""

    def __init__(self, credentials: dict[str, Credentials]) -> None:
        self.served: list[DirectStream] = []
        self.arrived, self.done = threading.Event(), threading.Event()
        self.listener = DirectListener("127.0.0.1:0", credentials["party-alpha"], self._serve, most_bytes=MOST)
        self.near = dial(f"127.0.0.1:{self.listener.port}", credentials["party-beta"], ALPHA, most_bytes=MOST)
        assert self.arrived.wait(10)
        self.far = self.served[0]

    def narrow(self, size_bytes: int) -> None:
        """Little fits between them."""
        for end in (self.near, self.far):
            for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                end._plain.setsockopt(socket.SOL_SOCKET, option, size_bytes)

    def _serve(self, _: Identity, stream: DirectStream) -> None:
        self.served.append(stream)
        self.arrived.set()
        self.done.wait(60)

    def close(self) -> None:
        self.near.close()
        self.done.set()
        self.listener.close()


@pytest.fixture
def ends(credentials: dict[str, Credentials]) -> Iterator[Ends]:
    found = Ends(credentials)
    yield found
    found.close()


def in_thread(act: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def test_both_ends_send_and_read_at_once(ends: Ends) -> None:
    """A reader that waits for its writer, at both ends, is a deadlock."""
    ends.narrow(65536)
    count, size = 60, 200_000
    received = [0, 0]

    def read(at: int, end: DirectStream) -> None:
        for frame in end.frames():
            assert len(frame) == size
            received[at] += 1

    readers = [in_thread(partial(read, at, end)) for at, end in enumerate((ends.near, ends.far))]

    def write(end: DirectStream) -> None:
        for _ in range(count):
            end.send(bytes(size))
        end.finish()

    for end in (ends.near, ends.far):
        in_thread(partial(write, end))
    for reader in readers:
        reader.join(30)
    assert received == [count, count]


def test_the_reader_goes_on_while_the_writer_waits(ends: Ends) -> None:
    """Also when TLS has something to answer, as to a key update."""
    ends.narrow(65536)
    writer = in_thread(lambda: _suppressed(lambda: ends.near.send(bytes(MOST))))
    while not ends.near._sending.locked():
        time.sleep(0.001)
    time.sleep(0.2)  # nobody reads at the other end: it waits with the lock
    ends.near._outgoing.write(b"what TLS has to answer")
    frames: list[bytes] = []
    reader = in_thread(lambda: frames.append(next(ends.near.frames())))
    time.sleep(0.1)
    ends.far.send(b"hello")
    reader.join(10)
    assert frames == [b"hello"] and writer.is_alive()


def test_who_asks_tls_for_answers_without_end_is_sent_away(ends: Ends) -> None:
    ends.near._outgoing.write(bytes(20_000))
    _suppressed(lambda: ends.far.send(b"hello"))
    assert list(ends.near.frames()) == []


def _suppressed(act: Callable[[], object]) -> None:
    try:
        act()
    except OSError:
        return


def test_what_is_sent_at_once_never_waits_and_arrives_whole(ends: Ends) -> None:
    ends.narrow(8192)
    sent: list[bytes] = []

    def send() -> None:
        frame = b"\x01" * 32_000
        while ends.near.send_at_once(frame):
            sent.append(frame)
            frame = bytes([len(sent) + 1]) * 32_000

    sender = in_thread(send)
    sender.join(10)
    assert not sender.is_alive() and sent

    def send_more() -> None:
        ends.near.send(b"after it")
        ends.near.finish()

    in_thread(send_more)
    assert list(ends.far.frames()) == [*sent, b"after it"]


def test_a_frame_that_could_not_be_sent_at_once_is_the_last(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is told that it has left may not send the next one behind a gap."""

    class Broken:
        def __init__(self, whole: socket.socket) -> None:
            self._whole = whole

        def __getattr__(self, name: str) -> object:
            return getattr(self._whole, name)

        def send(self, *_: object) -> int:
            raise OSError("no buffers")

        sendall = send

    whole = ends.near._plain
    monkeypatch.setattr(ends.near, "_plain", Broken(whole))
    assert ends.near.send_at_once(b"lost")
    monkeypatch.setattr(ends.near, "_plain", whole)
    with pytest.raises(OSError):
        for _ in range(2):
            ends.near.send(b"behind it")
    assert list(ends.far.frames()) == []


def test_a_peer_that_does_not_read_for_long_is_not_lost(credentials: dict[str, Credentials]) -> None:
    """The system's own limit on what is under way counts a closed window, too."""
    ends = Ends(credentials)
    try:
        assert ends.near._plain.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0
    finally:
        ends.close()


def test_who_reads_notices_a_peer_that_answers_no_more(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    def info(probes: int, unacknowledged: int, silent_ms: int) -> bytes:
        words = [0] * 13
        words[4], words[12] = unacknowledged, silent_ms
        return bytes([1, 0, 0, probes, 0, 0, 0, 0]) + struct.pack("=13I", *words)

    assert direct._unanswered(info(0, 3, 31_000)) and direct._unanswered(info(4, 0, 31_000))
    assert not direct._unanswered(info(0, 3, 29_000)) and not direct._unanswered(info(0, 0, 90_000))
    assert not direct._unanswered(info(1, 0, 90_000)) and not direct._unanswered(b"")
    assert not direct._gone(ends.near._plain)
    ends.near._plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, 50_000))
    frames: list[bytes] = []
    reader = in_thread(lambda: frames.extend(ends.near.frames()))
    time.sleep(0.3)
    ends.far.send(b"late")
    while not frames:
        time.sleep(0.01)
    monkeypatch.setattr(direct, "_gone", lambda _: True)
    reader.join(10)
    assert not reader.is_alive() and frames == [b"late"]


def test_who_sends_to_a_peer_that_is_gone_ends_with_who_reads(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    ends.near._plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, 50_000))
    ends.narrow(65536)
    writer = in_thread(lambda: _suppressed(lambda: ends.near.send(bytes(MOST))))
    while not ends.near._sending.locked():
        time.sleep(0.001)
    monkeypatch.setattr(direct, "_gone", lambda _: True)
    assert list(ends.near.frames()) == []
    writer.join(10)
    assert not writer.is_alive()


def test_who_floods_the_handshake_is_sent_away(
    credentials: dict[str, Credentials], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("veil.wire.direct.HANDSHAKE_S", 0.5)
    monkeypatch.setattr(DirectStream, "_fill", lambda _: True)  # always something, never a whole hello
    context = direct_context(credentials["party-alpha"], server=True)
    ended: list[OSError] = []

    def shake(plain: socket.socket) -> None:
        try:
            DirectStream(plain, context, None, MOST)
        except OSError as error:
            ended.append(error)

    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as plain,
    ):
        in_thread(lambda: shake(plain)).join(5)
        assert ended


def test_a_bad_hello_leaves_no_timer_behind(credentials: dict[str, Credentials]) -> None:
    servicer = MeshServicer()
    listener = servicer.listen_direct("127.0.0.1:0", credentials["party-alpha"])
    try:
        for _ in range(5):
            stream = dial(
                f"127.0.0.1:{listener.port}", credentials["party-beta"], ALPHA, most_bytes=mesh_frames.MOST_BYTES
            )
            stream._send(memoryview(b"\xff\xff\xff\xff"))  # the length of a frame that nobody takes
            assert list(stream.frames()) == []
            stream.close()
        until = time.monotonic() + 5
        while any(isinstance(thread, threading.Timer) for thread in threading.enumerate()):
            assert time.monotonic() < until
            time.sleep(0.01)
    finally:
        listener.close()


def test_no_thread_for_one_connection_does_not_end_the_listener(
    ends: Ends, credentials: dict[str, Credentials], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "direct-serve":
            raise RuntimeError("can't start new thread")
        start(thread)

    address = f"127.0.0.1:{ends.listener.port}"
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(PeerLost):
            dial(address, credentials["party-beta"], ALPHA, most_bytes=MOST)
    dial(address, credentials["party-beta"], ALPHA, most_bytes=MOST).close()


def test_addresses_that_are_none_and_all_addresses(credentials: dict[str, Credentials]) -> None:
    own, label = credentials["party-alpha"], "a" * 64
    with pytest.raises(ConfigError, match="no listening socket"):
        DirectListener(f"{label}.example:0", own, lambda *_: None, most_bytes=MOST)
    with pytest.raises(PeerLost, match="no direct connection"):
        dial(f"{label}.example:1", own, ALPHA, most_bytes=MOST)
    if not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    both = DirectListener("[::]:0", own, lambda *_: None, most_bytes=MOST)
    try:
        for host in ("127.0.0.1", "[::1]"):
            dial(f"{host}:{both.port}", credentials["party-beta"], ALPHA, most_bytes=MOST).close()
    finally:
        both.close()


def test_expired_certificates_are_refused_at_both_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    past = certificates.now() - timedelta(days=100)
    with monkeypatch.context() as patch:
        patch.setattr(certificates, "now", lambda: past)
        made = make_consortium(tmp_path, "trial", ["alpha", "beta"])
        old = {identity.folder: Credentials.load(path) for identity, path in made.items()}
        kept = tmp_path / "kept"
        for identity, path in made.items():
            path.rename(kept.with_name(f"kept-{identity.folder}"))
    new = {
        identity.folder: Credentials.load(path)
        for identity, path in make_consortium(tmp_path, "trial", ["alpha", "beta"]).items()
    }
    served: list[Identity] = []
    for server, client in (
        (old["party-alpha"], new["party-beta"]),
        (new["party-alpha"], old["party-beta"]),
        (new["party-alpha"], new["party-beta"]),
    ):
        listener = DirectListener("127.0.0.1:0", server, lambda peer, _: served.append(peer), most_bytes=MOST)
        try:
            stream = dial(f"127.0.0.1:{listener.port}", client, ALPHA, most_bytes=MOST)
        except IdentityError as error:
            assert server is old["party-alpha"] and "certificate" in error.message
        else:
            assert server is new["party-alpha"] and list(stream.frames()) == []
            stream.close()
        finally:
            listener.close()
    assert [peer.name for peer in served] == ["beta"]
