"""The only file that imports openmined-psi: ids hashed to NIST P-256, and points multiplied by secret numbers.

The library offers two roles. Its client turns strings into k*H(string), H a hash onto the curve (SHA-256, try and
increment); its server multiplies points by its own k and keeps their order. With keys chosen here the two are all
that a chain of any number of parties needs: (ab)P = a(bP), and the server with 1/k removes k again. The group has
prime order, so every point that the library admits (it checks the curve's equation) has that order.

Guarantee: under the decisional Diffie-Hellman assumption on P-256, with H as a random oracle, k*H(x) for many x is
indistinguishable from independent random points to everyone without k; two lists of the same x under different
unknown k, one of them shuffled, cannot be matched. Messages of the library never travel: points do, 33 bytes each
(SEC 1, section 2.3.3, compressed), so no peer's protobuf is ever parsed.

Protocol and library: Meadows 1986; Huberman, Franklin, Hogg 1999; openmined-psi 2.0 on Google's Private Join and
Compute. The computation releases the interpreter's lock, so `workers` threads use as many cores.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from private_set_intersection import python as psi

from veil.align.ids import Pseudonyms
from veil.errors import InputError, StateError

POINT_BYTES = 33
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""Number of points of P-256 (SEC 2, section 2.4.2), a prime."""
_SCALAR_BYTES = 32
MAX_WORKERS = 64

Points = npt.NDArray[np.uint8]
"""(count, 33) uint8."""


class Scalar:
    """A secret number from 1 to the order of the group less 1."""

    __slots__ = ("_value",)

    def __init__(self, value: int) -> None:
        if not 1 <= value < ORDER:
            raise InputError("got a number out of range, expected 1 to the order of P-256 less 1")
        self._value = value

    @classmethod
    def draw(cls) -> Self:
        """Uniform, from the operating system; by rejection, which happens once in 2^32."""
        while True:
            value = int.from_bytes(os.urandom(_SCALAR_BYTES), "big")
            if 1 <= value < ORDER:
                return cls(value)

    def inverse(self) -> Scalar:
        """What removes this factor again."""
        return Scalar(pow(self._value, -1, ORDER))

    def times(self, other: Scalar) -> Scalar:
        """The product."""
        return Scalar(self._value * other._value % ORDER)

    def key(self) -> bytes:
        """32 bytes, big-endian, for the library; secret."""
        return self._value.to_bytes(_SCALAR_BYTES, "big")

    def __repr__(self) -> str:
        return "Scalar(P-256)"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a Scalar cannot be serialised")


class Curve:
    """Computes on batches, in `workers` threads; use as a context manager."""

    def __init__(self, workers: int = 1) -> None:
        if not 1 <= workers <= MAX_WORKERS:
            raise InputError(f"got {workers} workers, expected 1 to {MAX_WORKERS}")
        self._workers = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="align")

    def __repr__(self) -> str:
        return f"Curve(workers={self._workers})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def hash(self, names: Pseudonyms, scalar: Scalar) -> Points:
        """scalar * H(name) for every row, in order."""

        def part(rows: Pseudonyms) -> Points:
            # The cipher is not safe to share between threads; making one costs less than one point.
            client = psi.client.CreateFromKey(scalar.key(), True)
            return _points(client.CreateRequest([bytes(row).hex() for row in rows]), len(rows))

        return self._spread(part, names)

    def multiply(self, points: Points, scalar: Scalar) -> Points:
        """scalar * P for every row, in order. Raises `InputError` when a row is no point of the curve."""

        def part(rows: Points) -> Points:
            request = psi.Request(reveal_intersection=True)  # false would have the library sort the answer
            request.encrypted_elements.extend([row.tobytes() for row in rows])
            try:
                response = psi.server.CreateFromKey(scalar.key(), True).ProcessRequest(request)
            except RuntimeError:  # the only error of the library; its text may quote what arrived
                raise InputError("got bytes that are no point of P-256, expected points") from None
            return _points(response, len(rows))

        return self._spread(part, points)

    def _spread(self, part: Callable[[npt.NDArray[np.uint8]], Points], rows: npt.NDArray[np.uint8]) -> Points:
        if len(rows) == 0:
            return np.empty((0, POINT_BYTES), dtype=np.uint8)
        if self._workers == 1:
            return part(rows)
        return np.concatenate(list(self._pool.map(part, np.array_split(rows, min(self._workers, len(rows))))))


def _points(message: Any, count: int) -> Points:
    data = b"".join(message.encrypted_elements)
    if len(data) != count * POINT_BYTES:
        raise StateError(f"got {len(data)} bytes of {count} points from the library, expected {POINT_BYTES} each")
    return np.frombuffer(data, dtype=np.uint8).reshape(count, POINT_BYTES)
