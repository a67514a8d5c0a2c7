"""What is offered now, and what is still answered of before: models with their index files, as clients may see them.

Guarantee: a query is answered from the index that its offer names, or refused; a client of an audience reaches the
indexes of that audience and no other. A former model is answered for as long as configured; its files are closed only
when it is answered no more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from he_inference.exchange import DIGEST_BYTES, Offer
from he_inference.service.access import Client
from he_inference.service.audience import Audience, audience_of
from he_inference.service.process import IndexFile
from he_inference.service.published import PublishedModel
from veil.errors import CiphertextError, StateError, WireError


@dataclass(frozen=True, eq=False)
class View:
    """Ways to ask, the preferred one first, and the index file of each."""

    offers: tuple[Offer, ...]
    indexes: tuple[IndexFile, ...]
    by_digest: Mapping[bytes, tuple[Offer, IndexFile]] = field(repr=False)

    @classmethod
    def of(cls, indexes: Sequence[IndexFile]) -> View:
        """The offers follow from the index files. Raises `ConfigError` when a query would be too large."""
        offers = tuple(Offer(index.layout, index.item_norm, index.model_digest, index.removed) for index in indexes)
        pairs = zip(offers, indexes, strict=True)
        return cls(offers, tuple(indexes), {offer.offer_digest: (offer, index) for offer, index in pairs})


@dataclass(frozen=True, eq=False)
class Generation:
    """A model, and who is offered what of it: `everybody`, but for the audiences by name."""

    model: PublishedModel
    everybody: View
    audiences: Sequence[Audience] = ()
    views: Mapping[str, View] = field(default_factory=dict)

    def audience(self, client: Client) -> Audience | None:
        """The audience of a client; None: it may know every item."""
        return audience_of(self.audiences, client)

    def view(self, client: Client) -> View:
        """What a client is offered."""
        audience = self.audience(client)
        return self.everybody if audience is None else self.views[audience.name]

    @property
    def indexes(self) -> list[IndexFile]:
        """All index files."""
        return [index for view in (self.everybody, *self.views.values()) for index in view.indexes]

    def close(self, keep: PublishedModel | None = None) -> None:
        """Closes the files, those of the model unless it is `keep`."""
        for index in self.indexes:
            index.close()
        if self.model is not keep:
            self.model.close()


class Generations:
    """Threads may share it."""

    def __init__(self, first: Generation, grace_s: float) -> None:
        self._lock = threading.Lock()
        self._current = first
        self._former: list[tuple[float, Generation]] = []
        self._grace_s = grace_s

    @property
    def current(self) -> Generation:
        """What is offered."""
        with self._lock:
            return self._current

    @property
    def held(self) -> list[Generation]:
        """What is offered, and what was before and is not closed yet."""
        with self._lock:
            return [self._current, *(generation for _, generation in self._former)]

    def find(self, client: Client, offer_digest: bytes) -> tuple[Offer, IndexFile]:
        """The offer of that digest and its index; raises `StateError` for one that is not known, or no longer."""
        if len(offer_digest) != DIGEST_BYTES:
            raise WireError(f"got an offer digest of {len(offer_digest)} bytes, expected {DIGEST_BYTES}")
        for view in self._answered(client):
            if offer_digest in view.by_digest:
                return view.by_digest[offer_digest]
        raise StateError(
            "got a query for an offer that this server does not make, or no longer: its model has changed",
            hint="ask for the parameters and make the query anew",
        )

    def keys_for(self, client: Client, parameters_digest: bytes) -> tuple[Offer, IndexFile]:
        """An offer that takes evaluation keys of that digest; raises `CiphertextError` when there is none."""
        for view in self._answered(client):
            for offer, index in view.by_digest.values():
                if offer.layout.galois_elements and offer.parameters_digest == parameters_digest:
                    return offer, index
        raise CiphertextError(
            "got keys for other parameters or another layout than this server offers",
            hint="ask for its parameters and make the keys anew",
        )

    def replace(self, new: Generation) -> None:
        """Offers `new`; what was offered is answered for the configured time."""
        with self._lock:
            self._former.insert(0, (time.monotonic() + self._grace_s, self._current))
            self._current = new

    @property
    def stale(self) -> list[Generation]:
        """What is held and answered no more."""
        now = time.monotonic()
        with self._lock:
            return [generation for until, generation in self._former if until <= now]

    def forget(self, generations: Sequence[Generation]) -> None:
        """Holds these no longer; they are the caller's to close."""
        with self._lock:
            self._former = [(until, one) for until, one in self._former if one not in generations]

    def _answered(self, client: Client) -> list[View]:
        now = time.monotonic()
        with self._lock:
            generations = [self._current, *(former for until, former in self._former if now < until)]
        return [generation.view(client) for generation in generations]
