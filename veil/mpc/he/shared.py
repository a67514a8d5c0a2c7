"""Correlations of n parties from products of pairs: shared products, random bits, truncation pairs.

A product of shared numbers a = sum of a_i, b = sum of b_j is the sum of a_i b_i, which each party computes, and of
a_i b_j for i != j, which pairs compute (`exchange`). Any n - 1 parties see encryptions under other keys and masked
results; so they learn nothing of the rest.

    bits          b = b_0 xor b_1 xor ...: from shares of x and a bit y known to one party, x + y - 2 x y
    truncation    r = sum of 2^i b_i, r >> f and the top bit of r, linear in the bits; exact

Guarantee: products are exact; bits and truncation pairs are exact and uniform. What truncation pairs are for:
`veil.mpc.engine.engine`.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import numpy as np

from veil.errors import InputError
from veil.mpc.he.exchange import Deal, Exchange
from veil.mpc.he.matrix import MOST_CIPHERTEXTS, MatrixPlan
from veil.mpc.he.residues import Integers
from veil.mpc.he.spaces import DEGREE
from veil.mpc.he.vectors import VectorPlan
from veil.mpc.randomness import KEY_BYTES, RingStream

# Numbers of one deal: some 13 MB of messages.
AT_ONCE = 2**18


class SharedProducts:
    """One party's shares; all parties call the same methods with the same shapes in the same order."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.rank, self.parties = exchange.rank, exchange.parties
        self._own = RingStream(secrets.token_bytes(KEY_BYTES), b"he-own")

    def __repr__(self) -> str:
        return f"SharedProducts(rank={self.rank}, parties={self.parties})"

    def uniform(self, shape: Sequence[int]) -> Integers:
        """A share of a uniform tensor that nobody knows: int64, uniform by itself."""
        result: Integers = self._own.ring(tuple(shape)).numpy()
        return result

    def holders(self, owner: int) -> tuple[int, ...]:
        """Ranks whose shares of a mask are other than zero: its owner, or all for an owner below 0."""
        return tuple(range(self.parties)) if owner < 0 else (owner,)

    def matmul(
        self,
        left: Integers,
        right: Integers,
        left_holders: Sequence[int] | None = None,
        right_holders: Sequence[int] | None = None,
    ) -> Integers:
        """A share of a @ b, int64[m, c], from shares int64[m, k] and int64[k, c].

        holders: ranks whose shares may be other than zero, public; all when left out.
        """
        ranks = range(self.parties)
        lefts, rights = (tuple(ranks if some is None else some) for some in (left_holders, right_holders))
        (rows, inner), columns = left.shape, right.shape[1]
        plan, straight = _cheaper(rows, inner, columns)
        askers, answerers = (lefts, rights) if straight else (rights, lefts)
        deals = []
        for asker in askers:
            others = tuple(rank for rank in answerers if rank != asker)
            if straight:
                deals.append(Deal(plan, asker, others, left, right))
            else:
                deals.append(Deal(plan, asker, others, np.ascontiguousarray(right.T), np.ascontiguousarray(left.T)))
        total = _multiplied(left, right)
        for share in self.exchange.run(deals):
            total += share if straight else share.T
        return total

    def mul(
        self,
        left: Integers,
        right: Integers,
        left_holders: Sequence[int] | None = None,
        right_holders: Sequence[int] | None = None,
    ) -> Integers:
        """A share of a * b, element by element, from shares of one shape; holders as in `matmul`."""
        ranks = range(self.parties)
        lefts, rights = (tuple(ranks if some is None else some) for some in (left_holders, right_holders))
        total = left * right
        flat, first, second = total.reshape(-1), left.reshape(-1), right.reshape(-1)
        for start in range(0, flat.size, AT_ONCE):
            part = slice(start, min(start + AT_ONCE, flat.size))
            plan = VectorPlan(part.stop - start, 64, 64)
            deals = [
                Deal(plan, asker, tuple(rank for rank in rights if rank != asker), first[part], second[part])
                for asker in lefts
            ]
            for share in self.exchange.run(deals):
                flat[part] += share
        return total

    def bits(self, count: int) -> Integers:
        """A share of `count` uniform bits that nobody knows, int64[count]."""
        return self.mixed_bits(count)[1]

    def mixed_bits(self, count: int) -> tuple[Integers, Integers]:
        """Shares of the same uniform bits: xor of one bit each, and sum modulo 2^64; int64[count] both."""
        own, result = np.empty(count, np.int64), np.empty(count, np.int64)
        for start in range(0, count, AT_ONCE):
            stop = min(start + AT_ONCE, count)
            middle = start + half_way(stop - start, DEGREE) if self.parties == 2 else stop
            ranges = [(start, middle, 1), (middle, stop, -1)]
            parts = [slice(a, b) for a, b, _ in ranges if a < b]
            orders = [range(self.parties)[::step] for a, b, step in ranges if a < b]
            own[start:stop] = self._own.bits((stop - start,), 1).numpy()
            for part, share in zip(parts, self._xor([own[part] for part in parts], orders), strict=True):
                result[part] = share
        return own, result

    def _xor(self, known: Sequence[Integers], orders: Sequence[Sequence[int]]) -> list[Integers]:
        # In each run, the first party of the order starts with its bits and the others join theirs, one after another.
        shares = [
            bits if order[0] == self.rank else np.zeros_like(bits) for bits, order in zip(known, orders, strict=True)
        ]
        for stage in range(1, self.parties):
            deals = []
            for bits, share, order in zip(known, shares, orders, strict=True):
                plan = VectorPlan(len(bits), 1, 1 if stage == 1 else 64)
                deals.append(Deal(plan, order[stage], tuple(order[:stage]), bits, share))
            for number, product in enumerate(self.exchange.run(deals)):
                fresh = known[number] if orders[number][stage] == self.rank else 0
                shares[number] = shares[number] + fresh - 2 * product
        return shares

    def conjunction(self, left: Integers, right: Integers) -> Integers:
        """An xor share of a & b, bit by bit, from xor shares of one shape, int64. 64 products a number and pair."""
        total = left & right
        flat, first, second = total.reshape(-1), left.reshape(-1), right.reshape(-1)
        places = np.arange(64)
        step = AT_ONCE // 64
        for start in range(0, flat.size, step):
            part = slice(start, start + step)
            one, two = (((side[part, None] >> places) & 1).ravel() for side in (first, second))
            plan = VectorPlan(len(one), 1, 1)
            ranks = range(self.parties)
            deals = [Deal(plan, asker, tuple(rank for rank in ranks if rank != asker), one, two) for asker in ranks]
            for share in self.exchange.run(deals):
                # Shares of a bit add up to it, so their last bits do so by xor.
                flat[part] ^= ((share & 1).reshape(-1, 64) << places).sum(axis=1)
        return total

    def truncation_pairs(self, count: int, shift: int) -> tuple[Integers, Integers, Integers]:
        """Shares of uniform r, of r >> shift (unsigned) and of its top bit: int64[count] each; 1 to 63 bits."""
        if not 1 <= shift <= 63:
            raise InputError(f"got a shift of {shift} bits, expected 1 to 63")
        r, cut, top = (np.empty(count, np.int64) for _ in range(3))
        weights = np.array([1 << i for i in range(63)] + [-(1 << 63)], np.int64)
        for start in range(0, count, AT_ONCE // 64):
            part = slice(start, min(start + AT_ONCE // 64, count))
            bits = self.bits(64 * (part.stop - start)).reshape(-1, 64)
            r[part] = (bits * weights).sum(axis=1)
            cut[part] = (bits[:, shift:] * weights[: 64 - shift]).sum(axis=1)
            top[part] = bits[:, 63]
        return r, cut, top

    def truncated(self, share: Integers, shift: int) -> Integers:
        """A share of x / 2^shift, one of the two neighbours, from a share of x, |x| < 2^62; int64[n]. One opening."""
        r, cut, top = self.truncation_pairs(share.size, shift)
        first = self.rank == 0
        opened = self.exchange.opened(share + r + ((1 << 62) if first else 0)).view(np.uint64)
        result = (1 - (opened >> np.uint64(63)).view(np.int64)) * top * (1 << (64 - shift)) - cut
        if first:
            result = result + (opened >> np.uint64(shift)).view(np.int64) - (1 << (62 - shift))
        return result


def half_way(count: int, whole: int) -> int:
    """Where to cut, if it costs no ciphertext: answering is more work than asking, so two parties do half of both."""
    return min(count, -(-count // (2 * whole)) * whole)


def _cheaper(rows: int, inner: int, columns: int) -> tuple[MatrixPlan, bool]:
    """The plan under which less travels, and whether it is that of L R, not of its transpose."""
    if rows * inner > DEGREE * MOST_CIPHERTEXTS:
        return MatrixPlan(columns, inner, rows), False
    straight = MatrixPlan(rows, inner, columns)
    if columns * inner > DEGREE * MOST_CIPHERTEXTS:
        return straight, True
    turned = MatrixPlan(columns, inner, rows)
    bytes_of = [plan.request_bytes + plan.answer_bytes(plan.columns) for plan in (straight, turned)]
    return (straight, True) if bytes_of[0] <= bytes_of[1] else (turned, False)


def _multiplied(left: Integers, right: Integers) -> Integers:
    product: Integers = left @ right
    return product
