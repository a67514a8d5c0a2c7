"""Runs a program at every party, in threads joined by queues, with the dealer's own code for its corrections."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from dealer.engine_items import EngineItems
from veil.mpc.communicator import TensorCommunicator
from veil.mpc.engine.engine import Engine
from veil.mpc.engine.items import EngineItem
from veil.mpc.engine.plan import plan
from veil.mpc.engine.pool import PooledCorrelations
from veil.mpc.items import MAX_ELEMENTS, MAX_WORK
from veil.mpc.loopback import loopback

ResultT = TypeVar("ResultT")


def dealer_of(seeds: Sequence[bytes]) -> Callable[[int, Sequence[EngineItem]], bytes]:
    """Corrections for the party of rank 0."""
    items = EngineItems(seeds, max_items=10**6)

    def fetch(first: int, wanted: Sequence[EngineItem]) -> bytes:
        items.admit(first, wanted, max_elements=MAX_ELEMENTS, max_work=MAX_WORK)
        numbered = [(number, item) for number, item in enumerate(wanted, first) if item.dependent_shape is not None]
        return b"".join(items.correction(number, item, None).numpy().tobytes() for number, item in numbered)

    return fetch


def together(parties: int, program: Callable[[Engine], ResultT], *, ahead_bytes: int = 2**28) -> list[ResultT]:
    """What `program` returns at each party. The plan of a dry run drives the pool of correlations."""
    seeds = [os.urandom(32) for _ in range(parties)]
    fetch = dealer_of(seeds)
    results: dict[int, ResultT] = {}
    errors: list[BaseException] = []
    transports = loopback(parties)

    def take_part(rank: int) -> None:
        try:
            items = plan(program, rank, parties).items
            names = [f"party-{number}" for number in range(parties)]
            communicator = TensorCommunicator(transports[rank], names, timeout_s=60.0)
            source = fetch if rank == 0 else None
            with PooledCorrelations(rank, parties, seeds[rank], source, items, ahead_bytes=ahead_bytes) as pool:
                results[rank] = program(Engine(communicator, pool))
        except BaseException as error:  # noqa: BLE001 - raised again below, in the thread of the test
            errors.append(error)
            transports[rank].close()

    threads = [threading.Thread(target=take_part, args=(rank,)) for rank in range(parties)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[rank] for rank in range(parties)]
