"""The daemon's part in `[mesh] plane = "gloo"`: starts a job's carrier, joins it to the mesh, and ends it.

Guarantee: the worker is not started before every pair of carriers is connected; a carrier that ends takes the job's
mesh with it, so that peers notice; none outlives its job.
"""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from party.job.launch import launch
from veil.errors import PeerError, StateError, VeilError, WireError
from veil.mpc.faults import from_document
from veil.mpc.relay_hub import RelayHub
from veil.mpc.transport import ListeningTransport, Traffic

CONNECT_S = 60.0
# Longer than the carrier waits for the goodbyes of others.
_END_S = 15.0


class Carriage:
    """One job's carrier, seen from the daemon; `messages` is the socket that the worker inherits."""

    def __init__(self, mesh: ListeningTransport, names: Sequence[str], host: str) -> None:
        self._party = names[mesh.rank]
        self._told = {"names": list(names), "host": host, "timeout_s": CONNECT_S}
        self._failure: VeilError | None = None
        self._settled = threading.Event()
        self.passed = Traffic()
        """Between the worker and its peers, as of its last step."""
        own_end, carrier_end = socket.socketpair()
        self.messages, messages_end = socket.socketpair()
        self._hub = RelayHub(own_end, mesh, self._answer, on_worker_gone=self._settled.set)
        self._ready = False
        with carrier_end, messages_end:
            self._process: subprocess.Popen[bytes] = launch(
                carrier_end,
                rank=mesh.rank,
                parties=mesh.world_size,
                messages=messages_end,
                module="party.job.carrier",
            )
        self._hub.start()

    def wait_ready(self) -> None:
        """Returns when every pair is connected; raises the carrier's error, or `PeerError` when it has ended."""
        if not self._settled.wait(2 * CONNECT_S):
            raise StateError(f"the carrier of {self._party} did not connect in {2 * CONNECT_S:g} s")
        if not self._ready:
            raise self._failure or PeerError(
                f"the carrier of {self._party} ended before it was connected",
                culprits=(self._party,),
                hint=f"see the log of {self._party}",
            )

    def count(self, passed: object) -> None:
        """What has passed between the worker and its peers, as it says: no message comes by here to be counted."""
        found = passed if isinstance(passed, dict) else {}
        counts: dict[str, Any] = {name: found.get(name) for name in asdict(self.passed)}
        if not all(isinstance(count, int) and 0 <= count < 2**63 for count in counts.values()):
            raise WireError("got progress of a worker without what has passed, expected four counts")
        self.passed = Traffic(**counts)

    def kill(self) -> None:
        """Ends it at once."""
        self._process.kill()

    def close(self) -> None:
        """Waits until it has taken leave of the peers, which it does when the worker has gone; then insists."""
        self.messages.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._hub.close()

    def _answer(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        if kind == "init":
            return self._told
        if kind == "ready":
            self._ready = True
            self._settled.set()
            return {}
        if kind == "failed":
            self._failure = self._failure or from_document(body)
            self._settled.set()
            return {}
        raise WireError(f"got control request {kind[:32]!r} of a carrier, expected one that this daemon knows")
