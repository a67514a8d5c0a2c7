"""What each party sends in rounds of `open_noised_sum`, byte by byte, for inputs chosen to show a missing mask."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch

from veil.errors import InputError
from veil.jobs.spec import Release
from veil.mpc.transport import Payload

SHAPE = (128, 128)
SIGMA = 3
# Nothing to hide behind: all zeros, one constant, counts of 0 and 1.
INPUTS = ("zeros", "constant", "tiny")


class Recorder:
    """A transport that keeps a copy of what is sent."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self.rank, self.world_size, self.meter = transport.rank, transport.world_size, transport.meter
        self.sent: list[tuple[int, bytes]] = []

    def send(self, peer: int, *parts: Payload) -> None:
        self.sent.append((peer, b"".join(parts)))
        self._transport.send(peer, *parts)

    def recv(self, peer: int, timeout_s: float) -> bytes:
        return bytes(self._transport.recv(peer, timeout_s))

    def close(self) -> None:
        self._transport.close()


def own_input(name: str) -> torch.Tensor:
    if name == "zeros":
        return torch.zeros(SHAPE, dtype=torch.int64)
    if name == "constant":
        return torch.full(SHAPE, 12_345, dtype=torch.int64)
    if name == "tiny":
        return (torch.arange(SHAPE[0] * SHAPE[1]) % 7 == 0).long().reshape(SHAPE)
    raise InputError(f"got input {name!r}")


def release() -> Release:
    return Release(name="counts", shape=SHAPE, sensitivity=1, sigma=SIGMA)


def capture(party: Any) -> dict[str, list[tuple[int, bytes]]]:
    """Messages of whole sessions by input, and "masks off" in which every stream yields zeros."""
    found = {name: _round(party, name) for name in INPUTS}
    zeros = mock.patch(
        "veil.mpc.randomness.RingStream.ring", lambda self, size: torch.zeros(tuple(size), dtype=torch.int64)
    )
    with zeros:
        found["masks off"] = _round(party, "tiny")
    return found


def _round(party: Any, name: str) -> list[tuple[int, bytes]]:
    from veil.mpc.communicator import TensorCommunicator
    from veil.mpc.provider import party_noise
    from veil.mpc.session import Session

    recorder = Recorder(party.transport)
    communicator = TensorCommunicator(recorder, party.spec.parties, timeout_s=60)
    with Session(communicator, party.provider, job_digest=party.digest, releases=[release()]) as session:
        # Noise by the parties is small and not uniform: only the sharing itself can hide the input here.
        opened = session.open_noised_sum(release(), own_input(name), party_noise(release()), lambda _: None)
    expected = own_input(name) * party.size
    assert int((opened - expected).abs().max()) < 40 * SIGMA
    return recorder.sent
