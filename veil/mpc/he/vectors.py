"""Shares of L * R, number by number, modulo 2^64 or cut by some bits: one party asks with L, the other answers with R.

Integers are computed with exactly, modulo T, a product of two, four or six primes; each pair of primes is a plaintext
modulus with N slots (`spaces`), and the pairs answer separately. Complex numbers multiply as such: modulo a prime t = 1
mod 4 there is an i with i^2 = -1, and (C + i S, C - i S) turns their product into two of numbers.

Guarantee: for bounded inputs the shares add up to the product exactly, or, with `shift`, to the product divided by
2^shift, rounded down or up. The answerer sees encryptions only. The asker sees z + r modulo T with r uniform in
[M, M + 2^e), |z| <= M, e at most 59, 119 or 179: no number wraps, and 8192 of them are within a statistical distance of
2^-40 of what does not depend on z, M being at most 2^(e - 53). Beside that it sees what `keys` says: nothing.

Slots: N. Smart, F. Vercauteren, eprint 2011/133.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from veil.errors import InputError
from veil.mpc.he import keys, ntt, residues
from veil.mpc.he.bits import mismatch
from veil.mpc.he.keys import PublicKey, SecretKey
from veil.mpc.he.residues import Integers, Longs, negative, plus
from veil.mpc.he.ring import Ring, Words, ring
from veil.mpc.he.spaces import DEGREE, slots, whole
from veil.mpc.randomness import RingStream

MOST_NUMBERS = 2**22
# A mask is this many bits longer than what it hides: 40, and 13 for the 8192 numbers of an answer.
HIDING_BITS = 53
_MASK_BITS = (59, 119, 179)
_PLACES = np.arange(DEGREE)


@dataclass(frozen=True)
class VectorPlan:
    """Products of int64[count] each; both sides hold the same plan. Raises `InputError` beyond a bound.

    left_bits, right_bits: bounds, |L| < 2^left_bits; 64 for any int64. complex_numbers: int64[2, count] instead, real
    parts and imaginary ones, each within the bounds. shift: cut so many bits of the product. limb_bits:
    shares that add up over the integers, not modulo 2^64, in two signed limbs, the lower one of so many bits.
    """

    count: int
    left_bits: int
    right_bits: int
    complex_numbers: bool = False
    shift: int = 0
    limb_bits: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MOST_NUMBERS or not all(1 <= b <= 64 for b in (self.left_bits, self.right_bits)):
            raise InputError(
                f"got {self.count} products of {self.left_bits} and {self.right_bits} bits, expected 1 to"
                f" {MOST_NUMBERS} of 1 to 64 bits each",
                hint="split the vector",
            )
        if not 0 <= self.shift <= min(self.product_bits, 63) or self.pairs > len(_MASK_BITS):
            raise InputError(
                f"got a product of {self.product_bits} bits to be cut by {self.shift}, expected at most"
                f" {_MASK_BITS[-1] - HIDING_BITS} bits, cut by fewer than 64 of them"
            )

        if self.limb_bits and not (
            self.mask_bits < 127 and self.mask_bits + 1 - self.shift - 62 <= self.limb_bits <= 62
        ):
            raise InputError(
                f"got masks of {self.mask_bits} bits, cut by {self.shift}, for limbs of {self.limb_bits} bits, expected"
                " at most 126 bits, and limbs that hold them"
            )

    @property
    def mask_bits(self) -> int:
        """e: as many as there is room for, or, of shares in limbs, as many as it takes."""
        return self.product_bits + HIDING_BITS if self.limb_bits else _MASK_BITS[self.pairs - 1]

    @property
    def product_bits(self) -> int:
        """log2 of M: of 64 bits, one is the sign; a complex product is a sum of two."""
        return min(self.left_bits, 63) + min(self.right_bits, 63) + int(self.complex_numbers)

    @property
    def pairs(self) -> int:
        """How many pairs of primes answer."""
        return 1 + sum(self.product_bits > bits - HIDING_BITS for bits in _MASK_BITS)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of factors."""
        return (2, self.count) if self.complex_numbers else (self.count,)

    @property
    def result_shape(self) -> tuple[int, ...]:
        """Shape of shares."""
        return (2, *self.shape) if self.limb_bits else self.shape

    @property
    def chunks(self) -> int:
        """Runs of N numbers."""
        return -(-math.prod(self.shape) // DEGREE)

    @property
    def request_bytes(self) -> int:
        """Length of the request."""
        return keys.request_bytes(self.chunks * self.pairs)

    @property
    def answer_bytes(self) -> int:
        """Length of the answer."""
        return self.chunks * self.pairs * keys.answer_bytes(DEGREE)


@lru_cache(maxsize=3)
def _ring(pairs: int) -> Ring:
    return ring(DEGREE, tuple(prime for space in slots()[:pairs] for prime in space.primes))


@lru_cache(maxsize=3)
def _roots(pairs: int) -> tuple[int, ...]:
    """A root of -1 for each prime: the psi^(N/2) of its ring."""
    return tuple(int(row[1]) for row in _ring(pairs).forward)


def ask(plan: VectorPlan, left: Integers, key: SecretKey) -> bytes:
    """The request for L, int64 of `VectorPlan.shape`."""
    _check(plan, left, plan.left_bits, "a left factor")
    places = _places(plan, residues.of_signed(left.ravel(), _ring(plan.pairs)))
    return key.encrypt(_scaled(plan, places), "vector")


def answer(
    plan: VectorPlan, request: bytes, right: Integers, key: PublicKey, stream: RingStream
) -> tuple[bytes, Integers]:
    """The answer for R and the own share of L * R, int64 of `VectorPlan.result_shape`. Raises `ProtocolMismatch`."""
    _check(plan, right, plan.right_bits, "a right factor")
    if len(request) != plan.request_bytes:
        raise mismatch(f"a request of {len(request)} bytes", f"{plan.request_bytes}", key.peer)
    held = keys.open_request(request, plan.chunks * plan.pairs, "vector", peer=key.peer, what="a request")
    factors = _polynomials(plan, _places(plan, residues.of_signed(right.ravel(), _ring(plan.pairs))))
    # One word more, so that there are two to cut from.
    words = np.pad(keys.uniform_bits(plan.mask_bits, right.size, stream), ((0, 1), (0, 0)))
    _add_power(words, plan.product_bits)
    masks = _scaled(plan, _places(plan, residues.of_words(words, _ring(plan.pairs))))
    parts = []
    for number, (pair, factor, mask) in enumerate(zip(held, factors, masks, strict=True)):
        transformed = residues.of_signed(factor, whole())
        ntt.forward(transformed, whole())
        product = np.zeros_like(pair)
        residues.plus_product(product, pair, transformed, whole())
        parts.append(key.hide(product, mask, _PLACES, slots()[number % plan.pairs], stream))
    return b"".join(parts), -_share(plan, words)


def finish(plan: VectorPlan, reply: bytes, key: SecretKey, *, peer: str) -> Integers:
    """The asker's share of L * R, int64 of `VectorPlan.result_shape`. Raises `ProtocolMismatch` naming `peer`."""
    count = plan.chunks * plan.pairs
    if len(reply) != plan.answer_bytes:
        raise mismatch(f"an answer of {len(reply)} bytes", f"{plan.answer_bytes}", peer)
    second, first = keys.read_answers(memoryview(reply), DEGREE, count, peer=peer)
    places = np.empty((plan.chunks, 2 * plan.pairs, DEGREE), np.uint32)
    for number in range(count):
        chunk, pair = divmod(number, plan.pairs)
        values, _ = key.decrypt(second[number : number + 1], first[number : number + 1], _PLACES, slots()[pair])
        places[chunk, 2 * pair : 2 * pair + 2] = values[0]
    ring_ = _ring(plan.pairs)
    ntt.forward(places, ring_)
    flat = np.ascontiguousarray(places.transpose(1, 0, 2)).reshape(len(ring_.primes), -1)
    return _share(plan, residues.joined(_numbers(plan, flat), ring_))


def _places(plan: VectorPlan, numbers: Words) -> Words:
    """uint32[chunks, primes, N] of residues uint32[primes, numbers]: what the slots hold."""
    ring_ = _ring(plan.pairs)
    if plan.complex_numbers:
        real, imaginary = numbers[:, : plan.count], numbers[:, plan.count :].copy()
        residues.times_each(imaginary, _roots(plan.pairs), ring_)
        numbers = np.concatenate([plus(real, imaginary, ring_), plus(real, negative(imaginary, ring_), ring_)], axis=1)
    padded = np.zeros((len(numbers), plan.chunks * DEGREE), np.uint32)
    padded[:, : numbers.shape[1]] = numbers
    return np.ascontiguousarray(padded.reshape(len(numbers), plan.chunks, DEGREE).transpose(1, 0, 2))


def _numbers(plan: VectorPlan, flat: Words) -> Words:
    """The way back: uint32[primes, numbers] of uint32[primes, chunks N]."""
    if not plan.complex_numbers:
        return np.ascontiguousarray(flat[:, : plan.count])
    ring_ = _ring(plan.pairs)
    first, second = flat[:, : plan.count], flat[:, plan.count : 2 * plan.count]
    real = plus(first, second, ring_)
    imaginary = plus(first, negative(second, ring_), ring_)
    residues.times_each(real, tuple(pow(2, -1, q) for q in ring_.primes), ring_)
    halves = tuple(pow(2 * root, -1, q) for root, q in zip(_roots(plan.pairs), ring_.primes, strict=True))
    residues.times_each(imaginary, halves, ring_)
    return np.concatenate([real, imaginary], axis=1)


def _scaled(plan: VectorPlan, places: Words) -> Words:
    """uint32[chunks pairs, primes of Q, N]: the slots as messages to encrypt or to add."""
    places = places.copy()
    factors = tuple(space.factor % prime for space in slots()[: plan.pairs] for prime in space.primes)
    residues.times_each(places, factors, _ring(plan.pairs))
    polynomials = _polynomials(plan, places)
    return np.stack([slots()[n % plan.pairs].scaled(row) for n, row in enumerate(polynomials)])


def _polynomials(plan: VectorPlan, places: Words) -> Integers:
    """int64[chunks pairs, N]: centred coefficients modulo t1 t2 of polynomials with those slots."""
    coefficients = places.copy()
    ntt.inverse(coefficients, _ring(plan.pairs))
    rows = []
    for chunk in coefficients.astype(np.int64):
        for pair, space in enumerate(slots()[: plan.pairs]):
            first, second = space.primes
            low, high = chunk[2 * pair], chunk[2 * pair + 1]
            value = low + first * ((high - low) * pow(first, -1, second) % second)
            rows.append(np.where(value > space.modulus // 2, value - space.modulus, value))
    return np.stack(rows)


def _add_power(words: Longs, exponent: int) -> None:
    """Adds M = 2^exponent to numbers of several words, in place."""
    carry = np.uint64(1 << (exponent % 64))
    for word in words[exponent // 64 :]:
        word += carry
        carry = word < carry


def _share(plan: VectorPlan, words: Longs) -> Integers:
    """int64 of `VectorPlan.result_shape`: numbers of two words and more, cut."""
    cut = _bits_from(words, plan.shift)
    if not plan.limb_bits:
        return cut.view(np.int64).reshape(plan.shape)
    low = cut & np.uint64((1 << plan.limb_bits) - 1)
    high = _bits_from(words, plan.shift + plan.limb_bits)
    return np.stack([low, high]).view(np.int64).reshape(plan.result_shape)


def _bits_from(words: Longs, place: int) -> Longs:
    """uint64[n]: bits place to place + 63 of the two lowest words."""
    low: Longs = words[place // 64] >> np.uint64(place % 64)
    if 0 < place < 64:
        low |= words[1] << np.uint64(64 - place)
    return low


def _check(plan: VectorPlan, numbers: Integers, bits: int, what: str) -> None:
    if numbers.dtype != np.int64 or numbers.shape != plan.shape:
        raise InputError(f"got {what} of {numbers.dtype}{list(numbers.shape)}, expected int64{list(plan.shape)}")
    if bits < 64 and ((numbers >= 1 << bits) | (numbers <= -(1 << bits))).any():
        raise InputError(f"got {what} with numbers beyond {bits} bits, expected what the plan says")
