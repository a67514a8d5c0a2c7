"""Gaussian noise rounded to integers, sampled exactly from a cryptographic generator.

Guarantee: `rounded_gaussian` returns independent values of exactly `round(sigma * Z)`, Z standard normal, given that
the source's bytes are uniform and independent. No floating-point number takes part in any decision.

Algorithm (Karney 2016, "Sampling exactly from the normal distribution", ACM TOMS 42:1, arXiv 1303.6257, algorithms N
and B, here in units of 1/s standard deviations, s = 2^7, which makes rejections rare). Write |Z| = (k + x)/s with k an
integer >= 0 and x in (0, 1). The density of (k, x) is proportional to

    exp(-(k + x)^2 / 2 s^2) = exp(-k^2 / 2 s^2) * exp(-x (2k + x) / 2 s^2),  hence

(1) draw k with probability proportional to exp(-k^2 / 2 s^2). Karney's N1 and N2 reach a law of this form by rejection;
    here it is by inversion: k is the number of j >= 1 with u < t_j, where u is uniform and t_j = P(K >= j);
(2) draw x uniform;
(3) accept with probability exp(-x (2k + x) / 2 s^2), otherwise start again at (1). Algorithm B, after von Neumann: with
    y = x at first, n counts how often in a row both a new uniform z < y (which replaces y) and a coin of probability
    (2k + x) / 2 s^2 succeed. n >= i has probability x^i / i! * ((2k + x) / 2 s^2)^i, therefore n is even with
    probability exp(-x (2k + x) / 2 s^2). The coin takes an integer c uniform below 2 s^2 = 2^15: success if c < 2k,
    failure if c > 2k, and if c = 2k success when a new uniform is below x;
(4) draw a sign, return sign * floor(sigma (k + x)/s + 1/2).

Why it is exact: a uniform is a sequence of 64-bit digits that is extended as far as a decision asks for. A comparison
is decided only by intervals that do not overlap: u against t_j by integer bounds of t_j at the precision of u, two
uniforms by their first unequal digit, the rounding when sigma (k + x)/s stays between two neighbouring half-integers
for every continuation of x. All of these are decided after finitely many digits with probability one. numpy decides,
on first digits alone, the candidates for which these suffice (99.4%); every other one goes, with the digits that it
has, through `_Exact`, one by one in Python integers. Nothing is dropped other than by (3).

The one deviation: a decision that would take more than 1,024 binary digits of one uniform stops with an error instead.
Its probability is below 2^-900; a generator that gets there is broken. (It also keeps k far below s^2, |Z| < 38, and
with it the coin's probability below 1.)
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from veil.errors import InputError, StateError
from veil.privacy.normal_tails import UNIT_BITS, tail_bounds

ByteSource = Callable[[int], bytes]
"""Called with n, returns the next n bytes of a cryptographic generator."""

SIGMA_LIMIT: Final = 2**52
_COIN_BITS: Final = 2 * UNIT_BITS + 1  # 2 s^2 = 2^15: with the sign, a candidate's coin fills 16 bits
_COIN_MASK: Final = (1 << _COIN_BITS) - 1
_BLOCK: Final = 1 << 15  # candidates at once: their arrays stay in the processor's second-level cache
_BUFFER_BYTES: Final = 1 << 12
_DIGIT: Final = 64
_BITS_LIMIT: Final = 1024
_UNDECIDED: Final = 0xFFFF


class _Keystream:
    """AES-256-CTR keystream. Asks `make_key` for a new key in a forked child, so that no two processes share noise."""

    def __init__(self, make_key: Callable[[], bytes], *, rekey_in_child: bool) -> None:
        self._make_key = make_key
        self._rekey_in_child = rekey_in_child
        self._lock = threading.Lock()
        self._start()

    def _start(self) -> None:
        # The nonce may be constant because a key is never used for a second stream.
        self._stream = Cipher(algorithms.AES(self._make_key()), modes.CTR(bytes(16))).encryptor()
        self._process = os.getpid()
        self._buffer = b""
        self._at = 0

    def __call__(self, size: int) -> bytes:
        if size < 0:
            raise InputError(f"got a request for {size} bytes, expected at least 0")
        with self._lock:
            if self._rekey_in_child and self._process != os.getpid():
                self._start()
            ready = len(self._buffer) - self._at
            if size > ready:
                # One stream, whatever the sizes asked for: the rest of the buffer comes first.
                head = self._buffer[self._at :]
                fresh = self._stream.update(bytes(max(size - ready, _BUFFER_BYTES)))
                self._buffer, self._at = fresh, size - ready
                return head + fresh[: size - ready]
            self._at += size
            return self._buffer[self._at - size : self._at]

    def __repr__(self) -> str:
        return "<AES-256-CTR keystream>"


def system_source() -> ByteSource:
    """AES-256-CTR keystream under a key from the operating system; safe to share among threads and across `fork`."""
    return _Keystream(lambda: os.urandom(32), rekey_in_child=True)


def keyed_source(key: bytes, label: bytes) -> ByteSource:
    """Reproducible keystream for one (key, label): AES-256-CTR under HKDF-SHA256 of the key with the label as info.

    For tests, and for runs that must repeat a draw. Two sources with the same key and label give the SAME noise, so the
    label names the single use. `key` has at least 16 bytes and is secret and uniform. Raises `InputError`.
    """
    if len(key) < 16:
        raise InputError(f"got a key of {len(key)} bytes, expected at least 16")
    derived = HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=b"veil/noise/v1\x00" + label).derive(key)
    return _Keystream(lambda: derived, rekey_in_child=False)


def rounded_gaussian(size: int, sigma: int, source: ByteSource) -> npt.NDArray[np.int64]:
    """`size` independent values of exactly round(sigma * Z), Z standard normal; int64[size].

    `sigma` in grid steps, 1 <= sigma < 2^52. The bytes taken from `source`, and so the result under a keyed source,
    depend on `size` and `sigma` alone. How long a call takes depends slightly on the values (see docs/privacy.md).
    Raises `InputError` for arguments out of range.
    """
    if size < 0:
        raise InputError(f"got size {size}, expected at least 0")
    if not 1 <= sigma < SIGMA_LIMIT:
        raise InputError(f"got sigma {sigma} grid steps, expected 1 to 2^52 - 1")
    out = np.empty(size, dtype=np.int64)
    filled = 0
    while filled < size:
        values = _candidates(min(_BLOCK, size - filled), int(sigma), source)
        out[filled : filled + values.size] = values
        filled += values.size
    return out


def _candidates(count: int, sigma: int, source: ByteSource) -> npt.NDArray[np.int64]:
    """Runs steps (1) to (4) on `count` candidates; returns those that step (3) accepts, in order."""
    u = np.frombuffer(source(8 * count), dtype="<u8")
    x = np.frombuffer(source(8 * count), dtype="<u8")
    coin = np.frombuffer(source(2 * count), dtype="<u2")
    cell, undecided = _cells(u)  # (1)
    # (3) c > 2k ends algorithm B at n = 0: accepted. Anything else is for the exact path.
    undecided |= (coin & np.uint16(_COIN_MASK)) <= cell << 1
    magnitude, straddles = _scaled(cell, x, sigma)  # (4)
    undecided |= straddles
    values = np.where(coin >> np.uint16(_COIN_BITS), -magnitude, magnitude)
    where = np.flatnonzero(undecided)
    if where.size:
        exact = _Exact(sigma, source)
        rejected = []
        for i in where.tolist():
            value = exact.value(int(u[i]), int(x[i]), int(coin[i]))
            if value is None:
                rejected.append(i)
            else:
                values[i] = value
        values = np.delete(values, rejected)
    return values


def _cells(u: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Step (1) on first digits: k, and where they do not decide it."""
    table = _cell_table()
    cell = table.guide[u >> np.uint64(48)]
    hard = np.flatnonzero(cell == _UNDECIDED)
    undecided = np.zeros(u.size, dtype=np.bool_)
    if hard.size:
        digits = u[hard]
        below = np.searchsorted(table.floors, digits, side="right")  # floors of t_j, ascending, that are <= u
        cell[hard] = table.floors.size - below
        # Equal to a floor: t_j lies within this digit's interval. Zero: so do all the t_j that the table leaves out.
        undecided[hard] = (digits == 0) | (table.floors[np.maximum(below, 1) - 1] == digits)
    return cell.astype(np.int64), undecided


def _scaled(
    cell: npt.NDArray[np.int64], x: npt.NDArray[np.uint64], sigma: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Step (4) on the first digit h of x: floor(sigma (k + x)/s + 1/2), and where later digits may change it.

    sigma x lies in [sigma h, sigma h + sigma) / 2^64. With sigma h = high 2^64 + low, the integer part of sigma x is
    `high` for every continuation unless low + sigma - 1 carries, and then at most high + 1; that changes the result
    only where sigma k + high + s/2 + 1 is a multiple of s. Products of 32-bit halves: none exceeds 64 bits.
    """
    mask, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    sigma_low, sigma_high = np.uint64(sigma & 0xFFFFFFFF), np.uint64(sigma >> 32)
    x_low, x_high = x & mask, x >> shift
    low_low = x_low * sigma_low
    high_low = x_high * sigma_low
    middle = (low_low >> shift) + (high_low & mask) + x_low * sigma_high  # < 2^54, as sigma_high < 2^20
    high = x_high * sigma_high + (high_low >> shift) + (middle >> shift)
    low = (middle << shift) | (low_low & mask)
    # sigma k < 2^52 * 2^11 = 2^63: the table's cells end before 2^11.
    total = high.view(np.int64) + cell * sigma + (1 << (UNIT_BITS - 1))
    carries = low > np.uint64((1 << 64) - sigma)
    straddles = carries & ((total + 1) & ((1 << UNIT_BITS) - 1) == 0)
    return total >> UNIT_BITS, straddles


class _Uniform:
    """A uniform in (0, 1), known to `bits` binary digits: in [value, value + 1) / 2^bits."""

    __slots__ = ("bits", "value")

    def __init__(self, digit: int) -> None:
        self.value = digit
        self.bits = _DIGIT


class _Exact:
    """Steps (1) to (4) for one candidate in Python integers, from first digits that were drawn already."""

    def __init__(self, sigma: int, source: ByteSource) -> None:
        self._sigma = sigma
        self._source = source

    def value(self, u: int, x: int, coin: int) -> int | None:
        """The signed value, or None when step (3) rejects. `u`, `x`: 64-bit digits; `coin`: sign bit and c."""
        k = self._cell(_Uniform(u))
        position = _Uniform(x)
        if not self._accepts(k, position, coin & _COIN_MASK):
            return None
        magnitude = self._rounded(k, position)
        return -magnitude if coin >> _COIN_BITS else magnitude

    def _digit(self) -> int:
        return int.from_bytes(self._source(_DIGIT // 8), "little")

    def _extend(self, uniform: _Uniform) -> None:
        if uniform.bits >= _BITS_LIMIT:
            raise StateError(f"got no decision from {uniform.bits} random bits, expected one: the generator is broken")
        uniform.value = (uniform.value << _DIGIT) | self._digit()
        uniform.bits += _DIGIT

    def _cell(self, u: _Uniform) -> int:
        """Step (1): the number of j >= 1 with u < t_j."""
        while True:
            lower, upper = tail_bounds(u.bits)
            surely = len(lower) - bisect_right(lower, u.value)  # value + 1 <= lower bound
            possibly = len(upper) - bisect_right(upper, u.value)  # value < upper bound
            # The tails left out are positive and below 2^-bits, hence open exactly while the digits are all zero.
            if surely == possibly and u.value > 0:
                return surely
            self._extend(u)

    def _accepts(self, k: int, x: _Uniform, c: int) -> bool:
        """Step (3), algorithm B; `c` is the first coin's integer."""
        y, successes = x, 0
        while True:
            z = _Uniform(self._digit())
            if not self._less(z, y):
                break
            if c > 2 * k or (c == 2 * k and not self._less(_Uniform(self._digit()), x)):
                break
            y, successes = z, successes + 1
            c = int.from_bytes(self._source(2), "little") & _COIN_MASK
        return successes % 2 == 0

    def _less(self, a: _Uniform, b: _Uniform) -> bool:
        """Whether a < b, by their first unequal digit. `a` is new (one digit), so it catches up with `b` first."""
        while True:
            while a.bits < b.bits:
                if a.value != b.value >> (b.bits - a.bits):
                    return a.value < b.value >> (b.bits - a.bits)
                self._extend(a)
            if a.value != b.value:
                return a.value < b.value
            self._extend(b)

    def _rounded(self, k: int, x: _Uniform) -> int:
        """Step (4) without the sign."""
        while True:
            shift = x.bits + UNIT_BITS
            start = self._sigma * ((k << x.bits) + x.value) + (1 << (shift - 1))
            # x < (value + 1) / 2^bits strictly, so the last point to look at is one below the interval's end.
            if start >> shift == (start + self._sigma - 1) >> shift:
                return start >> shift
            self._extend(x)


@dataclass(frozen=True)
class _CellTable:
    """`floors`: floor(2^64 t_j), ascending, j >= 1. `guide`: k by the first 16 bits of u, where these decide it."""

    floors: npt.NDArray[np.uint64]
    guide: npt.NDArray[np.uint16]


@lru_cache(maxsize=1)
def _cell_table() -> _CellTable:
    lower, upper = tail_bounds(_DIGIT)
    if any(high != low + 1 for low, high in zip(lower, upper, strict=True)) or len(lower) >= 1 << 11:
        raise StateError("got threshold bounds that are too wide, expected neighbouring integers")
    floors = np.array(lower, dtype=np.uint64)
    edges = np.arange(1 << 16, dtype=np.uint64) << np.uint64(48)
    first = np.searchsorted(floors, edges, side="left")  # floors below the bucket
    last = np.searchsorted(floors, edges | np.uint64((1 << 48) - 1), side="right")  # floors up to its end
    guide = np.where(first == last, floors.size - first, _UNDECIDED).astype(np.uint16)
    guide[0] = _UNDECIDED
    return _CellTable(floors, guide)
