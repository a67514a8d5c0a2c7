"""Named encryption parameter sets, each with the source of its security claim.

Guarantee: a `Parameters` that exists is one of a small checked family: a power-of-two ring, one data prime and one
special prime, at most the modulus bits that the Homomorphic Encryption Standard allows for 128-bit classical security,
and scales that leave room for every score of unit vectors. A client takes a set by name from this file, never numbers
from a server, so that a server cannot talk it into weak ones.

Sources: M. Albrecht et al., "Homomorphic Encryption Standard" (2018), table 1, ternary secret, classical, as in SEAL's
hestdparms.h (`tc128`); the post-quantum table of apple/swift-homomorphic-encryption, EncryptionParameters.swift.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass

from veil.errors import ConfigError

# Largest total of modulus bits, the special prime included, for 128 bits against a classical attacker.
CLASSICAL_128_BITS = {2048: 54, 4096: 109, 8192: 218}
# The same against a quantum attacker, by Apple's stricter table.
QUANTUM_128_BITS = {2048: 41, 4096: 83, 8192: 165}
# One plaintext product of unit vectors has a modulus of at most sqrt(2) in each slot (two items share a slot), hence
# coefficients below 2^(query + item scale + 0.5); the residue must hold them with their sign and the noise.
_HEADROOM_BITS = 2.0
# A name in any message is short and plain.
_LONGEST_NAME = 32
_DIGEST_DOMAIN = b"veil/he-parameters/v1\x00"


@dataclass(frozen=True, slots=True)
class Parameters:
    """One parameter set. Raises `ConfigError` when its numbers are outside of the checked family.

    `coeff_modulus_bits` lists the data prime, then the special prime that key switching uses. `score_error` is the
    stated bound of |score - plaintext score| for unit query and item vectors; it grows with the norms of both.
    """

    name: str
    poly_modulus_degree: int
    coeff_modulus_bits: tuple[int, ...]
    query_scale_bits: int
    item_scale_bits: int
    score_error: float
    security: str

    def __post_init__(self) -> None:
        if not 1 <= len(self.name) <= _LONGEST_NAME:
            raise ConfigError(f"got a parameter set name of {len(self.name)} characters, expected 1 to {_LONGEST_NAME}")
        limit = CLASSICAL_128_BITS.get(self.poly_modulus_degree)
        if limit is None:
            degrees = ", ".join(map(str, CLASSICAL_128_BITS))
            raise ConfigError(f"got ring degree {self.poly_modulus_degree}, expected one of {degrees}")
        if len(self.coeff_modulus_bits) != 2 or not all(20 <= bits <= 60 for bits in self.coeff_modulus_bits):
            raise ConfigError(
                f"got moduli of {self.coeff_modulus_bits} bits, expected a data and a special prime, 20 to 60 each"
            )
        if self.modulus_bits > limit:
            raise ConfigError(
                f"got {self.modulus_bits} modulus bits at degree {self.poly_modulus_degree}, expected at most {limit}",
                hint="more would fall below 128-bit security",
            )
        if self.coeff_modulus_bits[1] < self.coeff_modulus_bits[0]:
            raise ConfigError("got a special prime below the data prime, expected it to be the larger one")
        if min(self.query_scale_bits, self.item_scale_bits) < 8:
            raise ConfigError("got a scale below 2^8, expected at least that much precision")
        if self.query_scale_bits + self.item_scale_bits + _HEADROOM_BITS > self.coeff_modulus_bits[0]:
            raise ConfigError(
                f"got scales of 2^{self.query_scale_bits} and 2^{self.item_scale_bits}, expected a product of at most "
                f"2^{self.coeff_modulus_bits[0] - _HEADROOM_BITS:g}",
                hint="scores would wrap around the data prime",
            )
        if not (math.isfinite(self.score_error) and 0 < self.score_error < 1):
            raise ConfigError(f"got a score error bound of {self.score_error}, expected one in (0, 1)")

    @property
    def modulus_bits(self) -> int:
        """Bits of the whole modulus, the special prime included: what security depends on."""
        return sum(self.coeff_modulus_bits)

    @property
    def slots(self) -> int:
        """Complex numbers in one ciphertext: half of the ring degree."""
        return self.poly_modulus_degree // 2

    @property
    def post_quantum(self) -> bool:
        """Whether the set is within Apple's table for 128 bits against a quantum attacker."""
        return self.modulus_bits <= QUANTUM_128_BITS[self.poly_modulus_degree]

    @property
    def digest(self) -> bytes:
        """SHA-256 over every field, 32 bytes."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(_DIGEST_DOMAIN + text.encode()).digest()

    def element(self, step: int) -> int:
        """The Galois element 3^step mod 2N of a rotation by `step` slots to the left, 0 < step < slots.

        Keys are made for elements, never for steps: in SEAL's Python binding a list of steps is taken for a list of
        elements without complaint.
        """
        if not 0 < step < self.slots:
            raise ConfigError(f"got a rotation by {step} slots, expected 1 to {self.slots - 1}")
        return pow(3, step, 2 * self.poly_modulus_degree)

    @property
    def max_query_bytes(self) -> int:
        """Room for a seeded ciphertext (one polynomial under the data prime) and headers; not for an unseeded one."""
        return 8 * self.poly_modulus_degree + 2048

    def max_key_bytes(self, elements: int) -> int:
        """Room for that many seeded keys (one polynomial under both primes each), their index and headers."""
        return elements * (16 * self.poly_modulus_degree + 2048) + 8 * self.poly_modulus_degree + 2048

    @property
    def max_response_bytes(self) -> int:
        """Room for one full ciphertext (two polynomials under the data prime) and its headers."""
        return 16 * self.poly_modulus_degree + 2048


# Primes and scales. A special prime well above the data prime keeps key switching quiet: its digits are not centred, so
# that one rotation under primes of 54 and 55 bits leaves an error of 3e-4 in slot 0 (the root next to 1), 80 times that
# of the median slot; under 54 and 60 bits it is 1e-5. What is left is mostly the rounding of items at their scale
# (`he_inference.rounding`): sqrt(N) / 2^(bits + 3/2) is the standard deviation of a score, 7.6e-6 at N = 8192 and
# 1.1e-5 at N = 4096. Six of them and of the switching noise, added in squares, stay below the bounds. Worst of 600
# queries under 220 keys, 1 to 1024 dimensions, up to 40,000 items: 4.7e-5 and 6.5e-5.
SESSION_8192 = Parameters(
    name="session-8192",
    poly_modulus_degree=8192,
    coeff_modulus_bits=(54, 60),
    query_scale_bits=30,
    item_scale_bits=22,
    score_error=1e-4,
    security="114 bits: of 218 (Homomorphic Encryption Standard, 128-bit classical), of 165 (Apple, 128-bit quantum)",
)
SESSION_4096 = Parameters(
    name="session-4096",
    poly_modulus_degree=4096,
    coeff_modulus_bits=(52, 57),
    query_scale_bits=29,
    item_scale_bits=21,
    score_error=1.5e-4,
    security="109 bits: of 109 (Homomorphic Encryption Standard, 128-bit classical); no quantum claim",
)
DEFAULT = SESSION_8192
_SETS = {parameters.name: parameters for parameters in (SESSION_8192, SESSION_4096)}
NAMES = tuple(_SETS)


def named(name: str) -> Parameters:
    """The set called `name`; raises `ConfigError` for any other text."""
    try:
        return _SETS[name]
    except KeyError:
        raise ConfigError(
            f"got parameter set {name[:_LONGEST_NAME]!r}, expected one of {', '.join(NAMES)}",
            hint="a set is taken by name only; update both sides when one of them knows a newer one",
        ) from None
