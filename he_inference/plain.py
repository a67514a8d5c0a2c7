"""The plaintext twin of `he_inference.scheme`: same interface, no cryptography, for tests of packing and scoring.

Guarantee: none whatsoever; a "ciphertext" is the numbers themselves. Nothing outside of the tests imports it. It
refuses what CKKS refuses: keys for other elements, queries of another size, rotations without a key.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from he_inference.parameters import Parameters
from he_inference.seam import ComplexVector
from veil.errors import CiphertextError


@dataclass(frozen=True, slots=True)
class PlainEvaluator:
    """The server's side."""

    parameters: Parameters

    def encode(self, values: ComplexVector) -> ComplexVector | None:
        """A copy, or None when every value is zero."""
        return np.array(values, dtype=np.complex128) if np.any(values) else None

    def unit(self) -> ComplexVector:
        """2^-item_scale_bits in every slot."""
        return np.full(self.parameters.slots, 2.0**-self.parameters.item_scale_bits, dtype=np.complex128)

    def load_query(self, data: bytes) -> ComplexVector:
        """Reads what `PlainSession.encrypt` made."""
        return _vector(data, self.parameters)

    def load_keys(self, data: bytes, elements: tuple[int, ...]) -> frozenset[int]:
        """Reads what `PlainSession.evaluation_keys` made."""
        try:
            found = json.loads(data)
        except ValueError:
            raise CiphertextError("got evaluation keys that cannot be read") from None
        if found != sorted(elements):
            raise CiphertextError(f"got keys for elements {found}, expected {sorted(elements)}")
        return frozenset(elements)

    def multiply(self, ciphertext: ComplexVector, plaintext: ComplexVector) -> ComplexVector:
        """Slot by slot."""
        if not np.any(plaintext):
            raise RuntimeError("result ciphertext is transparent")
        return ciphertext * plaintext

    def add_into(self, total: ComplexVector, ciphertext: ComplexVector) -> None:
        """In place."""
        total += ciphertext

    def rotate(self, ciphertext: ComplexVector, step: int, keys: frozenset[int]) -> ComplexVector:
        """To the left by `step`."""
        if self.parameters.element(step) not in keys:
            raise CiphertextError(f"got no key for a rotation by {step}")
        return np.roll(ciphertext, -step)

    def save(self, ciphertext: ComplexVector) -> bytes:
        """The numbers."""
        return ciphertext.tobytes()


@dataclass(frozen=True, slots=True)
class PlainSession:
    """The client's side; there is no key."""

    parameters: Parameters

    def encrypt(self, values: NDArray[np.float64]) -> bytes:
        """The numbers."""
        return values.astype(np.complex128).tobytes()

    def evaluation_keys(self, elements: tuple[int, ...]) -> bytes:
        """The elements."""
        return json.dumps(sorted(elements)).encode()

    def decrypt(self, data: bytes) -> ComplexVector:
        """The numbers."""
        return _vector(data, self.parameters)


def _vector(data: bytes, parameters: Parameters) -> ComplexVector:
    if len(data) != 16 * parameters.slots:
        raise CiphertextError(f"got {len(data)} bytes, expected {16 * parameters.slots}")
    return np.frombuffer(data, dtype=np.complex128).copy()
