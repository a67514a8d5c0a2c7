"""Frames over TLS without gRPC, for what has to be fast: a 4-byte big-endian length, then that many bytes, both ways.

Guarantee: TLS 1.3 with a certificate of the consortium's authority from both ends, each verified in full
(`veil.identity.certificates.verify`); a client reaches exactly the identity that it expects; no frame is longer than
what the caller allows; strangers hold at most `_MOST_HANDSHAKES` threads for at most `HANDSHAKE_S` each. A peer that is
gone without a word is noticed by TCP within half a minute, as with gRPC (`veil.wire.limits`).

One thread may send and another read at the same time: OpenSSL's state is touched under a lock, in memory, and the
socket outside of it, so that a peer that does not read blocks nobody but who sends to it.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator

from veil.errors import ConfigError, IdentityError, PeerLost, VeilError, WireError
from veil.identity import certificates
from veil.identity.credentials import Credentials
from veil.identity.names import Identity
from veil.wire.limits import split_address
from veil.wire.tls import direct_context

HANDSHAKE_S = 10.0
_MOST_HANDSHAKES = 32
_PROTOCOL = "veil-mesh/2"
_LENGTH_BYTES = 4
_RECEIVE_BYTES = 256 * 1024
# Encrypted at a time: the other direction waits no longer than this takes.
_SEND_BYTES = 256 * 1024
_PROBE_AFTER_S, _PROBE_EVERY_S, _PROBES = 20, 5, 2
_log = logging.getLogger("veil.wire.direct")


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
        self._sending = threading.Lock()
        self._received = memoryview(bytearray(_RECEIVE_BYTES))
        self._closed = False
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", _PROBE_AFTER_S),
            ("TCP_KEEPINTVL", _PROBE_EVERY_S),
            ("TCP_KEEPCNT", _PROBES),
            ("TCP_USER_TIMEOUT", 1000 * (_PROBE_AFTER_S + _PROBES * _PROBE_EVERY_S)),
        ):
            if hasattr(socket, name):  # as far as the system has them
                plain.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._shake_hands(time.monotonic() + HANDSHAKE_S)
        plain.settimeout(None)

    def __repr__(self) -> str:
        return f"DirectStream(closed={self._closed})"

    def _shake_hands(self, until: float) -> None:
        while True:
            # Not for each read: who sends byte after byte has no longer than others.
            self._plain.settimeout(max(0.001, until - time.monotonic()))
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._fill()
            except ssl.SSLError:
                with contextlib.suppress(OSError):
                    self._flush()  # the alert that says why
                raise
            else:
                self._flush()
                return

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
        """Sends a frame that is far smaller than the system's buffer, if no other is being sent and none waits there.

        False: it was not sent. True also when the connection has ended.
        """
        if not self._sending.acquire(blocking=False):
            return False
        try:
            room = select.poll()  # not select(): it knows no descriptor above 1023
            room.register(self._plain, select.POLLOUT)
            if not room.poll(0):
                return False
            self._send(memoryview(len(frame).to_bytes(_LENGTH_BYTES, "big") + frame))
        except (OSError, ValueError):  # ended, and closed
            pass
        finally:
            self._sending.release()
        return True

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
                    self._flush()  # what TLS itself has to answer
                    self._fill()
                except OSError:
                    return None
            except ssl.SSLError:
                return None
        return bytes(data)

    def _fill(self) -> None:
        count = self._plain.recv_into(self._received)
        if not count:
            raise ConnectionResetError
        with self._state:
            self._incoming.write(self._received[:count])

    def _flush(self) -> None:
        if not self._outgoing.pending:
            return
        with self._sending:
            with self._state:
                data = self._outgoing.read()
            self._plain.sendall(data)

    def finish(self) -> None:
        """No frame follows from here; what was sent still arrives. The other direction stays open."""
        with contextlib.suppress(OSError):
            self._plain.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Ends both directions, also for a thread that waits in one of them."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._plain.shutdown(socket.SHUT_RDWR)
        self._plain.close()


def dial(
    address: str, credentials: Credentials, expect: Identity, *, most_bytes: int, timeout_s: float = HANDSHAKE_S
) -> DirectStream:
    """A connection to `expect` at `address`. Raises `IdentityError` for another, `PeerLost` when nobody answers."""
    host, port = split_address(address)
    try:
        plain = socket.create_connection((host, port), timeout_s)
    except OSError as error:
        raise PeerLost(f"got no direct connection to {expect.name}: {error.strerror or error}") from None
    try:
        stream = DirectStream(plain, direct_context(credentials, server=False), expect.dns, most_bytes)
        found = stream.peer(credentials.authority_pem)
        if found != expect:
            raise IdentityError(f"got {found} at {address}, expected {expect}")
    except ssl.SSLCertVerificationError:
        plain.close()
        raise IdentityError(f"got a certificate at {address} that is not one of {expect}, expected it") from None
    except OSError as error:
        plain.close()
        raise PeerLost(f"got no direct connection to {expect.name}: {error.strerror or error}") from None
    except IdentityError:
        plain.close()
        raise
    return stream


Serve = Callable[[Identity, DirectStream], None]


class DirectListener:
    """Listens at `address` (port 0: the system chooses) and hands over every caller that proves who it is."""

    def __init__(self, address: str, credentials: Credentials, serve: Serve, *, most_bytes: int) -> None:
        """serve: called in a thread of its own with the caller's identity; the connection is closed when it returns.

        Raises `ConfigError` when the address cannot be listened at.
        """
        host, port = split_address(address)
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._socket = socket.create_server((host, port), family=family)
        except OSError as error:
            raise ConfigError(
                f"got no listening socket at {address}: {error.strerror}", hint="expected a free address"
            ) from None
        self.port: int = self._socket.getsockname()[1]
        self._credentials, self._serve, self._most_bytes = credentials, serve, most_bytes
        self._context = direct_context(credentials, server=True)
        self._handshakes = threading.BoundedSemaphore(_MOST_HANDSHAKES)
        self._closed = False
        threading.Thread(target=self._accept, name="direct-accept", daemon=True).start()
        _log.info("%s listens at %s for direct connections", credentials.identity, address)

    def __repr__(self) -> str:
        return f"DirectListener(port={self.port})"

    def close(self) -> None:
        """Takes no more callers; those that are here stay."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._socket.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                plain, _ = self._socket.accept()
            except OSError:
                if not self._closed:
                    _log.warning("a direct connection could not be accepted")
                    threading.Event().wait(0.1)  # no descriptors left, mostly: not a busy loop
                continue
            if not self._handshakes.acquire(blocking=False):
                plain.close()  # whoever is in earnest stays on gRPC
                continue
            threading.Thread(target=self._admit, args=(plain,), name="direct-serve", daemon=True).start()

    def _admit(self, plain: socket.socket) -> None:
        try:
            try:
                stream = DirectStream(plain, self._context, None, self._most_bytes)
                peer = stream.peer(self._credentials.authority_pem)
            finally:
                self._handshakes.release()
        except OSError as error:
            _log.info("a direct connection ended in its handshake: %s", type(error).__name__)
            plain.close()
            return
        except IdentityError as error:
            _log.warning("refused a direct connection: %s", error)
            plain.close()
            return
        try:
            self._serve(peer, stream)
        except VeilError as error:
            _log.warning("ended the direct connection of %s: %s", peer, error)
        finally:
            stream.close()
