"""Correlations of n parties from products of pairs: shared products, random bits, truncation pairs.

A product of shared numbers a = sum of a_i, b = sum of b_j is the sum of a_i b_i, which each party computes, and of
a_i b_j for i != j, which pairs compute (`exchange`). Any n - 1 parties see encryptions under other keys and masked
results; so they learn nothing of the rest. But not all n parties take part in every product, and shares of bits are odd
where the own bit is 1; what opens without a mask is shared `anew` before.

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
from veil.mpc.he.matrix import MatrixPlan
from veil.mpc.he.residues import Integers
from veil.mpc.he.spaces import DEGREE
from veil.mpc.he.vectors import VectorPlan
from veil.mpc.keys import agree_on_streams
from veil.mpc.randomness import KEY_BYTES, RingSource, RingStream

# Numbers of one deal: some 13 MB of messages.
AT_ONCE = 2**18
_ZEROS = b"veil/he-zeros/v1"


class SharedProducts:
    """One party's shares; all parties call the same methods with the same shapes in the same order."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.rank, self.parties = exchange.rank, exchange.parties
        self._own = RingStream(secrets.token_bytes(KEY_BYTES), b"he-own")
        self._zeros: dict[str, RingSource] | None = None

    def __repr__(self) -> str:
        return f"SharedProducts(rank={self.rank}, parties={self.parties})"

    def uniform(self, shape: Sequence[int]) -> Integers:
        """A share of a uniform tensor that nobody knows: int64, uniform by itself."""
        result: Integers = self._own.ring(tuple(shape)).numpy()
        return result

    def anew(self, share: Integers) -> Integers:
        """Another share of the same: with three and more parties, those of any n - 1 say nothing of the other's.

        One round at its first call. Two parties need none: the other's share is the result less the own one.
        """
        if self.parties == 2:
            return share
        if self._zeros is None:
            self._zeros = agree_on_streams(self.exchange.communicator, _ZEROS)
        zero = self._zeros["prev"].ring(share.shape) - self._zeros["next"].ring(share.shape)
        result: Integers = share + zero.numpy()
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

        holders: ranks whose shares may be other than zero, public; all when left out. An inner extent that is too long
        for one plan is halved. Raises `InputError` where that does not help.
        """
        ranks = range(self.parties)
        lefts, rights = (tuple(ranks if some is None else some) for some in (left_holders, right_holders))
        (rows, inner), columns = left.shape, right.shape[1]
        found = _cheaper(rows, inner, columns)
        if found is None:
            if inner < 2:
                raise InputError(
                    f"got a product of shape {rows}, {inner}, {columns}, expected one that fits a plan",
                    hint="split rows or columns",
                )
            first, second = slice(inner // 2), slice(inner // 2, inner)
            return self.matmul(left[:, first], right[first], lefts, rights) + self.matmul(
                left[:, second], right[second], lefts, rights
            )
        plan, straight = found
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
        total = np.multiply(left, right, order="C")  # so that `flat` is a view of it
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
        total = np.bitwise_and(left, right, order="C")  # so that `flat` is a view of it
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


def _cheaper(rows: int, inner: int, columns: int) -> tuple[MatrixPlan, bool] | None:
    """The plan under which less travels, and whether it is that of L R, not of its transpose; None if neither fits."""
    fitting = []
    for straight in (True, False):
        try:
            plan = MatrixPlan(rows if straight else columns, inner, columns if straight else rows)
        except InputError:
            continue
        fitting.append((plan.request_bytes + plan.answer_bytes(plan.columns), plan, straight))
    return min(fitting, key=lambda found: found[0])[1:] if fitting else None


def _multiplied(left: Integers, right: Integers) -> Integers:
    product: Integers = left @ right
    return product
