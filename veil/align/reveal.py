"""The result that all parties see: the rows that all of them hold.

(1) the collector compares the blinded lists (`veil.align.mixing`) and tells how many points all have in common;
    outside of the declared bounds every party stops here;
(2) it sends these points, shuffled, through all others, each of whom removes its own secret, so that they come back
    as k_c*H(x), c the collector, which finds them among the points that it sent first;
(3) it names the pseudonyms, sorted; each party looks up its own rows and refuses a pseudonym that it does not hold.

By (3) the result is a subset of the true intersection whatever the collector does. In (2) others take their secrets off
for it, so it could have other points unwrapped than common ones, and test guesses of ids on them (it knows the key of
the pseudonyms): the first on the way refuses what is not in the list F that it holds itself. With two parties that is
the collector's own list, and nothing else can be unwrapped; with more it is the list of the party after the first, and
of those a collector that departs from the protocol could still unwrap as many as it says are common.
"""

from __future__ import annotations

import numpy as np
import torch

from veil.align.curve import Points
from veil.align.exchange import AlignmentExchange, batches
from veil.align.ids import PSEUDONYM_BYTES, Pseudonyms
from veil.align.mixing import Mixed, Secrets
from veil.align.ordering import private_permutation
from veil.align.plan import Rows
from veil.align.sets import SortedRows, common
from veil.errors import PolicyError

_REFUSED = -1


def reveal(
    exchange: AlignmentExchange, lists: list[Points] | None, mixed: Mixed, own: Pseudonyms, secrets: Secrets
) -> tuple[Pseudonyms, Rows]:
    """Pseudonyms of the common rows, sorted, and where they stand in `own`.

    lists: all F_i at the collector, None elsewhere.
    """
    points = None if lists is None else common(lists)
    count = _agree_on_count(exchange, None if points is None else len(points))
    collector = exchange.plan.collector
    exchange.begin("unwrap", count)
    if points is None:
        _unwrap(exchange, count, mixed.blinded, secrets)
        names = exchange.receive_all(count, collector, PSEUDONYM_BYTES)
    else:
        unwrapped = _circulate(exchange, points[private_permutation(count)])
        names = SortedRows(own[_positions(exchange, unwrapped, mixed.own)]).rows
        exchange.send_all(names, (peer for peer in range(exchange.world_size) if peer != collector))
    found = SortedRows(own).find(names)
    if missing := np.count_nonzero(found < 0):
        raise exchange.wrong(collector, f"got {missing} pseudonyms that are not held here, expected common ones")
    return names, found


def _agree_on_count(exchange: AlignmentExchange, count: int | None) -> int:
    """(1): the size of the intersection, told by the collector; `PolicyError` at every party when out of bounds."""
    plan = exchange.plan
    told = torch.zeros(1, dtype=torch.int64)
    if count is not None:
        told[0] = count if plan.least <= count <= plan.result else _REFUSED
    number = int(exchange.communicator.broadcast(told, plan.collector)[0])
    if number == _REFUSED:
        raise PolicyError(
            f"got a number of common rows outside of what the job declares, expected {plan.least} to {plan.result}",
            hint="no row has been revealed; declare other bounds in a new job if all parties agree to them",
        )
    if not plan.least <= number <= plan.result:
        raise exchange.wrong(plan.collector, f"got {number} common rows, expected {plan.least} to {plan.result}")
    return number


def _unwrap(exchange: AlignmentExchange, count: int, blinded: Points, secrets: Secrets) -> None:
    """(2) at a party that is not the collector: takes its secret off what passes, once points of `blinded` alone do."""
    route = _route(exchange)
    at = route.index(exchange.rank)
    source, target, inverse = route[at - 1], route[(at + 1) % len(route)], secrets.compare.inverse()
    held = SortedRows(blinded) if at == 1 else None
    for part in batches(count):
        rows = part.stop - part.start
        points = exchange.receive(rows, source)
        if held is not None and (strange := np.count_nonzero(held.find(points) < 0)):
            raise exchange.wrong(source, f"got {strange} points that are not in a blinded list, expected common ones")
        exchange.send(exchange.multiply(points, inverse, source), target)
        exchange.advance(rows)


def _circulate(exchange: AlignmentExchange, points: Points) -> Points:
    """(2) at the collector: a few batches are under way at a time, one for each party."""
    route = _route(exchange)
    parts = batches(len(points))
    unwrapped = np.empty_like(points)
    for step in range(len(parts) + len(route)):
        if step < len(parts):
            exchange.send(points[parts[step]], route[1])
        if 0 <= (done := step - len(route) + 1) < len(parts):
            part = parts[done]
            unwrapped[part] = exchange.receive(part.stop - part.start, route[-1])
            exchange.advance(part.stop - part.start)
    return unwrapped


def _route(exchange: AlignmentExchange) -> list[int]:
    """Ranks in the order in which points pass, the collector first."""
    size, collector = exchange.world_size, exchange.plan.collector
    return [(collector + step) % size for step in range(size)]


def _positions(exchange: AlignmentExchange, unwrapped: Points, first: Points) -> Rows:
    found = SortedRows(first).find(unwrapped)
    if np.any(found < 0) or len(np.unique(found)) != len(found):
        others = [rank for rank in range(exchange.world_size) if rank != exchange.rank]
        raise exchange.blame(others, "got points back that were never sent, expected the common ones")
    return found
