"""One party's secret key and its peers' public ones: encryption, hiding of what was computed, decryption.

    public key    b = -a s + e            a from a seed                                      (`hello`)
    request       b = -a s + e + Q m / t  a from the request's seed, one polynomial for each ciphertext
    answer        (c0, c1) = what was computed on requests, plus u (b, a) of the public key, e1 on c1, flood and mask on
                  c0, then both rounded from Q to K; of c0 only the coefficients that carry results

Letters: s, u ternary and e, e1 SEAL's errors (`scheme`), each drawn for one use.

Guarantee, against parties that follow the protocol. Requests are samples of ring learning with errors: whoever holds
no key learns nothing (no seed, error or polynomial a serves twice; a is uniform if AES-256 with a public key is
modelled as a random function, as SEAL's own generator is). Answers tell the owner of the key the masked result and
nothing else of what its peer multiplied by:

1. Decryption gives, beside the message, the noise v + f: v of the computation (the sum of (e + d) R, and u e + e1 s),
   d what rounding the message to integers added to e, f uniform in [-2^(F-1), 2^(F-1)), drawn for each coefficient
   that is sent. Given everything the owner knows, e and d among it, v + f is within a statistical distance of
   |v| / 2^F of f alone. F is 126 for matrices; d is random and has a mean of 0 (`matrix`), so v of k products by 64-bit
   numbers has a mean absolute value of at most 2.7 * 2^63 sqrt(k) whatever is multiplied, and even k = 2^16
   (`MOST_TERMS`) leaves 53 bits for each coefficient, and all 8192 of an answer within 2^-40. For vectors F is 130, R
   below 2^59, and d at most 1/2: at its very worst, 8192 times that, 59 bits and 2^-46. These are distances for one
   answer; those of all answers that a party gives add up.
2. With v gone, c0 follows from c1, the masked message and f. c1 = sum of a R + u a + e1 is a known number plus a sample
   of ring learning with errors with the secret u, uniform to everybody else.
3. Rounding and what is left out come after that, computed from (c0, c1) alone.

Decryption of an answer fails with a probability below 2^-70: of the 1004 units that it bears, flood takes 513 at most,
v at its very worst (k times 22 * 2^63) less than one, and what is left for rounding, a sum of at most 8192 numbers
within a half, is exceeded with a probability of at most 2^-83 a coefficient (Hoeffding); its deviation is 21 units.

A peer that does not follow the protocol is not covered: it can make a request whose noise, or a public key whose first
half, tells it more. What it sends is checked for form only (`bits`).

Sources: Fan, Vercauteren, eprint 2012/144; C. Gentry, A fully homomorphic encryption scheme (2009), on circuit privacy.
"""

from __future__ import annotations

import hashlib
import secrets

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from veil.mpc.he import bits, ntt, residues
from veil.mpc.he.residues import Integers, Longs, negative, plus
from veil.mpc.he.ring import Ring, Words
from veil.mpc.he.scheme import sampler
from veil.mpc.he.spaces import DEGREE, Space, kept, rounding, whole
from veil.mpc.randomness import KEY_BYTES, RingStream

SEED_BYTES = 32
MOST_TERMS = 2**16
_DOMAIN = b"veil/he-uniform/v1\x00"


def uniform(seed: bytes, label: str, ring: Ring) -> Words:
    """uint32[primes, N]: a polynomial that follows from seed and label, by rejection of words of AES-256-CTR."""
    key = hashlib.sha256(_DOMAIN + seed + label.encode()).digest()
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    out = np.empty((len(ring.primes), ring.degree), np.uint32)
    for row, prime in zip(out, ring.primes, strict=True):
        filled = 0
        while filled < ring.degree:
            missing = ring.degree - filled
            words = np.frombuffer(stream.update(bytes(4 * (missing + missing // 64 + 64))), "<u4")
            filled += bits.leading_below(words, prime, row[filled:])
    return out


def hello_bytes() -> int:
    """Length of a public key."""
    return SEED_BYTES + bits.rows_bytes(1, DEGREE, whole())


class SecretKey:
    """One party's key for as long as the object lives; it is never stored. One thread at a time.

    rounding: what rounds messages at random (`matrix`).
    """

    def __init__(self) -> None:
        ring = whole()
        self.rounding = RingStream(secrets.token_bytes(KEY_BYTES), b"he-rounding")
        self._s = residues.of_signed(sampler(DEGREE).secret().astype(np.int64), ring)
        ntt.forward(self._s, ring)
        self._s_kept = np.ascontiguousarray(self._s[: len(kept().primes)])

    def __repr__(self) -> str:
        return "SecretKey()"

    def hello(self) -> bytes:
        """The public key of a session; every call gives another one."""
        nothing = np.zeros((1, len(whole().primes), DEGREE), np.uint32)
        return self.encrypt(nothing, "hello")

    def encrypt(self, messages: Words, label: str) -> bytes:
        """The request of uint32[ciphertexts, primes, N], numbers of `Space.scaled`. label: the kind of request."""
        ring = whole()
        seed = secrets.token_bytes(SEED_BYTES)
        rows = np.empty(messages.shape, np.uint32)
        for number, message in enumerate(messages):
            error = sampler(DEGREE).error().astype(np.int64)
            total = plus(residues.of_signed(error, ring), message, ring)
            ntt.forward(total, ring)
            product = np.zeros_like(total)
            residues.plus_product(product, uniform(seed, f"{label} {number}", ring), self._s, ring)
            rows[number] = plus(total, negative(product, ring), ring)
        return seed + bits.write_rows(rows, ring)

    def decrypt(self, second: Words, first: Words, places: Integers, space: Space) -> tuple[Integers, float]:
        """What answers hold, int64[answers, moduli of the space, n], and the largest distance from an integer.

        second: uint32[answers, kept primes, N], c1; first: uint32[answers, kept primes, n], c0 at `places`. A distance
        of 1/2 is where decryption fails; it depends on the noise, so it must not be told to anybody.
        """
        ring = kept()
        c1 = second.copy()
        ntt.forward(c1, ring)
        product = np.zeros_like(c1)
        residues.plus_product(product, c1, self._s_kept, ring)
        ntt.inverse(product, ring)
        furthest, results = 0.0, []
        for row, part in zip(product, first, strict=True):
            values, distances = space.rounded(plus(row[:, places], part, ring))
            results.append(values)
            furthest = max(furthest, float(np.abs(distances).max(initial=0.0)))
        return np.stack(results), furthest


def open_request(data: bytes | memoryview, ciphertexts: int, label: str, *, peer: str, what: str) -> Words:
    """uint32[ciphertexts, 2, primes, N], transformed. Raises `ProtocolMismatch` naming `peer`."""
    ring = whole()
    if len(data) < SEED_BYTES:
        raise bits.mismatch(f"{what} of {len(data)} bytes", f"{request_bytes(ciphertexts)}", peer)
    view = memoryview(data)[SEED_BYTES:]
    first = bits.read_rows(view, ciphertexts, DEGREE, ring, peer=peer, what=what)
    out = np.empty((ciphertexts, 2, len(ring.primes), DEGREE), np.uint32)
    for number in range(ciphertexts):
        out[number, 0] = first[number]
        out[number, 1] = uniform(bytes(data[:SEED_BYTES]), f"{label} {number}", ring)
    return out


def request_bytes(ciphertexts: int) -> int:
    """Length of a request."""
    return SEED_BYTES + bits.rows_bytes(ciphertexts, DEGREE, whole())


def answer_bytes(results: int) -> int:
    """Length of one answer that carries so many results."""
    return bits.rows_bytes(1, DEGREE, kept()) + bits.rows_bytes(1, results, kept())


class PublicKey:
    """A peer's key, from its `hello`: hides what was computed under it."""

    def __init__(self, hello: bytes, *, peer: str) -> None:
        """Raises `ProtocolMismatch` naming `peer` for bytes of another form."""
        self.peer = peer
        self._pair = open_request(hello, 1, "hello", peer=peer, what="a public key")[0]

    def __repr__(self) -> str:
        return f"PublicKey({self.peer})"

    def hide(self, product: Words, masks: Words, places: Integers, space: Space, stream: RingStream) -> bytes:
        """The answer made of uint32[2, primes, N], transformed, which is spent.

        masks: uint32[primes, n], numbers of `Space.scaled` to add to the coefficients at `places`.
        """
        ring = whole()
        u, error = sampler(DEGREE).ternary()
        once = residues.of_signed(u.astype(np.int64), ring)
        extra = residues.of_signed(error.astype(np.int64), ring)
        ntt.forward(once, ring)
        ntt.forward(extra, ring)
        residues.plus_product(product, self._pair, np.stack([once, once]), ring)
        product[1] = plus(product[1], extra, ring)
        ntt.inverse(product, ring)
        first = plus(product[0][:, places], masks, ring)
        first = plus(first, _flood(len(places), space.flood_bits, stream), ring)
        second = rounding()(product[1])
        return bits.write_rows(second[None], kept()) + bits.write_rows(rounding()(first)[None], kept())


def read_answers(data: memoryview, results: int, count: int, *, peer: str) -> tuple[Words, Words]:
    """c1 uint32[count, kept primes, N] and c0 uint32[count, kept primes, results] of answers one after the other."""
    size, cut = answer_bytes(results), bits.rows_bytes(1, DEGREE, kept())
    if len(data) != count * size:
        raise bits.mismatch(f"an answer of {len(data)} bytes", f"{count * size}", peer)
    second, first = [], []
    for start in range(0, count * size, size):
        one = data[start : start + size]
        second.append(bits.read_rows(one[:cut], 1, DEGREE, kept(), peer=peer, what="an answer")[0])
        first.append(bits.read_rows(one[cut:], 1, results, kept(), peer=peer, what="an answer")[0])
    return np.stack(second), np.stack(first)


def _flood(count: int, flood_bits: int, stream: RingStream) -> Words:
    """uint32[primes, count]: numbers uniform in [-2^(F-1), 2^(F-1)), modulo Q."""
    ring = whole()
    words = uniform_bits(flood_bits, count, stream)
    centre = np.array([-(1 << (flood_bits - 1)) % q for q in ring.primes], np.uint32)[:, None]
    return plus(residues.of_words(words, ring), centre, ring)


def uniform_bits(exponent: int, count: int, stream: RingStream) -> Longs:
    """uint64[words, count]: numbers uniform in [0, 2^exponent), the least significant word first."""
    words: Longs = stream.ring((-(-exponent // 64), count)).numpy().view(np.uint64)
    words[-1] &= np.uint64((1 << ((exponent - 1) % 64 + 1)) - 1)
    return words
