"""Transports without a network: queues between threads, or socket pairs between processes of one machine.

They keep every promise of `veil.mpc.transport` except that they authenticate nobody, so they are for tests and for
trying a protocol out, never between organisations.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Mapping

import numpy as np

from veil.errors import PeerLost
from veil.mpc.link import Inbox, Outbox
from veil.mpc.transport import MAX_MESSAGE_BYTES, QUEUE_LIMIT_BYTES, Meter, Payload

_LENGTH = struct.Struct("<I")


class LoopbackTransport:
    """One of `loopback(n)`: each send lands in the peer's inbox at once."""

    def __init__(self, rank: int, inboxes: Mapping[tuple[int, int], Inbox], world_size: int) -> None:
        self.rank = rank
        self.world_size = world_size
        self.meter = Meter()
        self._inboxes = inboxes  # (from, to) -> what `from` has sent to `to`

    def send(self, peer: int, *parts: Payload) -> None:
        message = b"".join(parts)
        if not self._inboxes[self.rank, peer].put(message):
            raise PeerLost(f"the connection to rank {peer} has ended", culprits=(f"rank-{peer}",))
        self.meter.sent(peer, len(message))

    def recv(self, peer: int, timeout_s: float) -> Payload:
        message = self._inboxes[peer, self.rank].get(timeout_s)
        self.meter.received(peer, len(message))
        return message

    def listen(self, peer: int, arrived: Callable[[bool], None]) -> None:
        self._inboxes[peer, self.rank].listen(arrived)

    def close(self) -> None:
        for (source, target), inbox in self._inboxes.items():
            if self.rank in (source, target):
                inbox.end(PeerLost(f"rank {self.rank} has closed", culprits=(f"rank-{self.rank}",)))


def loopback(world_size: int, *, limit_bytes: int = QUEUE_LIMIT_BYTES) -> list[LoopbackTransport]:
    """Connected transports for `world_size` threads of one process, in rank order."""
    inboxes = {
        (source, target): Inbox(f"rank-{source}", limit_bytes=limit_bytes)
        for source in range(world_size)
        for target in range(world_size)
        if source != target
    }
    return [LoopbackTransport(rank, inboxes, world_size) for rank in range(world_size)]


class SocketTransport:
    """Messages over connected stream sockets, one for each peer, each prefixed by its length."""

    def __init__(self, rank: int, sockets: Mapping[int, socket.socket]) -> None:
        self.rank = rank
        self.world_size = len(sockets) + 1
        self.meter = Meter()
        self._sockets = dict(sockets)
        self._inboxes = {peer: Inbox(f"rank-{peer}") for peer in sockets}
        self._outboxes = {peer: Outbox(f"rank-{peer}") for peer in sockets}
        self._ended = dict.fromkeys(sockets, 0)
        self._lock = threading.Lock()
        for peer in sockets:
            threading.Thread(target=self._read, args=(peer,), daemon=True).start()
            threading.Thread(target=self._write, args=(peer,), daemon=True).start()

    def send(self, peer: int, *parts: Payload) -> None:
        size_bytes = sum(len(part) for part in parts)
        self._outboxes[peer].put(b"".join((_LENGTH.pack(size_bytes), *parts)))
        self.meter.sent(peer, size_bytes)

    def recv(self, peer: int, timeout_s: float) -> Payload:
        message = self._inboxes[peer].get(timeout_s)
        self.meter.received(peer, len(message))
        return message

    def listen(self, peer: int, arrived: Callable[[bool], None]) -> None:
        self._inboxes[peer].listen(arrived)

    def close(self) -> None:
        for outbox in self._outboxes.values():
            outbox.close()
        for outbox in self._outboxes.values():
            outbox.drained(5.0)

    def _read(self, peer: int) -> None:
        try:
            while header := read_exactly(self._sockets[peer], _LENGTH.size):
                (size_bytes,) = _LENGTH.unpack(header)
                if size_bytes > MAX_MESSAGE_BYTES:
                    break
                if not self._inboxes[peer].put(read_exactly(self._sockets[peer], size_bytes)):
                    break
        except OSError:
            pass  # told to the protocol thread below
        self._lost(peer)
        self._done(peer)

    def _write(self, peer: int) -> None:
        try:
            for message in self._outboxes[peer].messages():
                self._sockets[peer].sendall(message)
            self._sockets[peer].shutdown(socket.SHUT_WR)
        except OSError:
            self._lost(peer)
        self._done(peer)

    def _done(self, peer: int) -> None:
        """The socket closes when both directions have ended."""
        with self._lock:
            self._ended[peer] += 1
            if self._ended[peer] == 2:
                self._sockets[peer].close()

    def _lost(self, peer: int) -> None:
        error = PeerLost(f"the connection to rank {peer} has ended", culprits=(f"rank-{peer}",))
        self._inboxes[peer].end(error)
        self._outboxes[peer].close(error)


def read_exactly(source: socket.socket, size_bytes: int) -> memoryview:
    """`size_bytes` bytes, or none at an orderly end before the first; raises `ConnectionError` at an end within."""
    # memory that is not set to zero first, unlike a bytearray's
    view, got = np.empty(size_bytes, dtype=np.uint8).data, 0
    while got < size_bytes:
        count = source.recv_into(view[got:])
        if count == 0:
            if got == 0:
                return view[:0]
            raise ConnectionError("the connection ended within a message")
        got += count
    return view


def socket_pairs(world_size: int) -> list[dict[int, socket.socket]]:
    """For each rank its sockets by peer, to be handed to processes that make a `SocketTransport` of them."""
    ends: list[dict[int, socket.socket]] = [{} for _ in range(world_size)]
    for low in range(world_size):
        for high in range(low + 1, world_size):
            ends[low][high], ends[high][low] = socket.socketpair()
    return ends
