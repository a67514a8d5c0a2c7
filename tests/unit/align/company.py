"""Parties in threads over loopback, some of them recorded, some of them hostile."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from veil.align.curve import POINT_BYTES
from veil.align.protocol import Alignment, AlignmentPlan, align
from veil.errors import VeilError
from veil.mpc.communicator import TensorCommunicator
from veil.mpc.items import from_wire
from veil.mpc.loopback import loopback
from veil.mpc.provider import DealerProvider
from veil.mpc.triples import correction, item_key

NAMES = ("alpha", "beta", "gamma", "delta", "epsilon")
DIGEST = bytes(range(32))
HEADER_BYTES = 16 + 2 * 8


class Recorder:
    """A transport that keeps what it sends."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.sent: list[tuple[int, bytes]] = []

    def send(self, peer: int, *payload: Any) -> None:
        self.sent.append((peer, b"".join(bytes(part) for part in payload)))
        self._inner.send(peer, *payload)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


Tamper = Callable[[Tensor], Tensor]


class Hostile(TensorCommunicator):
    """Changes the message that `chosen` picks, by its number and shape, from what the protocol sends by `send`."""

    chosen: Callable[[int, Tensor], bool] = staticmethod(lambda number, tensor: False)
    tamper: Tamper = staticmethod(lambda tensor: tensor)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.number = 0
        self.tampered = 0

    def send(self, tensor: Tensor, dst: int) -> None:
        if self.chosen(self.number, tensor):
            tensor = self.tamper(tensor)
            self.tampered += 1
        self.number += 1
        super().send(tensor, dst)


def communicators(size: int, timeout_s: float = 20.0) -> tuple[list[TensorCommunicator], list[Recorder]]:
    recorders = [Recorder(transport) for transport in loopback(size)]
    return [TensorCommunicator(each, NAMES[:size], timeout_s=timeout_s) for each in recorders], recorders


def together(parties: Sequence[TensorCommunicator], act: Callable[[TensorCommunicator], Any]) -> list[Any]:
    """What `act` returns at each party, or the error that it raises; a party with an error leaves."""

    def one(party: TensorCommunicator) -> Any:
        try:
            return act(party)
        except VeilError as error:
            party.transport.close()
            return error

    with ThreadPoolExecutor(len(parties)) as pool:
        return list(pool.map(one, parties))


def run(
    lists: Sequence[Sequence[str]],
    plan: AlignmentPlan,
    parties: Sequence[TensorCommunicator] | None = None,
    **more: Any,
) -> list[Any]:
    parties = parties or communicators(len(lists))[0]
    return together(parties, lambda party: align(party, lists[party.rank], plan, DIGEST, **more))


def aligned(lists: Sequence[Sequence[str]], results: Sequence[Alignment]) -> list[tuple[str | None, ...]]:
    """For each row of the result the parties' ids."""
    for result in results:
        assert isinstance(result, Alignment), result
    return [
        tuple(None if row < 0 else own[row] for own, row in zip(lists, rows, strict=True))
        for rows in zip(*(result.rows.tolist() for result in results), strict=True)
    ]


def as_tensor(data: bytes, width: int) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).reshape(-1, width)


def dealer(rank: int, size: int) -> DealerProvider:
    """A provider whose corrections are computed on the spot, as the dealer makes them."""
    seeds = [hashlib.sha256(bytes([each])).digest() for each in range(size)]

    def correct(request: Any) -> bytes:
        item = from_wire(request)
        return correction(item, [item_key(seed, request.index, item) for seed in seeds]).numpy().tobytes()

    return DealerProvider(rank, seeds[rank], correct if rank == 0 else None)


def points(recorders: Sequence[Recorder]) -> set[bytes]:
    """All points that were sent."""
    found = set()
    for recorder in recorders:
        for _, message in recorder.sent:
            data = message[HEADER_BYTES:]
            if len(data) % POINT_BYTES == 0 and data[:1] in (b"\x02", b"\x03"):
                found |= {data[at : at + POINT_BYTES] for at in range(0, len(data), POINT_BYTES)}
    return found
