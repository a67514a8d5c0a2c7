"""The seam between packing and cryptography: what a scheme offers to the server and what it offers to the client.

Guarantee: the server's side (`Evaluator`) has no method that takes or gives a secret key or a decrypted value. CKKS
(`he_inference.scheme`) and the plaintext twin (`he_inference.plain`) both implement it, so that one test body and one
scoring routine run on both.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from he_inference.parameters import Parameters

ComplexVector = NDArray[np.complex128]

PlainT = TypeVar("PlainT")
CipherT = TypeVar("CipherT")
KeysT = TypeVar("KeysT")


class Evaluator(Protocol[PlainT, CipherT, KeysT]):
    """The server's side. Ciphertexts, plaintexts and keys are opaque; rotations are to the left by whole slots."""

    @property
    def parameters(self) -> Parameters:
        """The parameter set of everything that this evaluator accepts."""

    def encode(self, values: ComplexVector) -> PlainT | None:
        """Encodes complex128[slots] at the item scale; None when it rounds to the zero polynomial."""

    def unit(self) -> PlainT:
        """The smallest plaintext that is not zero: 2^-item_scale_bits in every slot."""

    def load_query(self, data: bytes) -> CipherT:
        """Reads a fresh query; raises `CiphertextError` unless it is exactly what `SecretSession.encrypt` makes."""

    def load_keys(self, data: bytes, elements: tuple[int, ...]) -> KeysT:
        """Reads evaluation keys; raises `CiphertextError` unless they are for exactly those Galois elements."""

    def multiply(self, ciphertext: CipherT, plaintext: PlainT) -> CipherT:
        """The product with an encoded plaintext, slot by slot."""

    def add_into(self, total: CipherT, ciphertext: CipherT) -> None:
        """Adds `ciphertext` into `total`."""

    def rotate(self, ciphertext: CipherT, step: int, keys: KeysT) -> CipherT:
        """Slot s of the result is slot s + step of `ciphertext`; `keys` must hold the element of that step."""

    def save(self, ciphertext: CipherT) -> bytes:
        """The bytes of a result, under one prime."""


class SecretSession(Protocol):
    """The client's side: holds the secret key."""

    @property
    def parameters(self) -> Parameters:
        """The parameter set of the key."""

    def encrypt(self, values: NDArray[np.float64]) -> bytes:
        """A fresh seeded ciphertext of float64[slots] at the query scale."""

    def evaluation_keys(self, elements: tuple[int, ...]) -> bytes:
        """Seeded keys for exactly those Galois elements."""

    def decrypt(self, data: bytes) -> ComplexVector:
        """complex128[slots] of a result; raises `CiphertextError` when `data` is not one under these parameters."""
