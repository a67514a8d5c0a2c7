"""The result that shows nobody which rows are common: all parties' rows, and none can tell whose the others are.

Every id of the union gets a name R*H(x) (`veil.align.mixing`), the same at all parties and related to nothing that
anyone has seen before. Each party knows the names of its own rows, and the set of all names, filled up with names of
nobody to the declared number of rows; of the other names it cannot tell whether they stand for one party, several, or
none, and of its own whether another party has them too.

(1) the collector unites the blinded lists F_i, and refuses when the union is larger than declared;
(2) it takes the points of the union in an order of its own, with random points among them up to the declared number,
    multiplies by r_c / k_c and sends them on; every party in turn multiplies by r_i / k_i and shuffles. Random points
    are products too, of a few fixed ones and a new number for each batch (random under the same assumption): made by
    hashing, which takes half as long again, they would let the next party read the size of the union off the clock;
(3) the last party sends the set, now R*H(x) for all x of the union, to all.

This is Private-ID (Buddhavarapu et al., "Private matching for compute", 2020), with the set of names computed once
for all parties, for any number of them, and padded so that its size says nothing.
"""

from __future__ import annotations

import numpy as np
import torch

from veil.align.curve import POINT_BYTES, Points, Scalar
from veil.align.exchange import AlignmentExchange, batches
from veil.align.ids import dummies
from veil.align.mixing import Secrets
from veil.align.ordering import private_permutation
from veil.align.plan import Rows
from veil.align.sets import SortedRows, distinct
from veil.errors import PolicyError

_FITS, _REFUSED = 1, -1


def hide(
    exchange: AlignmentExchange, lists: list[Points] | None, renamed: Points, secrets: Secrets
) -> tuple[Points, Rows]:
    """All names, sorted, (result, 33), and for each where it stands in the own list, int64, or -1.

    lists: all F_i at the collector, None elsewhere. renamed: U_i, the names of the own list.
    """
    union = None if lists is None else distinct(lists)
    _agree_on_size(exchange, None if union is None else len(union))
    names = SortedRows(_convert(exchange, union, secrets)).rows
    at = SortedRows(names).find(renamed)
    if missing := np.count_nonzero(at < 0):
        others = [rank for rank in range(exchange.world_size) if rank != exchange.rank]
        raise exchange.blame(others, f"got a set of names without {missing} of the own ones, expected all")
    rows = np.full(len(names), -1, dtype=np.int64)
    rows[at] = np.arange(len(at))
    return names, rows


def _agree_on_size(exchange: AlignmentExchange, size: int | None) -> None:
    """(1): all stop when the union does not fit; how large it is stays with the collector."""
    plan = exchange.plan
    told = torch.zeros(1, dtype=torch.int64)
    if size is not None:
        told[0] = _FITS if size <= plan.result else _REFUSED
    number = int(exchange.communicator.broadcast(told, plan.collector)[0])
    if number == _REFUSED:
        raise PolicyError(
            f"got a union larger than what the job declares, expected at most {plan.result} rows",
            hint=f"{sum(plan.sizes)} rows always suffice",
        )
    if number != _FITS:
        raise exchange.wrong(plan.collector, f"got {number} as the outcome, expected {_FITS} or {_REFUSED}")


def _convert(exchange: AlignmentExchange, union: Points | None, secrets: Secrets) -> Points:
    """(2) and (3): from K*H(x) to R*H(x), in an order that nobody knows.

    Whoever passes a batch on, or hears that one has been passed on before, ticks for those who wait behind: position p
    of the route hears (p - 1) ticks for every batch before its batches come.
    """
    size, count = exchange.world_size, exchange.plan.result
    position = (exchange.rank - exchange.plan.collector) % size
    following, previous = (exchange.rank + 1) % size, (exchange.rank - 1) % size
    last = (exchange.plan.collector - 1) % size
    scalar = secrets.rename.times(secrets.compare.inverse())
    parts = batches(count)
    exchange.begin("convert", count)
    if union is not None:
        _convert_union(exchange, union, scalar, following)
    else:
        waiting = [peer for peer in range(size) if peer != last] if exchange.rank == last else [following]
        for _ in exchange.await_ticks((position - 1) * len(parts), previous):
            exchange.tick(waiting)
        arrived, converted = np.empty((2, count, POINT_BYTES), dtype=np.uint8)
        for part in parts:
            arrived[part] = exchange.receive(part.stop - part.start, previous)
            converted[part] = exchange.multiply(arrived[part], scalar, previous)
            exchange.tick(waiting)
            exchange.advance(part.stop - part.start)
        exchange.distinct(arrived, previous)
        converted = converted[private_permutation(count)]
        exchange.send_all(converted, waiting)
        if exchange.rank == last:
            return converted
    for _ in exchange.await_ticks((size - 1) * len(parts), last):
        pass
    return exchange.receive_all(count, last)


def _convert_union(exchange: AlignmentExchange, union: Points, scalar: Scalar, following: int) -> None:
    """(2) at the collector: sends the union and, among it, points of nobody; equal work for every batch of a length."""
    order = private_permutation(exchange.plan.result)
    parts = batches(len(order))
    nobody = exchange.curve.hash(dummies(parts[0].stop), Scalar.draw())
    for part in parts:
        chosen = order[part]
        real = chosen < len(union)
        batch = np.empty((len(chosen), POINT_BYTES), dtype=np.uint8)
        batch[real] = exchange.curve.multiply(union[chosen[real]], scalar)
        batch[~real] = exchange.curve.multiply(nobody[: np.count_nonzero(~real)], Scalar.draw())
        exchange.send(batch, following)
        exchange.advance(len(chosen))
