"""The exact sum of one large tensor a party, with the fewest bytes: each party adds up one part and hands out its sum.

Guarantee. Every party's numbers leave it only with its share of zero added (`veil.mpc.randomness`): any n - 1 parties
learn the sum, of which their own numbers are a part, and nothing else. Sums are exact modulo 2^64. A party that sends
something of another kind, shape or order is named; one that hands out different sums to different parties is found out
by `open_sum`, which compares digests of the result.

Steps, for each window of the tensor, cut into n parts:

    (1) party i sends part j of its masked numbers to party j           (n - 1)/n of the window
    (2) party j adds up part j of all parties; the shares of zero cancel
    (3) party j sends the sum of part j to the others                   (n - 1)/n of the window

So a party sends 2 (n - 1)/n of the tensor, where everyone to everyone takes n - 1: two thirds with three parties, and
no way to a sum at every party takes less (Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of
workstations", 2009, section 3). Windows overlap: while one is on its way, the next is masked and the last is added up.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from veil.errors import InputError
from veil.mpc.communicator import TensorCommunicator
from veil.mpc.policy import Opening, RevealPolicy
from veil.mpc.randomness import RingSource

# Elements of one part of a window: 1 MiB, one frame of the mesh.
PART_ELEMENTS = 2**17
ROUNDS = 2


def least_bytes(parties: int, elements: int) -> int:
    """Bytes that a party has to send, without headers: 2 (n - 1)/n of 8 bytes a number, rounded up."""
    return -(-16 * (parties - 1) * elements // parties)


def open_sum(
    communicator: TensorCommunicator,
    policy: RevealPolicy,
    name: str,
    own: Tensor,
    zero: tuple[RingSource, RingSource],
) -> tuple[Tensor, Opening]:
    """The sum of all parties' `own`, int64 of one shape, at every party: a listed opening without noise.

    zero: the streams "prev" and "next" of `veil.mpc.keys.agree_on_streams`, of this session. Raises `RevealError` for
    an opening that the policy does not list, `ProtocolMismatch` naming who opens another one or got another sum.
    """
    policy.admit_opening(name, tuple(own.shape))
    communicator.agree(f"open-sum/{name}".encode())
    total = masked_sum(communicator, own, zero)
    opening = policy.record(name, "plain", total)
    communicator.agree(f"opened-sum/{name}/{opening.digest}".encode())
    return total, opening


def masked_sum(
    communicator: TensorCommunicator,
    own: Tensor,
    zero: tuple[RingSource, RingSource],
    *,
    part_elements: int = PART_ELEMENTS,
) -> Tensor:
    """As `open_sum`, without policy and comparison: for callers that have both already.

    `own` stays as it is. Memory: the result and a few windows of part_elements numbers a party.
    """
    if own.dtype != torch.int64:
        raise InputError(f"got {own.dtype}, expected torch.int64")
    if part_elements < 1:
        raise InputError(f"got parts of {part_elements} elements, expected at least 1")
    numbers = own.detach().reshape(-1)
    total = torch.empty_like(numbers)
    parties, rank = communicator.world_size, communicator.rank
    peers = [peer for peer in range(parties) if peer != rank]
    windows = list(_windows(numbers.numel(), parties, part_elements))
    kept: dict[int, Tensor] = {}

    def hand_out(window: int) -> None:
        """Step (1)."""
        bounds = windows[window]
        start, count = bounds[0], bounds[-1] - bounds[0]
        masked = numbers[start : bounds[-1]] + (zero[0].ring((count,)) - zero[1].ring((count,)))
        parts = [masked[low - start : high - start] for low, high in pairwise(bounds)]
        for peer in peers:
            communicator.send(parts[peer], peer)
        kept[window] = parts[rank]

    def add_up(window: int) -> None:
        """Steps (2) and (3)."""
        low, high = windows[window][rank], windows[window][rank + 1]
        part = total[low:high]
        part.copy_(kept.pop(window))
        for peer in peers:
            part += communicator.recv(part, peer)
        for peer in peers:
            communicator.send(part, peer)

    def collect(window: int) -> None:
        for peer in peers:
            part = total[windows[window][peer] : windows[window][peer + 1]]
            part.copy_(communicator.recv(part, peer))

    for window in range(len(windows) + 2):
        if window < len(windows):
            hand_out(window)
        if 1 <= window <= len(windows):
            add_up(window - 1)
        if window >= 2:
            collect(window - 2)
    return total.reshape(own.shape)


def _windows(elements: int, parties: int, part_elements: int) -> Iterator[list[int]]:
    """For each window the n + 1 bounds of its n parts, which differ by one element at most."""
    for start in range(0, elements, parties * part_elements):
        count = min(parties * part_elements, elements - start)
        yield [start + count * part // parties for part in range(parties + 1)]
