"""What tests of the ring share: integer arithmetic that is slow and plain, and secret keys that are known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from he_inference.ring import plain
from he_inference.ring.moduli import Moduli, Words, find_primes, moduli

DEGREES = (2048, 4096, 8192)
BITS = (27, 27, 27, 28)


def ring_of(degree: int, count: int = 4) -> Moduli:
    return moduli(degree, find_primes(degree, BITS)[:count])


def random_words(ring: Moduli, *axes: int, seed: int = 0) -> Words:
    """uint32[*axes, primes, N], uniform below each prime."""
    generator = np.random.default_rng(seed)
    rows = [generator.integers(0, prime, (*axes, ring.degree)) for prime in ring.primes]
    return np.stack(rows, axis=-2).astype(np.uint32)


def extreme_words(ring: Moduli) -> Words:
    """uint32[4, primes, N]: all 0, all q - 1, alternating, a lone q - 1."""
    top = np.array(ring.primes, np.uint32)[:, None] - np.uint32(1)
    rows = np.zeros((4, len(ring.primes), ring.degree), np.uint32)
    rows[1] = top
    rows[2, :, ::2] = top
    rows[3, :, -1:] = top
    return rows


def centred(values: Words, ring: Moduli) -> NDArray[np.object_]:
    """Python integers [..., N] in (-Q/2, Q/2] of coefficients uint32[..., primes, N]."""
    total = np.zeros((*values.shape[:-2], ring.degree), object)
    for p, prime in enumerate(ring.primes):
        rest = ring.modulus // prime
        total = total + values[..., p, :].astype(object) * (rest * pow(rest, -1, prime))
    total = total % ring.modulus
    return np.where(total > ring.modulus // 2, total - ring.modulus, total)


def turned(polynomial: NDArray[np.int64], element: int) -> NDArray[np.int64]:
    """sigma(f) for sigma: X -> X^element, coefficient by coefficient."""
    n = len(polynomial)
    exponent = np.arange(n) * element % (2 * n)
    result = np.zeros(n, polynomial.dtype)
    result[exponent % n] = np.where(exponent < n, polynomial, -polynomial)
    return result


class KnownKey:
    """A ternary secret key whose ciphertexts and keys are made with errors from a seeded generator."""

    def __init__(self, ring: Moduli, data: int, seed: int = 1) -> None:
        self.generator = np.random.default_rng(seed)
        self.ring, self.data = ring, moduli(ring.degree, ring.primes[:data])
        self.coefficients = self.generator.integers(-1, 2, ring.degree)
        self.values = plain.forward(plain.residues(self.coefficients, ring), ring).astype(np.uint64)

    def errors(self) -> NDArray[np.int64]:
        return np.rint(self.generator.normal(0, 3.24, self.ring.degree)).astype(np.int64)

    def switching_key(self, element: int) -> Words:
        """uint32[2, primes, N], in the order of messages."""
        q = self.ring.q[:, None]
        product = 1
        for prime in self.ring.primes[len(self.data.primes) :]:
            product *= prime
        a = random_words(self.ring, seed=int(self.generator.integers(1 << 30))).astype(np.uint64)
        target = plain.forward(plain.residues(turned(self.coefficients, element), self.ring), self.ring)
        error = plain.forward(plain.residues(self.errors(), self.ring), self.ring)
        factor = np.array([product % prime for prime in self.ring.primes], np.uint64)[:, None]
        b = (q - a * self.values % q + error + factor * target % q) % q
        return np.stack([b, a]).astype(np.uint32)

    def encrypt(self, message: NDArray[np.int64]) -> Words:
        """uint32[2, data, N] without any error, in the order of messages."""
        q = self.data.q[:, None]
        a = random_words(self.data, seed=int(self.generator.integers(1 << 30))).astype(np.uint64)
        m = plain.forward(plain.residues(message, self.data), self.data)
        b = (q - a * self.values[: len(q)] % q + m) % q
        return np.stack([b, a]).astype(np.uint32)

    def decrypt(self, ciphertext: Words) -> NDArray[np.object_]:
        q = self.data.q[:, None]
        first, second = ciphertext.astype(np.uint64)
        return centred(plain.inverse((first + second * self.values[: len(q)]) % q, self.data), self.data)
