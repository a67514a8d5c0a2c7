"""Every party's list, multiplied by every party's secret and shuffled by every party on its way round the ring.

Party i holds a list of pseudonyms x and a secret k_i. It sends k_i*H(x), in an order drawn by itself, to party i+1,
which multiplies by k_{i+1}, shuffles, and sends on; after n-1 hops the list is F_i = {K*H(x)}, K = k_0 ... k_{n-1},
and stands at party i-1. Lists of different parties have a point in common exactly where they have an id in common.

For hidden results a second list travels beside the first. Party j multiplies its points by another secret r_j in
place of k_j and keeps their order, the last hop returns it to its owner, and the owner multiplies by r_i / k_i:
U_i = (R*H(x) in the owner's own order), R = r_0 ... r_{n-1}. Nobody but the owner sees it.

Guarantee, for semi-honest parties of which any n-1 may collude: let h be the one that does not. What the others see
are points under k_h, or under r_h, or both, which no one without those numbers can tell from random ones or match
with each other (`veil.align.curve`), and under k_h only in an order that h drew. So from all F_i together they learn
how many points each combination of lists has in common and nothing of which.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from veil.align.curve import POINT_BYTES, Points, Scalar
from veil.align.exchange import AlignmentExchange, batches
from veil.align.ids import Pseudonyms
from veil.align.ordering import private_permutation
from veil.align.sets import Bytes


@dataclass(frozen=True, repr=False)
class Secrets:
    """One party's numbers of one run: k for the lists that are compared, r for the names of hidden rows."""

    compare: Scalar
    rename: Scalar


@dataclass(frozen=True, repr=False)
class Mixed:
    """What a party holds after mixing.

    own: k_i*H(x), own list, in the own order. blinded: F_{i+1}, the list of the next party. renamed: U_i in the own
    order; None unless the result is hidden.
    """

    own: Points
    blinded: Points
    renamed: Points | None


def mix(exchange: AlignmentExchange, own: Pseudonyms, sizes: tuple[int, ...], secrets: Secrets) -> Mixed:
    """Runs the ring. own: (sizes[rank], 16), already in an order that nobody else knows."""
    size, rank = exchange.world_size, exchange.rank
    following, previous = (rank + 1) % size, (rank - 1) % size
    hidden = exchange.plan.mode == "hidden"
    scalars = (secrets.compare, secrets.rename) if hidden else (secrets.compare,)
    exchange.begin("mix", len(own) + sum(sizes) - sizes[rank] + (sizes[rank] if hidden else 0))

    steps = len(batches(max(sizes)))
    first = np.empty((len(own), POINT_BYTES), dtype=np.uint8)

    def blinded_own() -> Iterator[list[Bytes]]:
        for part in batches(len(own)):
            first[part] = exchange.curve.hash(own[part], secrets.compare)
            exchange.advance(part.stop - part.start)
            yield [first[part]]

    outgoing = blinded_own()
    lists: list[Points] = []
    for hop in range(1, size):
        count = sizes[(rank - hop) % size]
        # The first message serves both lists: k_i*H(x) is the same for both, and only then do they part.
        arrived = [np.empty((count, POINT_BYTES), dtype=np.uint8) for _ in range(1 if hop == 1 else len(scalars))]
        lists = [np.empty((count, POINT_BYTES), dtype=np.uint8) for _ in scalars]

        def handle(
            part: slice, coming: list[Bytes], arrived: list[Points] = arrived, lists: list[Points] = lists
        ) -> None:
            for target, points in zip(arrived, coming, strict=True):
                target[part] = points
            for at, scalar in enumerate(scalars):
                lists[at][part] = exchange.multiply(coming[min(at, len(coming) - 1)], scalar, previous)
            exchange.advance(part.stop - part.start)

        exchange.swap(outgoing, following, count, previous, len(arrived), steps, handle)
        for points in arrived:
            exchange.distinct(points, previous)
        lists[0] = lists[0][private_permutation(count)]
        outgoing = _parts(lists)
    renamed = _return(exchange, lists[1], len(own), steps, secrets) if hidden else None
    return Mixed(first, lists[0], renamed)


def _parts(lists: list[Points]) -> Iterator[list[Bytes]]:
    for part in batches(len(lists[0])):
        yield [points[part] for points in lists]


def _return(exchange: AlignmentExchange, renamed: Points, count: int, steps: int, secrets: Secrets) -> Points:
    """The last hop: the list of the next party goes home, the own one arrives and loses k_i."""
    following, previous = (exchange.rank + 1) % exchange.world_size, (exchange.rank - 1) % exchange.world_size
    last = secrets.rename.times(secrets.compare.inverse())
    home = np.empty((count, POINT_BYTES), dtype=np.uint8)

    def handle(part: slice, coming: list[Bytes]) -> None:
        home[part] = exchange.multiply(coming[0], last, previous)
        exchange.advance(part.stop - part.start)

    exchange.swap(_parts([renamed]), following, count, previous, 1, steps, handle)
    return exchange.distinct(home, previous)


def collect(exchange: AlignmentExchange, mixed: Mixed, sizes: tuple[int, ...]) -> list[Points] | None:
    """All F_i by rank of their owners, at the collector; None elsewhere."""
    size, collector = exchange.world_size, exchange.plan.collector
    if exchange.rank != collector:
        exchange.send_all(mixed.blinded, (collector,))
        return None
    lists: list[Points] = []
    for owner in range(size):
        holder = (owner - 1) % size
        lists.append(mixed.blinded if holder == collector else exchange.receive_all(sizes[owner], holder))
    return lists
