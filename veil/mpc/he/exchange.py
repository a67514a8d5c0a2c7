"""Products among the parties of one job: requests, answers and shares over a `TensorCommunicator`.

A deal is one product: its asker has L, each of its answerers an R of its own, and they end with shares of the sum of
L R over the answerers. All parties state the same deals in the same order; what travels has lengths that follow from
plans, so the messages of all deals between two parties are one run of bytes, sent in pieces, both ways at a time.

Guarantee: a message of another length or content ends the job with its sender named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from veil.errors import InputError
from veil.mpc.communicator import TensorCommunicator
from veil.mpc.he.keys import SecretKey, hello_bytes
from veil.mpc.he.matrix import MatrixPlan
from veil.mpc.he.products import PairProducts, Plan
from veil.mpc.he.residues import Integers

_PIECE_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Deal:
    """left: at the asker; right: at an answerer; None elsewhere. Of a matrix, R has exactly the plan's columns."""

    plan: Plan
    asker: int
    answerers: tuple[int, ...]
    left: Integers | None = field(default=None, repr=False)
    right: Integers | None = field(default=None, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the shares."""
        plan = self.plan
        return (plan.rows, plan.columns) if isinstance(plan, MatrixPlan) else plan.result_shape

    @property
    def answer_bytes(self) -> int:
        """Length of one answer."""
        plan = self.plan
        return plan.answer_bytes(plan.columns) if isinstance(plan, MatrixPlan) else plan.answer_bytes


class Exchange:
    """One party's end. `start` before anything else. One thread at a time."""

    def __init__(self, communicator: TensorCommunicator) -> None:
        self.communicator = communicator
        self.rank = communicator.rank
        self.parties = communicator.world_size
        self._peers = [rank for rank in range(self.parties) if rank != self.rank]
        key = SecretKey()
        self._pairs = {peer: PairProducts(communicator.names[peer], key) for peer in self._peers}

    def __repr__(self) -> str:
        return f"Exchange(rank={self.rank}, parties={self.parties})"

    def start(self) -> None:
        """Exchanges public keys; one round."""
        hellos = {peer: pair.hello() for peer, pair in self._pairs.items()}
        for peer, hello in self._swap(hellos, dict.fromkeys(self._peers, hello_bytes())).items():
            self._pairs[peer].meet(hello)

    def run(self, deals: Sequence[Deal]) -> list[Integers]:
        """The own shares of all deals, zeros where this party has no part; two rounds."""
        shares = [np.zeros(deal.shape, np.int64) for deal in deals]
        outgoing: dict[int, list[bytes]] = {peer: [] for peer in self._peers}
        asked = {
            peer: [deal for deal in deals if self.rank in deal.answerers and deal.asker == peer] for peer in self._peers
        }
        own = [(number, deal) for number, deal in enumerate(deals) if deal.asker == self.rank and deal.answerers]
        for _, deal in own:
            request = self._pairs[deal.answerers[0]].request(deal.plan, _given(deal.left, "left"))
            for peer in deal.answerers:
                outgoing[peer].append(request)
        sizes = {peer: sum(deal.plan.request_bytes for deal in asked[peer]) for peer in self._peers}
        requests = self._swap({peer: b"".join(parts) for peer, parts in outgoing.items()}, sizes)

        answers: dict[int, list[bytes]] = {peer: [] for peer in self._peers}
        places = dict.fromkeys(self._peers, 0)
        for number, deal in enumerate(deals):
            if self.rank not in deal.answerers:
                continue
            at = places[deal.asker]
            places[deal.asker] = at + deal.plan.request_bytes
            request = requests[deal.asker][at : at + deal.plan.request_bytes]
            answer, share = self._pairs[deal.asker].answer(deal.plan, request, _given(deal.right, "right"))
            answers[deal.asker].append(answer)
            shares[number] += share
        expected = {peer: sum(deal.answer_bytes for _, deal in own if peer in deal.answerers) for peer in self._peers}
        replies = self._swap({peer: b"".join(parts) for peer, parts in answers.items()}, expected)

        places = dict.fromkeys(self._peers, 0)
        for number, deal in own:
            for peer in deal.answerers:
                at = places[peer]
                places[peer] = at + deal.answer_bytes
                shares[number] += self._pairs[peer].finish(deal.plan, replies[peer][at : at + deal.answer_bytes])
        return shares

    def opened(self, share: Integers) -> Integers:
        """The sum of all parties' shares; one round."""
        total: torch.Tensor = self.communicator.all_reduce(torch.from_numpy(share))
        return total.numpy()

    def _swap(self, outgoing: Mapping[int, bytes], sizes: Mapping[int, int]) -> dict[int, bytes]:
        """Sends to each peer and returns what each sent, of the given length, in pieces: neither side waits to send
        the next one until the other has read much more than that."""
        got = {peer: bytearray() for peer in self._peers}
        most = max([*map(len, outgoing.values()), *sizes.values()], default=0)
        for start in range(0, most, _PIECE_BYTES):
            for peer, data in outgoing.items():
                if piece := data[start : start + _PIECE_BYTES]:
                    self.communicator.send(torch.frombuffer(bytearray(piece), dtype=torch.uint8), peer)
            for peer, size in sizes.items():
                if (length := min(_PIECE_BYTES, size - start)) > 0:
                    like = torch.empty(length, dtype=torch.uint8)
                    got[peer] += self.communicator.recv(like, peer).numpy().tobytes()
        return {peer: bytes(data) for peer, data in got.items()}


def _given(factor: Integers | None, side: str) -> Integers:
    if factor is None:
        raise InputError(f"got no {side} factor for a product that this party has a part in, expected one")
    return factor
