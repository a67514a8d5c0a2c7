"""How fast links and machines are, for forecasts: what a user says of the network, and what is measured for a moment.

Measured, on one core of this machine: points on the curve, products modulo 2^64, ciphertexts, and entries of a ledger
on this disk. Stated, as seconds of a core of some 2.5 GHz: what Python, sockets and TLS take for a message and a byte,
the loading of a worker's programs. They were fitted to jobs of 2 and 3 parties on 7,200 and 8,087 rows.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import torch

from veil.align.curve import Curve, Scalar
from veil.align.ids import dummies
from veil.errors import ConfigError
from veil.mpc.engine.kernels import matmul

START_S: Final = 3.4
"""Of a core, until a worker has loaded torch, CrypTen and compiled loops."""
CELL_S: Final = 1e-6
"""To encode one value of one user for statistics."""
PLACED_CELL_S: Final = 2e-6
"""To standardise, clip and place it in the shared order."""
SENT_BYTE_S: Final = 12e-9
RECEIVED_BYTE_S: Final = 8e-9
"""Worker, daemon and TLS together, at either end."""
HARMONIC_S: Final = 6e-9
"""Of one number: two products of 64 bits, two table look-ups."""
EXPANDED_BYTE_S: Final = 1.0 / 4e9
"""AES in counter mode."""
_CALL_S: Final = 2.4e-3
_MESSAGE_S: Final = 1.1e-3
_TRIALS: Final = 3
_POINTS: Final = 200


@dataclass(frozen=True)
class Link:
    """bandwidth: bits a second, each way; round_trip_s: between any two parties, and to the dealer."""

    bandwidth: float
    round_trip_s: float

    def __post_init__(self) -> None:
        """Raises `ConfigError` for numbers out of range."""
        if not (1e3 <= self.bandwidth <= 1e13 and 0 <= self.round_trip_s <= 60):
            raise ConfigError("got a link out of range, expected 1 kbit/s to 10 Tbit/s and a round trip of 0 to 60 s")

    def seconds(self, rounds: int, size_bytes: float) -> float:
        """Of so many exchanges one after another and so many bytes in one direction."""
        return rounds * self.round_trip_s / 2 + 8 * size_bytes / self.bandwidth


@dataclass(frozen=True)
class Speeds:
    """Seconds of a core for a point on the curve, a product modulo 2^64, a byte of ciphertext; of a ledger's commit.

    cores: of one machine that all programs of a job share; None: every party and the dealer have machines of their own.
    """

    point_s: float
    product_s: float
    ciphertext_byte_s: float = 0.0
    entry_s: float = 0.0
    cores: int | None = None

    def __post_init__(self) -> None:
        """Raises `ConfigError` for cores out of range."""
        if self.cores is not None and not 1 <= self.cores <= 4096:
            raise ConfigError(f"got {self.cores} cores, expected 1 to 4096")

    @classmethod
    def measure(cls, *, ciphertexts: bool = False, cores: int | None = None) -> Speeds:
        """Takes a few tenths of a second, and a few seconds with ciphertexts. The best of some trials each."""
        byte_s = 0.0
        if ciphertexts:
            from veil.trainers.columns.offline import seconds_per_byte

            byte_s = seconds_per_byte()
        return cls(_point_s(), _product_s(), byte_s, _entry_s(), cores)

    def elapsed(self, longest_s: float, all_s: float) -> float:
        """Seconds of work of which `longest_s` follow one another and `all_s` is the sum over all programs."""
        return longest_s if self.cores is None else max(longest_s, all_s / self.cores)


def calls_s(rounds: int, peers: int) -> float:
    """Seconds of a core, at one party, for the programs between the arithmetic and the network."""
    return rounds * (_CALL_S + peers * _MESSAGE_S)


def _best(act: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    """Least seconds of some trials: of a core, unless another clock is given."""
    found = []
    for _ in range(_TRIALS):
        started = clock()
        act()
        found.append(clock() - started)
    return min(found)


def _point_s() -> float:
    secret, names = Scalar.draw(), dummies(_POINTS)
    with Curve(1) as curve:
        return _best(lambda: curve.multiply(curve.hash(names, secret), secret)) / (2 * _POINTS)


def _product_s() -> float:
    left, right = torch.ones((2000, 256), dtype=torch.int64), torch.ones((256, 1), dtype=torch.int64)

    def multiply() -> None:
        matmul(left, right)
        matmul(left.t(), left[:, :1])

    multiply()  # compiles
    return _best(multiply) / (2 * left.numel())


def _entry_s() -> float:
    """Until a payment is on the disk, written as `veil.privacy.ledger` writes it."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "trial.sqlite"

        def write(*statements: str) -> None:
            with closing(sqlite3.connect(path, isolation_level=None)) as connection:
                connection.execute("PRAGMA synchronous = EXTRA")
                for statement in statements:
                    connection.execute(statement)

        write("PRAGMA journal_mode = WAL", "CREATE TABLE entry (body TEXT)")
        return _best(
            lambda: write("BEGIN IMMEDIATE", "INSERT INTO entry VALUES ('0')", "COMMIT"), clock=time.perf_counter
        )
