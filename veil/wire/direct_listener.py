"""The listening side of `veil.wire.direct`: admits callers that prove who they are.

Guarantee: a caller is handed over only after a full mutual handshake of TLS 1.3 and with the identity that its
certificate proves; strangers hold at most `_MOST_HANDSHAKES` threads for at most `HANDSHAKE_S` each; whatever one
connection does, the next is accepted, and its descriptor goes when its thread does.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable

from veil.errors import ConfigError, VeilError
from veil.identity.credentials import Credentials
from veil.identity.names import Identity
from veil.wire.direct import DirectStream
from veil.wire.limits import split_address
from veil.wire.tls import direct_context

_MOST_HANDSHAKES = 32
_log = logging.getLogger("veil.wire.direct")
Serve = Callable[[Identity, DirectStream], None]


class DirectListener:
    """Listens at `address` (port 0: the system chooses) and hands over every caller that proves who it is."""

    def __init__(self, address: str, credentials: Credentials, serve: Serve, *, most_bytes: int) -> None:
        """serve: called in a thread of its own with the caller's identity; the connection is closed when it returns.

        Raises `ConfigError` when the address cannot be listened at.
        """
        host, port = split_address(address)
        self._context = direct_context(credentials, server=True)
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            # "[::]" is every address, those of IPv4 too, as with gRPC
            both = host == "::" and socket.has_dualstack_ipv6()
            self._socket = socket.create_server((host, port), family=family, dualstack_ipv6=both)
        except (OSError, UnicodeError) as error:
            raise ConfigError(
                f"got no listening socket at {address}: {getattr(error, 'strerror', None) or error}",
                hint="expected a free address",
            ) from None
        self.port: int = self._socket.getsockname()[1]
        self._credentials, self._serve, self._most_bytes = credentials, serve, most_bytes
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
            try:
                threading.Thread(target=self._admit, args=(plain,), name="direct-serve", daemon=True).start()
            except RuntimeError:  # no more threads; nobody listens once this one has ended
                self._handshakes.release()
                plain.close()
                _log.warning("got no thread for a direct connection")

    def _admit(self, plain: socket.socket) -> None:
        with contextlib.closing(plain):
            try:
                stream = DirectStream(plain, self._context, None, self._most_bytes)
                peer = stream.peer(self._credentials.authority_pem)
            except OSError as error:
                _log.info("a direct connection ended in its handshake: %s", type(error).__name__)
                return
            except VeilError as error:
                _log.warning("refused a direct connection: %s", error)
                return
            finally:
                self._handshakes.release()
            try:
                self._serve(peer, stream)
            except VeilError as error:
                _log.warning("ended the direct connection of %s: %s", peer, error)
            finally:
                stream.close()
