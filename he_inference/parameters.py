"""Named encryption parameter sets, each with the source of its security claim.

Guarantee: a `Parameters` that exists is one of a small checked family: a ring degree and primes of which the
Homomorphic Encryption Standard allows the total at 128-bit classical security, and scales that leave room for
every score of unit vectors. A client takes a set by name from this file, never numbers from a server, so that a
server cannot talk it into weak ones.

Sources: M. Albrecht et al., "Homomorphic Encryption Standard" (2018), table 1, ternary secret, classical, as in SEAL's
hestdparms.h (`tc128`); the post-quantum table of apple/swift-homomorphic-encryption, EncryptionParameters.swift.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Literal

from he_inference.ring.moduli import DEGREES, MOST_BITS, find_primes
from veil.errors import ConfigError

# Largest total of modulus bits, special primes included, for 128 bits against a classical attacker.
CLASSICAL_128_BITS = {2048: 54, 4096: 109, 8192: 218}
# The same against a quantum attacker, by Apple's stricter table.
QUANTUM_128_BITS = {2048: 41, 4096: 83, 8192: 165}
# A coefficient of a product of unit vectors is at most sqrt(2) times both scales (two items share a slot); one more bit
# is for the sign.
_HEADROOM_BITS = 2.0
# A name in any message is short and plain.
_LONGEST_NAME = 32
_DIGEST_DOMAIN = b"veil/he-parameters/v2\x00"


@dataclass(frozen=True)
class Parameters:
    """One parameter set. Raises `ConfigError` when its numbers are outside of the checked family.

    data_bits: sizes of the primes of ciphertexts; special_bits: of those that key switching adds (none: no rotations).
    scheme: "ckks" (approximate, real numbers) or "bfv" (exact integers modulo plain_modulus). query_scale_bits,
    item_scale_bits: log2 of what unit vectors are multiplied by before they are rounded (ckks). response_bits: leading
    bits of the two halves of a result that travel. score_error: stated bound of |score - plaintext score| for unit
    vectors (ckks), of |score - plaintext score| by quantisation alone (bfv; exact for quantised ones).
    """

    name: str
    degree: int
    data_bits: tuple[int, ...]
    special_bits: tuple[int, ...]
    scheme: Literal["ckks", "bfv"]
    query_scale_bits: int
    item_scale_bits: int
    plain_modulus: int
    response_bits: tuple[int, int]
    score_error: float
    security: str

    def __post_init__(self) -> None:
        if not 1 <= len(self.name) <= _LONGEST_NAME:
            raise ConfigError(f"got a parameter set name of {len(self.name)} characters, expected 1 to {_LONGEST_NAME}")
        if self.degree not in DEGREES:
            raise ConfigError(f"got ring degree {self.degree}, expected one of {', '.join(map(str, DEGREES))}")
        counts = (len(self.data_bits), len(self.special_bits))
        if counts not in ((2, 0), (2, 2), (2, 3), (3, 3)) or not all(
            20 <= b <= MOST_BITS for b in self.data_bits + self.special_bits
        ):
            raise ConfigError(
                f"got primes of {self.data_bits} and {self.special_bits} bits, expected 2 data and no or 2 special"
                f" primes (of histories: 3 and 3, 2 and 3), 20 to {MOST_BITS} bits each"
            )
        if self.modulus_bits > CLASSICAL_128_BITS[self.degree]:
            raise ConfigError(
                f"got {self.modulus_bits} modulus bits at degree {self.degree}, expected at most"
                f" {CLASSICAL_128_BITS[self.degree]}",
                hint="more would fall below 128-bit security",
            )
        if self.special_bits and sum(self.special_bits) < sum(self.data_bits):
            raise ConfigError("got special primes below the data primes, expected at least as many bits")
        if not all(8 <= bits <= 32 for bits in self.response_bits) or self.response_bits[0] > self.response_bits[1]:
            raise ConfigError(
                f"got response bits {self.response_bits}, expected 8 to 32, the second not below the first"
            )
        if self.scheme == "ckks":
            if min(self.query_scale_bits, self.item_scale_bits) < 8:
                raise ConfigError("got a scale below 2^8, expected at least that much precision")
            if self.query_scale_bits + self.item_scale_bits + _HEADROOM_BITS > sum(self.data_bits):
                raise ConfigError(
                    f"got scales of 2^{self.query_scale_bits} and 2^{self.item_scale_bits}, expected a product up to"
                    f" 2^{sum(self.data_bits) - _HEADROOM_BITS:g}",
                    hint="scores would wrap around the modulus",
                )
        elif self.plain_modulus % (2 * self.degree) != 1:
            raise ConfigError(f"got plain modulus {self.plain_modulus}, expected a prime of the form 2 N k + 1")
        if not (math.isfinite(self.score_error) and 0 < self.score_error < 1):
            raise ConfigError(f"got a score error bound of {self.score_error}, expected one in (0, 1)")

    @property
    def modulus_bits(self) -> int:
        """Bits of the whole modulus, special primes included: what security depends on."""
        return sum(self.data_bits) + sum(self.special_bits)

    @cached_property
    def primes(self) -> tuple[int, ...]:
        """All primes, those of ciphertexts first."""
        return find_primes(self.degree, self.data_bits + self.special_bits)

    @property
    def data_primes(self) -> tuple[int, ...]:
        """The primes of ciphertexts."""
        return self.primes[: len(self.data_bits)]

    @property
    def special_primes(self) -> tuple[int, ...]:
        """The primes that key switching adds."""
        return self.primes[len(self.data_bits) :]

    @property
    def slots(self) -> int:
        """S: half of the ring degree; a plaintext holds two numbers in each slot."""
        return self.degree // 2

    @property
    def post_quantum(self) -> bool:
        """Whether the set is within Apple's table for 128 bits against a quantum attacker."""
        return self.modulus_bits <= QUANTUM_128_BITS[self.degree]

    @property
    def digest(self) -> bytes:
        """SHA-256 over every field, 32 bytes."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(_DIGEST_DOMAIN + text.encode()).digest()

    def element(self, step: int) -> int:
        """The Galois element 3^step mod 2N of a rotation by `step` slots to the left, 0 < step < slots."""
        if not 0 < step < self.slots:
            raise ConfigError(f"got a rotation by {step} slots, expected 1 to {self.slots - 1}")
        return pow(3, step, 2 * self.degree)


_HES = "Homomorphic Encryption Standard, 128-bit classical"
_APPLE = "Apple, 128-bit quantum"
# Score errors: seven standard deviations by the formulas of encoding/deviation.py, of vectors of norm 1, up to 64 baby
# steps (fast 1.19e-4, pq 2.30e-4), packing 1 and 1,024 dimensions (keyless 1.96e-5, keyless-small 1.63e-5), with a
# margin of 8 % to 28 %. exact: seven times sqrt(2/12) / 220, 1.30e-2, for entries that are rounded like random ones; at
# worst, for vectors made for it, sqrt(d) / 220 + d / 440^2.
FAST = Parameters(
    "fast", 4096, (27, 27), (27, 28), "ckks", 30, 22, 0, (26, 30), 1.5e-4, f"109 bits of 109 ({_HES}); no quantum claim"
)
PQ = Parameters(
    "pq", 8192, (27, 27), (27, 28), "ckks", 30, 22, 0, (27, 30), 2.5e-4, f"109 bits of 165 ({_APPLE}), of 218 ({_HES})"
)
EXACT = Parameters(
    "exact",
    4096,
    (27, 27),
    (27, 28),
    "bfv",
    0,
    0,
    114689,
    (28, 32),
    1.5e-2,
    f"109 bits of 109 ({_HES}); no quantum claim",
)
KEYLESS = Parameters(
    "keyless", 4096, (27, 27), (), "ckks", 28, 22, 0, (22, 27), 2.5e-5, f"54 bits of 83 ({_APPLE}), of 109 ({_HES})"
)
KEYLESS_SMALL = Parameters(
    "keyless-small", 2048, (27, 27), (), "ckks", 28, 22, 0, (22, 27), 2e-5, f"54 bits of 54 ({_HES}); no quantum claim"
)
# For a history instead of a vector (`he_inference.layouts.history`): the user vector is computed under all three data
# primes, then the first one is divided away and the rest is the second set, with the same remaining primes and keys.
# Their bound is for |u| = 2 and 16 baby steps (encoding/deviation.py, 1.20e-4): most of it u's rotations and rounding,
# 7.2e-6, and the rounding of rows, 7.6e-6 |u|.
HISTORY = Parameters(
    "history", 8192, (27, 27, 27), (28, 28, 28), "ckks", 32, 22, 0, (28, 32), 1.25e-4,
    f"165 bits of 165 ({_APPLE}), of 218 ({_HES})",
)  # fmt: skip
HISTORY_SCORES = Parameters(
    "history-scores", 8192, (27, 27), (28, 28, 28), "ckks", 30, 22, 0, (28, 32), 1.25e-4,
    f"a part of history: 138 bits of 165 ({_APPLE}), of 218 ({_HES})",
)  # fmt: skip
_HISTORY_SETS = {parameters.name: parameters for parameters in (HISTORY, HISTORY_SCORES)}
DEFAULT = PQ
_SETS = {parameters.name: parameters for parameters in (FAST, PQ, EXACT, KEYLESS, KEYLESS_SMALL)}
NAMES = tuple(_SETS)


def named(name: str) -> Parameters:
    """The set called `name`; raises `ConfigError` for any other text."""
    try:
        return _SETS[name] if name in _SETS else _HISTORY_SETS[name]
    except KeyError:
        raise ConfigError(
            f"got parameter set {name[:_LONGEST_NAME]!r}, expected one of {', '.join(NAMES)}",
            hint="a set is taken by name only; update both sides when one of them knows a newer one",
        ) from None
