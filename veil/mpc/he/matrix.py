"""Shares of L R modulo 2^64: one party holds L and asks, the other holds R and answers, as often as it likes.

The asker encrypts L once, column by column, as coefficients; the answerer multiplies by R and adds; the asker decrypts.
A block of at most N rows, padded to m' (a power of two), p columns of R an answer, g = N / (m' p) columns of L a
ciphertext:

    L_u(X) = sum over g', i of   L[i, u g + g'] X^(m' p g' + i)
    R_u(X) = sum over g', c of   R[u g + g', c] X^(m' c - m' p g')        c = 0 .. p - 1
    sum over u of L_u R_u:       coefficient m' c + i is the sum over k of L[i, k] R[k, c]

Only g' = g'' meets in those coefficients: other pairs are at least m' p away and at most N - m' p. R_u is a polynomial
in X^m', so its transform has N / m' values only.

Guarantee: shares are uniform modulo 2^64 and add up to the product, exactly; the answerer sees encryptions of L only;
the asker sees its share and nothing else of R (`keys`). One L may serve any number of R; each R is used once.

Packing of a matrix into coefficients: Z. Huang et al. (Cheetah), eprint 2022/207, section 3. There the vector is
encrypted and the matrix plain; here it is the other way round, so that a matrix that stays travels once, nothing is
sent to ask for another product, and what the noise could tell concerns a right side that serves once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from veil.errors import InputError
from veil.mpc.he import keys, ntt, residues
from veil.mpc.he.bits import mismatch
from veil.mpc.he.keys import MOST_TERMS, PublicKey, SecretKey
from veil.mpc.he.residues import Integers
from veil.mpc.he.ring import Words
from veil.mpc.he.spaces import DEGREE, RING, whole
from veil.mpc.randomness import RingStream

# 480 KB each at the answerer.
MOST_CIPHERTEXTS = 2048


@dataclass(frozen=True)
class Block:
    """Rows of L that share ciphertexts. Letters of the module: m', p, g, U."""

    start: int
    rows: int
    padded: int
    together: int
    grouped: int
    ciphertexts: int

    def places(self, columns: int) -> NDArray[np.int64]:
        """int64[columns * rows]: the coefficients of an answer that are results, column after column."""
        return (np.arange(columns)[:, None] * self.padded + np.arange(self.rows)).ravel()


@dataclass(frozen=True)
class MatrixPlan:
    """Products of L int64[rows, inner] and R int64[inner, any number of columns]; both sides hold the same plan.

    columns: how many columns of R are expected altogether; it decides only how much travels when. Raises `InputError`
    for an empty matrix, an inner dimension above 2^16 (split it and add the shares) or one of more than 2048
    ciphertexts (of 8192 numbers; split the rows).
    """

    rows: int
    inner: int
    columns: int

    def __post_init__(self) -> None:
        if min(self.rows, self.inner, self.columns) < 1 or self.inner > MOST_TERMS:
            raise InputError(
                f"got a product of shape {self.rows}, {self.inner}, {self.columns}, expected positive extents and an"
                f" inner one of at most {MOST_TERMS}",
                hint="split the inner extent and add the shares",
            )
        if self.rows * self.inner > DEGREE * MOST_CIPHERTEXTS or self.ciphertexts > MOST_CIPHERTEXTS:
            raise InputError(
                f"got a matrix of {self.rows} x {self.inner}, expected at most {MOST_CIPHERTEXTS} ciphertexts",
                hint="split its rows",
            )

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Blocks of N rows, and one of what is left."""
        return tuple(self._block(start, min(DEGREE, self.rows - start)) for start in range(0, self.rows, DEGREE))

    def _block(self, start: int, rows: int) -> Block:
        padded = 1 << (rows - 1).bit_length()
        choices = []
        together = 1
        while together == 1 or (together * padded <= DEGREE and together * self.inner <= MOST_TERMS):
            grouped = DEGREE // (padded * together)
            count = -(-self.inner // grouped)
            if together == 1 or count <= MOST_CIPHERTEXTS:
                travels = keys.request_bytes(count) + -(-self.columns // together) * keys.answer_bytes(0)
                choices.append((travels, Block(start, rows, padded, together, grouped, count)))
            together *= 2
        return min(choices, key=lambda choice: choice[0])[1]

    @property
    def ciphertexts(self) -> int:
        """Ciphertexts of the request."""
        return sum(block.ciphertexts for block in self.blocks)

    @property
    def request_bytes(self) -> int:
        """Length of the request."""
        return sum(keys.request_bytes(block.ciphertexts) for block in self.blocks)

    def answer_bytes(self, columns: int) -> int:
        """Length of an answer for so many columns."""
        return sum(keys.answer_bytes(block.rows * width) for block in self.blocks for width in widths(block, columns))


def widths(block: Block, columns: int) -> list[int]:
    """How many columns each answer of a block carries."""
    return [min(block.together, columns - first) for first in range(0, columns, block.together)]


def ask(plan: MatrixPlan, left: Integers, key: SecretKey) -> bytes:
    """The request: L int64[rows, inner], encrypted."""
    _check(left, (plan.rows, plan.inner), "a left factor")
    parts = []
    for number, block in enumerate(plan.blocks):
        columns = np.zeros((block.ciphertexts * block.grouped, block.together * block.padded), np.int64)
        columns[: plan.inner, : block.rows] = left[block.start : block.start + block.rows].T
        messages = (columns * _factor()).reshape(block.ciphertexts, DEGREE)
        parts.append(key.encrypt(np.stack([_encoded(message, key) for message in messages]), f"matrix {number}"))
    return b"".join(parts)


class PeerMatrix:
    """A peer's encrypted L, held by the answerer. 480 KB a ciphertext."""

    def __init__(self, plan: MatrixPlan, request: bytes, *, peer: str) -> None:
        """Raises `ProtocolMismatch` naming `peer` for anything but a request of that plan."""
        if len(request) != plan.request_bytes:
            raise mismatch(f"a request of {len(request)} bytes", f"{plan.request_bytes}", peer)
        self.plan, self._held, view = plan, list[Words](), memoryview(request)
        for number, block in enumerate(plan.blocks):
            size = keys.request_bytes(block.ciphertexts)
            part, view = view[:size], view[size:]
            label = f"matrix {number}"
            self._held.append(keys.open_request(part, block.ciphertexts, label, peer=peer, what="a request"))

    def __repr__(self) -> str:
        return f"PeerMatrix({self.plan.rows}, {self.plan.inner})"

    def answer(self, right: Integers, key: PublicKey, stream: RingStream) -> tuple[bytes, Integers]:
        """The answer for R int64[inner, columns], and the own share of L R, int64[rows, columns]."""
        plan = self.plan
        columns = right.shape[1] if right.ndim == 2 else 0
        _check(right, (plan.inner, max(columns, 1)), "a right factor")
        share = np.empty((plan.rows, columns), np.int64)
        parts = []
        for block, held in zip(plan.blocks, self._held, strict=True):
            rows = slice(block.start, block.start + block.rows)
            for first, width in _groups(block, columns):
                mask = stream.ring((width, block.rows)).numpy()
                product = residues.sum_of_products(held, _factors(block, right[:, first : first + width]), whole())
                masks = RING.scaled(mask.ravel() * _factor())
                parts.append(key.hide(product, masks, block.places(width), RING, stream))
                share[rows, first : first + width] = -mask.T
        return b"".join(parts), share


def finish(plan: MatrixPlan, columns: int, answer: bytes, key: SecretKey, *, peer: str) -> Integers:
    """The asker's share of L R, int64[rows, columns]. Raises `ProtocolMismatch` naming `peer`."""
    if len(answer) != plan.answer_bytes(columns):
        raise mismatch(f"an answer of {len(answer)} bytes", f"{plan.answer_bytes(columns)}", peer)
    share, view = np.empty((plan.rows, columns), np.int64), memoryview(answer)
    for block in plan.blocks:
        rows = slice(block.start, block.start + block.rows)
        for first, width in _groups(block, columns):
            size = keys.answer_bytes(block.rows * width)
            part, view = view[:size], view[size:]
            second, head = keys.read_answers(part, block.rows * width, 1, peer=peer)
            values, _ = key.decrypt(second, head, block.places(width), RING)
            share[rows, first : first + width] = values[0, 0].reshape(width, block.rows).T
    return share


def _groups(block: Block, columns: int) -> Iterator[tuple[int, int]]:
    for number, width in enumerate(widths(block, columns)):
        yield number * block.together, width


def _factors(block: Block, right: Integers) -> Words:
    """The R_u of the module, transformed, for `residues.sum_of_products`."""
    padded = np.zeros((block.ciphertexts * block.grouped, block.together), np.int64)
    padded[: right.shape[0], : right.shape[1]] = right
    terms = padded.reshape(block.ciphertexts, block.grouped, block.together)
    # X^(-m' p g') is -X^(N - m' p g').
    coefficients = np.empty_like(terms)
    coefficients[:, 0] = terms[:, 0]
    coefficients[:, 1:] = -terms[:, :0:-1]
    rows = residues.of_signed(coefficients.ravel(), whole())
    length = block.grouped * block.together
    factors = np.ascontiguousarray(rows.reshape(len(rows), block.ciphertexts, length).transpose(1, 0, 2))
    ntt.forward_short(factors, whole())
    return residues.spread(factors, DEGREE)


def _encoded(message: Integers, key: SecretKey) -> Words:
    """uint32[primes, N]: Q m / t, rounded down or up such that the mean is exact. message: int64[N], [Q m]_t.

    Rounded to the nearest, equal numbers would have equal errors, which add up: k / 2 for k of them, not sqrt(k) / 2.
    """
    nearest = RING.scaled(message)
    drawn = key.rounding.ring(message.shape).numpy().view(np.uint64)
    # The nearest one is off by -[Q m]_t / t.
    away = np.where(drawn < np.abs(message).view(np.uint64), np.sign(message), 0)
    return residues.plus(nearest, residues.of_signed(away, whole()), whole())


def _factor() -> Integers:
    """int64[1]: Q modulo 2^64, what messages are multiplied by before `Space.scaled`."""
    return np.array([RING.factor], np.uint64).view(np.int64)


def _check(matrix: Integers, shape: tuple[int, int], what: str) -> None:
    if matrix.dtype != np.int64 or matrix.shape != shape:
        raise InputError(f"got {what} of {matrix.dtype}{list(matrix.shape)}, expected int64{list(shape)}")
