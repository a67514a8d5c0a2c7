"""A TCP proxy that behaves like a network: delay, bandwidth, cuts, a path that swallows everything.

For machines whose kernel has no `tc netem`. Each direction of each connection is a queue of chunks, each released at
its time: sent + delay, and not before the chunks ahead of it have passed at the given rate. What the proxy cannot do is
losing single packets: TCP on both of its sides is local.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time

_CHUNK_BYTES = 64 * 2**10


class Proxy:
    """Listens at `address` and passes connections on to `target` ("host:port")."""

    def __init__(self, target: str, *, delay_s: float = 0.0, rate_bytes_s: float | None = None) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self.delay_s = delay_s
        self.rate_bytes_s = rate_bytes_s
        self.connections = 0
        self.passed_bytes = 0
        self.cut_after_bytes: int | None = None
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._refusing = self._closed = False
        self._flowing = threading.Event()
        self._flowing.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Breaks every connection at once, with what is under way."""
        with self._lock:
            gone, self._open = self._open, set()
        for end in gone:
            _reset(end)

    def refuse(self, refusing: bool = True) -> None:
        """New connections are closed as soon as they are made, or again accepted."""
        self._refusing = refusing

    def swallow(self, swallowing: bool = True) -> None:
        """Nothing passes any more, and nobody is told; or again."""
        (self._flowing.clear if swallowing else self._flowing.set)()

    def close(self) -> None:
        self._closed = True
        self._flowing.set()
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                if self._refusing or self._closed:
                    _reset(near)
                    continue
                far = socket.create_connection(self._target)
            except OSError:
                if self._closed:
                    return
                continue
            self.connections += 1
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open |= {near, far}
            for source, target in ((near, far), (far, near)):
                chunks: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
                room = threading.Semaphore(256)
                for act in (self._take, self._give):
                    threading.Thread(target=act, args=(source, target, chunks, room), daemon=True).start()

    def _take(
        self,
        source: socket.socket,
        target: socket.socket,
        chunks: queue.SimpleQueue[tuple[float, bytes]],
        room: threading.Semaphore,
    ) -> None:
        data = b"x"
        while data:
            try:
                data = source.recv(_CHUNK_BYTES)
            except OSError:
                data = b""
            room.acquire()
            chunks.put((time.monotonic() + self.delay_s, data))

    def _give(
        self,
        source: socket.socket,
        target: socket.socket,
        chunks: queue.SimpleQueue[tuple[float, bytes]],
        room: threading.Semaphore,
    ) -> None:
        free_at = 0.0
        while True:
            at, data = chunks.get()
            room.release()
            if self.rate_bytes_s:
                free_at = max(free_at, at - self.delay_s) + len(data) / self.rate_bytes_s
                at = max(at, free_at + self.delay_s)
            time.sleep(max(0.0, at - time.monotonic()))
            self._flowing.wait()
            try:
                if not data:
                    target.shutdown(socket.SHUT_WR)
                    return
                target.sendall(data)
            except OSError:
                return
            with self._lock:
                self.passed_bytes += len(data)
                over = self.cut_after_bytes is not None and self.passed_bytes >= self.cut_after_bytes
                if over:
                    self.cut_after_bytes = None
            if over:
                self.cut()


def _reset(end: socket.socket) -> None:
    """As when a box on the way loses its state: both ends get a reset."""
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        end.shutdown(socket.SHUT_RDWR)
    end.close()
