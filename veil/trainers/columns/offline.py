"""What making a job's correlations without a dealer takes: the very deals of `veil.mpc.he`, counted and not made.

Which products the parties make, and how long each message is, follows from the plan of the program alone; so the code
that makes them runs once on an exchange that counts. Values are zeros, nothing is encrypted and nothing is sent.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from veil.mpc.engine.items import EngineItem
from veil.mpc.he.correlations import make
from veil.mpc.he.exchange import Deal, Exchange
from veil.mpc.he.keys import hello_bytes
from veil.mpc.he.matrix import MatrixPlan
from veil.mpc.he.products import PairProducts
from veil.mpc.he.residues import Integers
from veil.mpc.he.shared import SharedProducts

_MESSAGE_BYTES = 24


@dataclass(frozen=True)
class OfflineCount:
    """Of one party. rounds: exchanges one after another."""

    rounds: int
    sent_bytes: int
    received_bytes: int


class _Counting:
    """Stands in for `veil.mpc.he.exchange.Exchange`."""

    def __init__(self, rank: int, parties: int) -> None:
        self.rank, self.parties = rank, parties
        self.rounds = 0
        self.sent_bytes = 0
        self.received_bytes = 0

    def run(self, deals: Sequence[Deal]) -> list[Integers]:
        self.rounds += 2
        for deal in deals:
            if deal.asker == self.rank:
                self.sent_bytes += len(deal.answerers) * deal.plan.request_bytes
                self.received_bytes += len(deal.answerers) * deal.answer_bytes
            elif self.rank in deal.answerers:
                self.received_bytes += deal.plan.request_bytes
                self.sent_bytes += deal.answer_bytes
        return [np.zeros(deal.shape, np.int64) for deal in deals]

    def opened(self, share: Integers) -> Integers:
        self.rounds += 1
        size_bytes = (self.parties - 1) * (share.nbytes + _MESSAGE_BYTES)
        self.sent_bytes += size_bytes
        self.received_bytes += size_bytes
        return np.zeros(share.shape, np.int64)


def count_offline(items: Sequence[EngineItem], rank: int, parties: int) -> OfflineCount:
    """What the party of `rank` exchanges to make `items` with the others. Raises `WireError` for an item out of bounds.

    Takes the memory of the shares and the time of the products that each party makes alone.
    """
    counting = _Counting(rank, parties)
    make(SharedProducts(cast(Exchange, counting)), items)
    hellos = (parties - 1) * (hello_bytes() + _MESSAGE_BYTES)
    # (and the statement of the items, each party's part of the batch's name, and keys for shares of zero)
    return OfflineCount(
        counting.rounds + 3 + int(parties > 2), counting.sent_bytes + hellos, counting.received_bytes + hellos
    )


def seconds_per_byte() -> float:
    """Seconds of computation on this machine for each byte of ciphertext, from one small product; about a second."""
    plan = MatrixPlan(512, 64, 1)
    asker, answerer = PairProducts("asker"), PairProducts("answerer")
    answerer.meet(asker.hello())
    left, right = np.ones((512, 64), np.int64), np.ones((64, 1), np.int64)
    best = float("inf")
    for _ in range(2):  # the first one compiles
        started = time.perf_counter()
        request = asker.request(plan, left)
        answer, _ = answerer.answer(plan, request, right)
        asker.finish(plan, answer)
        best = min(best, time.perf_counter() - started)
    return best / (len(request) + len(answer))
