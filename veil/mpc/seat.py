"""One party's place at a secure computation outside of a job: what a benchmark's program is given, and its meters.

Guarantee: what `measure` counts is what this party did between two barriers, its own waiting for others included.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from veil.errors import InputError
from veil.mpc.communicator import TensorCommunicator
from veil.wire.v1 import dealer_pb2


@dataclass(frozen=True)
class Measured:
    """Of the measured steps at one party: milliseconds of each, milliseconds from first to last, and per step the
    bytes sent (headers of Veil's own messages included, TLS not) and the rounds."""

    step_ms: tuple[float, ...]
    total_ms: float
    bytes_sent: float
    rounds: float

    def document(self) -> dict[str, object]:
        """As JSON."""
        return {
            "step_ms": list(self.step_ms),
            "total_ms": self.total_ms,
            "bytes_sent": self.bytes_sent,
            "rounds": self.rounds,
        }


@dataclass(frozen=True, repr=False)
class Seat:
    """What a program gets at one party.

    seed, correct: this party's seed at the dealer, and at rank 0 how to ask the dealer for corrections; None without a
    dealer. triples: "dealer" or "he". folder: where the inputs lie. options: the numbers of the case, by name.
    """

    communicator: TensorCommunicator
    job_text: str
    job_digest: bytes
    seed: bytes | None
    correct: Callable[[dealer_pb2.CorrectRequest], bytes] | None
    triples: str
    folder: Path
    options: Mapping[str, float]

    def __repr__(self) -> str:
        return f"Seat(rank={self.communicator.rank}, triples={self.triples!r})"

    @property
    def rank(self) -> int:
        """Own rank."""
        return self.communicator.rank

    @property
    def parties(self) -> int:
        """Number of parties."""
        return self.communicator.world_size

    def number(self, name: str) -> int:
        """An option that is a whole number. Raises `InputError` for one that is not there or is none."""
        value = self.options.get(name)
        if value is None or value != int(value):
            raise InputError(f"got {value} as option {name}, expected a whole number")
        return int(value)

    def measure(self, act: Callable[[int], None], steps: int) -> Measured:
        """Runs act(0), ..., act(steps - 1) between two barriers, at every party at the same time."""
        if steps < 1:
            raise InputError(f"got {steps} steps, expected at least 1")
        communicator = self.communicator
        communicator.barrier()
        before = communicator.get_communication_stats()
        times, began = [], time.perf_counter()
        for step in range(steps):
            started = time.perf_counter()
            act(step)
            times.append(1000 * (time.perf_counter() - started))
        total_ms = 1000 * (time.perf_counter() - began)
        after = communicator.get_communication_stats()
        communicator.barrier()
        sent, rounds = after["bytes"] - before["bytes"], after["rounds"] - before["rounds"]
        return Measured(tuple(times), total_ms, sent / steps, rounds / steps)
