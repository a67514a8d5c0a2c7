"""Correlations that were made ahead: from a plan to a file at every party, and from the file to an engine.

Guarantee: parties use the same batch from its beginning, or stop. Among three and more parties, all shares but those
of masks are made anew by shares of zero (`veil.mpc.randomness`), so that those of any n - 1 parties say nothing of the
other's, as if a dealer had dealt them: a product of what two parties know is shared among all. Each item is marked as
used on the disk before it is handed out (`store`), so that no mask covers two values even across a crash.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import torch

from veil.errors import InputError, StateError
from veil.mpc.communicator import TensorCommunicator
from veil.mpc.engine.correlations import Taken
from veil.mpc.engine.items import EngineItem, check_without_dealer
from veil.mpc.he import store
from veil.mpc.he.correlations import Noise, make
from veil.mpc.he.exchange import Exchange
from veil.mpc.he.shared import SharedProducts
from veil.mpc.he.store import BATCH_BYTES, Record, Store

# Marked as used together, and held: what a crash loses at most, and what one write to the disk is spread over. A record
# of a large matrix may exceed the bytes alone.
_AHEAD, _AHEAD_BYTES = 64, 64 * 2**20
_DOMAIN = b"veil/he-batch/v1\x00"


def prepare(
    communicator: TensorCommunicator, path: Path, items: Sequence[EngineItem], noise: Noise | None = None
) -> bytes:
    """Makes a plan's items with all other parties, writes the own shares to a new store, gives the batch's name.

    All parties call it with the same items. Raises `ProtocolMismatch` naming who did not, and before anything is sent
    `ConfigError` for what takes a dealer.
    """
    check_without_dealer(items, communicator.world_size)
    labels = [label(item) for item in items]
    communicator.agree(_DOMAIN + "\n".join(labels).encode())
    parts = communicator.all_gather_bytes(secrets.token_bytes(BATCH_BYTES), BATCH_BYTES)
    batch = hashlib.sha256(_DOMAIN + b"".join(parts)).digest()
    exchange = Exchange(communicator)
    exchange.start()
    products = SharedProducts(exchange)
    made = make(products, items, noise)
    made.reverse()
    records: list[Record] = []
    for item in items:
        independent, dependent = made.pop()
        # Masks of one owner are zero elsewhere; all others, those of waves too, are uniform as they are.
        first = products.anew(independent) if item.kind == "truncation" else independent
        records.append((first,) if dependent is None else (first, products.anew(dependent)))
    store.create(path, batch, labels, records)
    return batch


class StoredCorrelations:
    """`veil.mpc.engine.correlations.Correlations` from an open store."""

    def __init__(self, opened: Store) -> None:
        self._store = opened
        self._ready: deque[Taken] = deque()
        self._masks: list[str] = []
        self._aligned = False

    def __repr__(self) -> str:
        return f"StoredCorrelations({self._store!r})"

    def align(self, communicator: TensorCommunicator) -> None:
        """Makes sure that all parties begin the same batch; two rounds.

        Raises `ProtocolMismatch` for other batches, and `StateError` where a part is used at any party: products belong
        to masks that came before them, so what is left is of no use, and the whole is spent.
        """
        communicator.agree(_DOMAIN + self._store.batch)
        positions = communicator.all_gather_bytes(self._store.position.to_bytes(8, "little"), 8)
        if any(position != bytes(8) for position in positions):
            self._store.skip_to(len(self._store.labels))
            raise StateError(
                "got a store of which a part is used, expected a new one", hint="prepare correlations anew for this job"
            )
        self._aligned = True

    def take(self, item: EngineItem) -> Taken:
        """See `veil.mpc.engine.correlations.Correlations.take`. Raises `StateError` before `align`."""
        if not self._aligned:
            raise StateError("got a request of parties that may hold other batches, expected `align` first")
        if not self._ready:
            first = self._store.position
            coming = self._store.coming(_AHEAD, _AHEAD_BYTES)
            for number, record in enumerate(self._store.take_many(coming), first):
                self._ready.append(_taken(number, record))
            self._masks = coming
        if not self._ready or self._masks[-len(self._ready)] != label(item):
            raise StateError(
                f"got a request for {item.kind} {item.shape}, expected what was planned",
                hint="the store was made for another program",
            )
        return self._ready.popleft()


def _taken(number: int, record: Record) -> Taken:
    if not 1 <= len(record) <= 2:
        raise InputError(f"got a record of {len(record)} tensors, expected one or two")
    return number, torch.from_numpy(record[0]), torch.from_numpy(record[1]) if len(record) == 2 else None


def label(item: EngineItem) -> str:
    """What a record is, in 40 characters."""
    return hashlib.sha256(repr(item).encode()).hexdigest()[:40]
