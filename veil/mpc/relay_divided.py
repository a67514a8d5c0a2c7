"""The worker's end where messages and control pass through different processes of its party: carrier and daemon.

Guarantee: seeds, permits and corrections go to the daemon alone, messages between parties to the carrier alone; each is
a relay of its own (`veil.mpc.relay`), with that relay's bounds. A carrier that ends is this party's own failure: who is
waited for at that moment is not blamed for it.
"""

from __future__ import annotations

import socket

from veil.errors import PeerLost, StateError, VeilError
from veil.mpc.relay import RelayTransport
from veil.mpc.transport import Meter, Payload


class DividedRelay(RelayTransport):
    """As `RelayTransport` to the daemon, with messages over a second socket, to the carrier."""

    def __init__(self, source: socket.socket, messages: socket.socket, rank: int, world_size: int) -> None:
        super().__init__(source, rank, world_size)
        self._carrier = RelayTransport(messages, rank, world_size)
        self.meter = self._carrier.meter

    def send(self, peer: int, *parts: Payload) -> None:
        try:
            self._carrier.send(peer, *parts)
        except PeerLost as error:
            raise _named(error) from None

    def recv(self, peer: int, timeout_s: float) -> Payload:
        try:
            return self._carrier.recv(peer, timeout_s)
        except PeerLost as error:
            raise _named(error) from None

    def close(self) -> None:
        self._carrier.close()
        super().close()


def _named(error: PeerLost) -> VeilError:
    """A relay that ends blames nobody; at the carrier's end that is the carrier."""
    if error.culprits:
        return error
    # No `PeerLost`: a communicator takes one without a name for the loss of the peer that it waits for.
    return StateError("the process that carries this party's messages has gone", hint="see the log of this party")


class NoPeers:
    """What a daemon relays of a worker whose messages do not pass through it: nothing."""

    def __init__(self) -> None:
        self.rank, self.world_size = 0, 1
        self.meter = Meter()

    def send(self, peer: int, *parts: Payload) -> None:
        raise StateError("got a message at the daemon, expected it at the carrier")

    def recv(self, peer: int, timeout_s: float) -> Payload:
        raise StateError("got a receive at the daemon, expected it at the carrier")

    def listen(self, peer: int, arrived: object) -> None:
        raise StateError("got a listener at the daemon, expected it at the carrier")

    def close(self) -> None:
        """Nothing to end."""
