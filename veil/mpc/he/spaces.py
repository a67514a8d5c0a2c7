"""The one ciphertext ring of the package, and the plaintexts that it holds: integers modulo 2^64, or slots.

    N = 8192            Q = K D, 191 bits: K of three primes of 25 bits, what answers are rounded to; D of four of 29
    `RING`              polynomials modulo t = 2^64, coefficient by coefficient: products of matrices
    `slots()`           polynomials modulo t = t1 t2, two primes of 30 bits that are 1 modulo 2N, as N slots: products
                        of vectors; three such pairs, together 180 bits

Guarantee: 128 bits of security. Every public sample is one of ring learning with errors at N = 8192 with a ternary
secret, errors of standard deviation 3.2 and a modulus of 191 bits; the table allows 218 (Homomorphic Encryption
Standard, 2018, table 1, ternary secret, classical; SEAL's `tc128`). There is no claim against a quantum computer.

One ring serves all plaintexts, so a party has one key. The scale is Q / t (Fan and Vercauteren, eprint 2012/144, with
exact rounding): for a message m the ciphertext holds floor or ceiling of Q m / t, which is -[Q m]_t / t modulo Q, since
Q m - [Q m]_t is divisible by t and Q is 0. Decryption by floating-point fractions: Halevi, Polyakov, Shoup, eprint
2018/117, section 2.3; the fractions are exact to 2^-25.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from veil.mpc.he import residues
from veil.mpc.he.residues import Integers
from veil.mpc.he.ring import Ring, Words, find_primes, ring

DEGREE = 8192
# Largest modulus for 128 bits against a classical attacker, by degree.
CLASSICAL_128_BITS = {4096: 109, 8192: 218}
_KEPT, _DROPPED, _SLOT_PAIRS = 3, 4, 3


@lru_cache(maxsize=1)
def kept() -> Ring:
    """The ring of answers."""
    return ring(DEGREE, find_primes(DEGREE, 25, _KEPT))


@lru_cache(maxsize=1)
def whole() -> Ring:
    """The ring of ciphertexts; its first primes are those of `kept`."""
    return ring(DEGREE, kept().primes + find_primes(DEGREE, 29, _DROPPED))


@lru_cache(maxsize=1)
def rounding() -> residues.Rounding:
    """From `whole` to `kept`."""
    return residues.Rounding(whole(), _KEPT)


@dataclass(frozen=True)
class Space:
    """A plaintext modulus t: 2^64 without primes, or the product of two primes."""

    modulus: int
    primes: tuple[int, ...] = ()

    @property
    def flood_bits(self) -> int:
        """F: numbers that flood the noise are uniform in [-2^(F-1), 2^(F-1)), at most half of what decryption bears."""
        return (whole().modulus // self.modulus).bit_length() - 1

    def scaled(self, messages: Integers) -> Words:
        """uint32[primes, n]: the nearest integers to Q m / t, modulo Q.

        messages: int64[n], [Q m]_t (for 2^64: m times `factor`, wrapped; for slots: centred).
        """
        rows = residues.of_signed(messages, whole())
        residues.times_each(rows, self._negated_inverse, whole())
        return rows

    @cached_property
    def factor(self) -> int:
        """Q modulo t."""
        return whole().modulus % self.modulus

    @cached_property
    def _negated_inverse(self) -> tuple[int, ...]:
        return tuple(-pow(self.modulus, -1, q) % q for q in whole().primes)

    def rounded(self, values: Words) -> tuple[Integers, np.ndarray[tuple[int], np.dtype[np.float64]]]:
        """The integers nearest to t w / K, and how far off they were, in [-1/2, 1/2].

        values: uint32[kept primes, n], w modulo K. Gives int64[1, n] modulo 2^64, or int64[2, n] modulo the two primes.
        """
        ring_, t = kept(), self.modulus
        inverses = tuple(pow(ring_.modulus // q, -1, q) for q in ring_.primes)
        scaled = values[None].copy()
        residues.times_each(scaled, inverses, ring_)
        parts = scaled[0].astype(np.uint64)
        fraction = sum(part * ((t % q) / q) for part, q in zip(parts, ring_.primes, strict=True))
        nearest = np.rint(fraction)
        moduli = self.primes or (1 << 64,)
        out = np.empty((len(moduli), values.shape[1]), np.int64)
        for row, modulus in zip(out, moduli, strict=True):
            total = nearest.astype(np.uint64)
            for part, q in zip(parts, ring_.primes, strict=True):
                total += part * np.uint64(t // q % modulus)  # below 2^56, or wrapping as it should
            row[:] = (total if modulus >> 64 else total % np.uint64(modulus)).view(np.int64)
        return out, fraction - nearest


RING = Space(1 << 64)


@lru_cache(maxsize=1)
def slots() -> tuple[Space, ...]:
    """The three spaces of slots."""
    primes = find_primes(DEGREE, 30, 2 * _SLOT_PAIRS)
    pairs = [primes[i : i + 2] for i in range(0, len(primes), 2)]
    return tuple(Space(first * second, (first, second)) for first, second in pairs)
