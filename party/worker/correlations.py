"""Where a job's correlated randomness comes from at one party: its dealer, the other parties, or nowhere.

Guarantee: items come in the order of the plan, each once; what is made without a dealer lies in a folder of this job
alone and is removed when the job ends.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from party.rows.columns import fresh_scratch
from veil.errors import StateError
from veil.mpc.communicator import TensorCommunicator
from veil.mpc.engine.correlations import Correlations, Taken
from veil.mpc.engine.items import EngineItem
from veil.mpc.engine.pool import Fetch, PooledCorrelations


class _Nothing:
    """For a program that takes none."""

    def take(self, item: EngineItem) -> Taken:
        raise StateError(f"got a request for {item.kind}, expected none as planned")


@contextmanager
def correlations(
    communicator: TensorCommunicator,
    items: Sequence[EngineItem],
    *,
    triples: str,
    job_digest: bytes,
    seed: bytes,
    fetch: Fetch | None,
    scratch: Path,
    offline: Callable[[], AbstractContextManager[None]],
) -> Iterator[Correlations]:
    """What a plan asks for: from the dealer as it goes, or made with the other parties first and stored.

    fetch: at rank 0, the dealer's corrections. scratch: where the folder of stored ones is made. offline: the meter's
    phase for making them.
    """
    if not items:
        yield _Nothing()
        return
    if triples == "dealer":
        with PooledCorrelations(communicator.rank, communicator.world_size, seed, fetch, items) as pool:
            yield pool
        return
    # Here and not above: the ciphertexts' kernels, which other jobs do not need.
    from veil.mpc.he.prepared import StoredCorrelations, prepare
    from veil.mpc.he.store import Store

    folder = fresh_scratch(scratch, job_digest)
    try:
        with offline():
            prepare(communicator, folder / "items", items)
        with Store(folder / "items") as opened:
            stored = StoredCorrelations(opened)
            stored.align(communicator)
            yield stored
    finally:
        shutil.rmtree(folder)
