"""The seam between the protocol and the network: whole messages between ranks, first in, first out.

A transport promises delivery in order and without loss, or a `PeerLost`. What a message means is the business of
`veil.mpc.communicator`; who the peer is, and that nobody else reads along, is the business of the transport.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from veil.errors import PeerLost

Payload = bytes | bytearray | memoryview
"""Bytes of a message, or a part of them; a memoryview must be contiguous."""

# 64 Mi ring elements and a header: the largest tensor that one message may carry.
MAX_MESSAGE_BYTES = 512 * 2**20 + 4096
# Beyond this, reading from a peer stops until the protocol has caught up, and sending to it waits.
QUEUE_LIMIT_BYTES = 256 * 2**20


class Transport(Protocol):
    """One party's connection to every other party of one job."""

    @property
    def rank(self) -> int:
        """Own position in the job's list of parties, from 0."""
        ...

    @property
    def world_size(self) -> int:
        """Number of parties."""
        ...

    @property
    def meter(self) -> Meter:
        """What has passed so far."""
        ...

    def send(self, peer: int, *parts: Payload) -> None:
        """Queues one message for `peer`, the parts one after the other, and returns; the peer need not be reading.

        Only when `QUEUE_LIMIT_BYTES` are unsent does it wait for the network, and raises `PeerLost` in the end.
        The parts are copied before it returns: the caller may write into them afterwards.
        """
        ...

    def recv(self, peer: int, timeout_s: float) -> Payload:
        """The next whole message of `peer`; it belongs to the caller.

        Raises `PeerSilent` when none comes in time, and `PeerLost` when the connection has ended.
        """
        ...

    def close(self) -> None:
        """Sends what is queued, then ends every connection. May be called twice."""
        ...


class ListeningTransport(Transport, Protocol):
    """A transport whose owner need not wait in `recv` to learn that something has come."""

    def listen(self, peer: int, arrived: Callable[[bool], None]) -> None:
        """Calls `arrived(False)` after each message of `peer` and `arrived(True)` at the end of its connection.

        In the thread that brings it, from now on; `recv(peer, 0)` has the message then. Must not wait for messages.
        """
        ...


class PeerSilent(PeerLost):
    """Nothing came in time, though the connection has not ended: one may go on waiting."""


@dataclass(frozen=True)
class Traffic:
    """Payload bytes and messages exchanged with one peer, without the framing below."""

    bytes_sent: int = 0
    messages_sent: int = 0
    bytes_received: int = 0
    messages_received: int = 0


class Meter:
    """Counts payload bytes and messages for each peer; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._peers: dict[int, list[int]] = {}

    def sent(self, peer: int, size_bytes: int) -> None:
        """One message went to `peer`."""
        with self._lock:
            counts = self._peers.get(peer) or self._peers.setdefault(peer, [0, 0, 0, 0])
            counts[0] += size_bytes
            counts[1] += 1

    def received(self, peer: int, size_bytes: int) -> None:
        """One message came from `peer`."""
        with self._lock:
            counts = self._peers.get(peer) or self._peers.setdefault(peer, [0, 0, 0, 0])
            counts[2] += size_bytes
            counts[3] += 1

    def peers(self) -> Mapping[int, Traffic]:
        """Traffic by rank."""
        with self._lock:
            return {peer: Traffic(*counts) for peer, counts in self._peers.items()}

    def total(self) -> Traffic:
        """Traffic over all peers."""
        with self._lock:
            columns = list(zip(*self._peers.values(), strict=True)) or [(0,)] * 4
            return Traffic(*(sum(column) for column in columns))
