"""Shares of e^(i k w r) for a shared r: the product of what each party computes of its own share, in fixed point.

With r = sum of r_j and w = 2 pi / 2^m, e^(i k w r) is the product of the e^(i k w r_j), whatever wraps modulo 2^64,
since 2^m divides it. The first two parties multiply theirs; their shares are integers that do not wrap, so each cuts
its own. A third one multiplies these shares, in two limbs, by its own factor, and they cut likewise. Each further one
multiplies shares modulo 2^64, which then take a truncation pair for each number: some fifty times the work.

Guarantee: off by at most two units of the last place with two parties, three and a half with three, and one and a half
more for each further one. What they are for: `veil.mpc.engine.waves`.
"""

from __future__ import annotations

import numpy as np

from veil.errors import InputError
from veil.mpc.engine.items import MOST_PRECISION_BITS, MOST_PRECISION_BITS_OF_MANY
from veil.mpc.he.exchange import Deal
from veil.mpc.he.residues import Integers
from veil.mpc.he.shared import AT_ONCE, SharedProducts, half_way
from veil.mpc.he.spaces import DEGREE
from veil.mpc.he.vectors import HIDING_BITS, VectorPlan

# Bits of a factor beyond those of the result: with two parties, and with more, where numbers have less room.
_GUARD_BITS, _SHORT_GUARD_BITS = 10, 6


def rotations(
    products: SharedProducts, masks: Integers, period_bits: int, harmonics: int, precision_bits: int
) -> Integers:
    """A share of 2^precision_bits cos(k w r) for each k up to harmonics, then of the sines: int64[2 harmonics, *shape].

    masks: the own share of r, int64; w = 2 pi / 2^period_bits. Raises `InputError` for a precision above 40 bits, or
    27 with three and more parties.
    """
    most = MOST_PRECISION_BITS if products.parties == 2 else MOST_PRECISION_BITS_OF_MANY
    if not 1 <= precision_bits <= most:
        raise InputError(f"got waves of {precision_bits} bits among {products.parties} parties, expected 1 to {most}")
    flat = masks.reshape(-1)
    total = np.empty((2 * harmonics, flat.size), np.int64)
    step = max(1, AT_ONCE // (2 * harmonics))
    for start in range(0, flat.size, step):
        part = flat[start : start + step]
        if products.parties == 2:
            own = _factors(part, period_bits, harmonics, precision_bits + _GUARD_BITS)
            share = _first(products, own, precision_bits, precision_bits + _GUARD_BITS, 0)
        else:
            own = _factors(part, period_bits, harmonics, precision_bits + _SHORT_GUARD_BITS)
            share = _of_many(products, own, precision_bits)
        total[:, start : start + step] = share.reshape(2 * harmonics, -1)
    return total.reshape(2 * harmonics, *masks.shape)


def _factors(part: Integers, period_bits: int, harmonics: int, bits: int) -> Integers:
    """int64[2, harmonics * n]: the own factors over 2^bits, cosines and sines."""
    period = 1 << period_bits
    angle = (part & (period - 1)).astype(np.float64) * (2 * np.pi / period)
    turns = (np.arange(1, harmonics + 1)[:, None] * angle).ravel()
    return np.rint(np.stack([np.cos(turns), np.sin(turns)]) * float(1 << bits)).astype(np.int64)


def _first(products: SharedProducts, own: Integers, precision_bits: int, bits: int, limb_bits: int) -> Integers:
    """The product of the first two parties' factors: each asks for a half."""
    size = own.shape[1]
    middle = half_way(size, DEGREE // 2)
    deals = []
    for start, stop, asker in ((0, middle, 1), (middle, size, 0)):
        if start < stop:
            plan = VectorPlan(stop - start, bits + 1, bits + 1, True, 2 * bits - precision_bits, limb_bits)
            known = np.ascontiguousarray(own[:, start:stop])
            deals.append(Deal(plan, asker, (1 - asker,), known, known))
    return np.concatenate(products.exchange.run(deals), axis=-1)


def _of_many(products: SharedProducts, own: Integers, precision_bits: int) -> Integers:
    size, bits = own.shape[1], precision_bits + _SHORT_GUARD_BITS
    limb_bits = max(bits, 38)
    low, high = _first(products, own, precision_bits, bits, limb_bits)
    # What is left of a mask above the lower limb.
    high_bits = (2 * (bits + 1) + 1 + HIDING_BITS + 1) - (2 * bits - precision_bits) - limb_bits
    exchange = products.exchange
    lower = VectorPlan(size, bits + 1, limb_bits, True, bits)
    upper = VectorPlan(size, bits + 1, high_bits, True)
    first, second = exchange.run([Deal(lower, 2, (0, 1), own, low), Deal(upper, 2, (0, 1), own, high)])
    share = first + second * (1 << (limb_bits - bits))
    for rank in range(3, products.parties):
        plan = VectorPlan(size, bits + 1, 64, True)
        others = tuple(other for other in range(products.parties) if other != rank)
        (product,) = exchange.run([Deal(plan, rank, others, own, share)])
        if products.rank == rank:
            real, imaginary = share[0] * own[0] - share[1] * own[1], share[0] * own[1] + share[1] * own[0]
            product = product + np.stack([real, imaginary])
        # Every party gets a share of that.
        share = products.truncated(product.ravel(), bits).reshape(2, size)
    return share
