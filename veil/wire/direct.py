"""Frames over TLS without gRPC, for what has to be fast: a 4-byte big-endian length, then that many bytes, both ways.

Guarantee: TLS 1.3 with a certificate of the consortium's authority from both ends, each verified in full
(`veil.identity.certificates.verify`); a client reaches exactly the identity that it expects; no frame is longer than
what the caller allows. A peer that is gone without a word is noticed within a minute by whoever reads, as with gRPC
(`veil.wire.limits`); a peer that answers but does not read is waited for.

One thread may send and another read at the same time: OpenSSL's state is touched under a lock, in memory, and the
socket outside of it, so that a peer that does not read blocks nobody but who sends to it; above all not the thread that
reads: two ends whose readers waited for their writers would wait for each other.

Sources: RFC 8446; tcp(7); `struct tcp_info` in linux/tcp.h.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator

from veil.errors import IdentityError, PeerLost, WireError
from veil.identity import certificates
from veil.identity.credentials import Credentials
from veil.identity.names import Identity
from veil.wire.limits import split_address
from veil.wire.tls import direct_context

HANDSHAKE_S = 10.0
_PROTOCOL = "veil-mesh/2"
_LENGTH_BYTES = 4
_RECEIVE_BYTES = 256 * 1024
# Encrypted at a time: the other direction waits no longer than this takes.
_SEND_BYTES = 256 * 1024
# What TLS itself has to answer (RFC 8446, section 4.6.3: key updates) goes out with the next frame.
_MOST_ANSWERS_BYTES = 16 * 1024
_PROBE_AFTER_S, _PROBE_EVERY_S, _PROBES = 20, 5, 2
# The kernel does not probe while data is under way. TCP_USER_TIMEOUT would see to that, and would also end connections
# to peers that are well and do not read for so long; hence `_gone`.
_WATCH_EVERY_S = 5
_SILENT_S = 30


class DirectStream:
    """One connection whose both ends are known; made by `dial` and by `DirectListener`."""

    def __init__(self, plain: socket.socket, context: ssl.SSLContext, server_name: str | None, most_bytes: int) -> None:
        """server_name: the DNS name that the server must prove; None at the server. most_bytes: of one frame.

        Raises `OSError` (of which `ssl.SSLError` is one) when the handshake fails or takes more than `HANDSHAKE_S`.
        """
        self._plain = plain
        self._most_bytes = most_bytes
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_name is None, server_hostname=server_name
        )
        self._state = threading.Lock()
        self._sending, self._receiving = threading.Lock(), threading.Lock()
        self._received = memoryview(bytearray(_RECEIVE_BYTES))
        self._closed = False
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", _PROBE_AFTER_S),
            ("TCP_KEEPINTVL", _PROBE_EVERY_S),
            ("TCP_KEEPCNT", _PROBES),
        ):
            if hasattr(socket, name):  # as far as the system has them
                plain.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._shake_hands(time.monotonic() + HANDSHAKE_S)
        plain.settimeout(None)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", _WATCH_EVERY_S, 0))

    def __repr__(self) -> str:
        return f"DirectStream(closed={self._closed})"

    def _shake_hands(self, until: float) -> None:
        # Not for each read: who sends byte after byte has no longer than others.
        while (left_s := until - time.monotonic()) > 0:
            self._plain.settimeout(left_s)
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                if not self._fill():
                    raise ConnectionResetError from None
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    self._flush()  # the alert that says why
                raise
            else:
                self._flush()
                return
        raise TimeoutError("handshake")

    def peer(self, authority_pem: bytes) -> Identity:
        """Whose certificate the other end has shown. Raises `IdentityError` when it proves nobody, or no longer."""
        der = self._tls.getpeercert(binary_form=True)
        if der is None or self._tls.selected_alpn_protocol() != _PROTOCOL:
            raise IdentityError("got a connection without a certificate or of another protocol, expected a party's")
        pem = ssl.DER_cert_to_PEM_cert(der).encode("ascii")
        return certificates.verify(pem, authority_pem, what="the certificate of a direct connection")[1]

    def send(self, frame: bytes) -> None:
        """Sends one frame; waits for the network. Raises `OSError` when the connection has ended."""
        with self._sending:
            self._send(memoryview(len(frame).to_bytes(_LENGTH_BYTES, "big") + frame))

    def _send(self, view: memoryview) -> None:
        for at in range(0, len(view), _SEND_BYTES):
            with self._state:
                self._tls.write(view[at : at + _SEND_BYTES])
                data = self._outgoing.read()
            self._plain.sendall(data)

    def send_at_once(self, frame: bytes) -> bool:
        """Sends a small frame if no other is being sent and the system has room; never waits for the network.

        False: it was not sent. True also when the connection has ended.
        """
        if not self._sending.acquire(blocking=False):
            return False
        rest: memoryview | None = None
        try:
            room = select.poll()  # not select(): it knows no descriptor above 1023
            room.register(self._plain, select.POLLOUT)
            if not room.poll(0):
                return False
            with self._state:
                self._tls.write(len(frame).to_bytes(_LENGTH_BYTES, "big") + frame)
                data = self._outgoing.read()
            sent = 0
            with contextlib.suppress(BlockingIOError):
                sent = self._plain.send(data, socket.MSG_DONTWAIT)
            if sent < len(data):
                rest = memoryview(data)[sent:]
                threading.Thread(target=self._finish_sending, args=(rest,), name="direct-rest", daemon=True).start()
        except (OSError, ValueError, RuntimeError):  # ended; closed; no more threads. Part of it may be lost: no more.
            rest = None
            self._end()
        finally:
            if rest is None:
                self._sending.release()
        return True

    def _finish_sending(self, rest: memoryview) -> None:
        """Releases `_sending`, which `send_at_once` has taken: nothing goes before the rest of its frame."""
        try:
            self._plain.sendall(rest)
        except OSError:
            self._end()
        finally:
            self._sending.release()

    def frames(self) -> Iterator[bytes]:
        """What the other end sends; ends with the connection, whole frames only. Raises `WireError` on a length."""
        while (head := self._read(_LENGTH_BYTES)) is not None:
            size_bytes = int.from_bytes(head, "big")
            if not 0 < size_bytes <= self._most_bytes:
                raise WireError(f"got a frame of {size_bytes} bytes, expected 1 to {self._most_bytes}")
            frame = self._read(size_bytes)
            if frame is None:
                return
            yield frame

    def _read(self, size_bytes: int) -> bytes | None:
        """None when the connection ends before that."""
        data, at = bytearray(size_bytes), 0
        view = memoryview(data)
        while at < size_bytes:
            try:
                with self._state:
                    count = self._tls.read(size_bytes - at, view[at:])
                at += int(count)
                if not count:
                    return None
            except ssl.SSLWantReadError:
                try:
                    if not self._fill():
                        return None
                except OSError:
                    self._end()  # wakes who sends to a peer that is gone
                    return None
            except ssl.SSLError:
                self._end()
                return None
        return bytes(data)

    def _fill(self) -> bool:
        """False when the other end sends nothing more."""
        with self._receiving:
            while True:
                try:
                    count = self._plain.recv_into(self._received)
                    break
                except BlockingIOError:  # nothing came for _WATCH_EVERY_S
                    if _gone(self._plain):
                        raise TimeoutError("no answer") from None
        with self._state:
            self._incoming.write(self._received[:count])
            if self._outgoing.pending > _MOST_ANSWERS_BYTES:
                raise ConnectionAbortedError("too much to answer")
        return count > 0

    def _flush(self) -> None:
        """Of the handshake; later, the reader must not wait for whoever sends."""
        if self._outgoing.pending:
            self._plain.sendall(self._outgoing.read())

    def finish(self) -> None:
        """No frame follows from here; what was sent still arrives. The other direction stays open."""
        with self._sending, contextlib.suppress(OSError):
            self._plain.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Ends both directions, also for a thread that waits in one of them."""
        self._closed = True
        self._end()
        # Its number may soon be another connection's: nobody may be about to use it.
        with self._sending, self._receiving:
            self._plain.close()

    def _end(self) -> None:
        with contextlib.suppress(OSError):
            self._plain.shutdown(socket.SHUT_RDWR)


def _gone(plain: socket.socket) -> bool:
    """Whether the other end owes an answer of its TCP and has given none for `_SILENT_S`."""
    if not hasattr(socket, "TCP_INFO"):
        return False
    return _unanswered(plain.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 60))


def _unanswered(info: bytes) -> bool:
    """info: the first 60 bytes of `struct tcp_info`. Probes of a closed window count: a peer that is well answers."""
    if len(info) < 60:
        return False
    (unacknowledged,), (silent_ms,) = struct.unpack_from("=I", info, 24), struct.unpack_from("=I", info, 56)
    probes = info[3]
    return (unacknowledged > 0 or probes > 1) and silent_ms > 1000 * _SILENT_S


def dial(
    address: str, credentials: Credentials, expect: Identity, *, most_bytes: int, timeout_s: float = HANDSHAKE_S
) -> DirectStream:
    """A connection to `expect` at `address`. Raises `IdentityError` for another, `PeerLost` when nobody answers."""
    host, port = split_address(address)
    try:
        plain = socket.create_connection((host, port), timeout_s)
    except (OSError, UnicodeError) as error:  # of a host that cannot be a name
        raise PeerLost(
            f"got no direct connection to {expect.name}: {getattr(error, 'strerror', None) or error}"
        ) from None
    with contextlib.ExitStack() as failing:
        failing.callback(plain.close)
        try:
            stream = DirectStream(plain, direct_context(credentials, server=False), expect.dns, most_bytes)
        except ssl.SSLCertVerificationError:
            raise IdentityError(f"got a certificate at {address} that is not one of {expect}, expected it") from None
        except OSError as error:
            raise PeerLost(f"got no direct connection to {expect.name}: {error.strerror or error}") from None
        found = stream.peer(credentials.authority_pem)
        if found != expect:
            raise IdentityError(f"got {found} at {address}, expected {expect}")
        failing.pop_all()
    return stream
