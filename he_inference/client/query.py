"""One encrypted question and its answer, apart from how they travel.

Guarantee: a query is encrypted once and stays the same bytes under the same request id however often it is sent. An
answer is taken only when it is of the model that was asked, complete, and of exactly the sizes that follow from the
offer.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from he_inference import exchange
from he_inference.client.fold_in import FoldIn, Items
from he_inference.client.keys import Keys
from he_inference.client.scores import Origin, Scores, exact_margin
from he_inference.encoding.deviation import stated_error
from he_inference.exchange import Offer
from he_inference.layouts import tower
from he_inference.layouts.catalogue import result_bytes
from he_inference.layouts.history import HistoryLayout
from veil.errors import InputError, ProtocolMismatch, StateError
from veil.wire.v1 import inference_pb2

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One item, with the score that the model gives it for this history."""

    item_id: str
    title: str
    score: float


@dataclass(frozen=True, slots=True)
class QueryReport:
    """What one query cost: bytes on the wire, seconds from call to scores, the server's own arithmetic.

    attempts: calls of Score, the successful one included. batch_queries: queries that the server computed together.
    """

    query_bytes: int
    response_bytes: int
    total_s: float
    server_s: float
    attempts: int
    batch_queries: int


@dataclass(frozen=True)
class Ready:
    """Everything that a query needs. key_digest: the server's name for the evaluation keys; empty without."""

    offer: Offer
    keys: Keys
    key_digest: bytes

    def asks_like(self, other: Ready) -> bool:
        """Whether a query made for one can be sent as one made for the other."""
        mine, theirs = self.offer.offer_digest, other.offer.offer_digest
        return (mine, self.key_digest, self.keys.key_id) == (theirs, other.key_digest, other.keys.key_id)


@dataclass
class Query:
    """A user vector or a history, encrypted.

    scale: what the scores of the unit vector have to be multiplied by. history_items: how many items the history has;
    None for a vector.
    """

    ready: Ready
    data: bytes = field(repr=False)
    scale: float = field(repr=False)
    history_items: int | None = field(repr=False, default=None)
    request_id: bytes = field(default_factory=lambda: secrets.token_bytes(exchange.REQUEST_ID_BYTES))
    attempts: int = 0

    @classmethod
    def of_history(cls, numbers: NDArray[np.int64], ready: Ready) -> Query:
        """Encrypts a history, int64[n] of item numbers, for an offer that folds histories in. Raises `InputError`."""
        layout = ready.offer.layout
        weights, count = tower.weights(numbers, layout.items)
        return cls(ready, ready.keys.secret.encrypt(layout.query_polynomials(weights)), 1.0, count)

    @classmethod
    def of(cls, vector: Floats, ready: Ready) -> Query:
        """Encrypts float64[dimensions] of any length. Raises `InputError` when it does not fit."""
        if isinstance(ready.offer.layout, HistoryLayout):
            raise InputError("got a user vector for an offer that takes histories", hint="call score_history()")
        norm = float(np.linalg.norm(vector))
        unit = vector / norm if norm > 0 else vector
        data = ready.keys.secret.encrypt(ready.offer.layout.query_polynomials(unit))
        return cls(ready, data, norm * ready.offer.item_norm)

    def message(self) -> inference_pb2.ScoreRequest:
        """As it is sent."""
        return inference_pb2.ScoreRequest(
            key_digest=self.ready.key_digest,
            query=self.data,
            offer_digest=self.ready.offer.offer_digest,
            request_id=self.request_id,
        )

    def decrypt(self, results: list[bytes]) -> Scores:
        """The scores of all items. Raises `CiphertextError` for results of other lengths."""
        offer = self.ready.offer
        layout, parameters = offer.layout, offer.layout.parameters
        numbers, bits = self.ready.keys.secret.decrypt(results, layout.coefficient_places())
        key_id, found = self.ready.keys.key_id, layout.scores(numbers, bits)
        if isinstance(layout, HistoryLayout):
            made = tower.combined(layout, found, self.history_items or 0, offer.item_norm)
            return Scores(Origin(offer, key_id, 1.0, made.error, 0.0, made.scores))
        margin = exact_margin(parameters.plain_modulus, numbers, bits) if parameters.scheme == "bfv" else 0.0
        return Scores(Origin(offer, key_id, self.scale, stated_error(layout), margin, found))


class Answer:
    """Gathers the results of one query (`he_inference.client.steps.Gathering`)."""

    def __init__(self, offer: Offer, peer: str) -> None:
        self._offer = offer
        self._peer = peer
        self._size = result_bytes(offer.layout)
        self._results: list[bytes] = []
        self.compute_us = 0
        self.batch_queries = 0

    def add(self, message: Any) -> None:
        """The next results. Raises `StateError` for another model's, `ProtocolMismatch` for what is no answer."""
        if message.manifest_digest != self._offer.manifest_digest:
            raise another_model()
        fits = message.first_block == len(self._results) and message.results
        if not fits or len(self._results) + len(message.results) > self._offer.layout.blocks:
            raise self._mismatch("blocks out of order or too many")
        if any(len(result) != self._size for result in message.results):
            raise self._mismatch(f"results of other lengths than {self._size} bytes")
        self._results.extend(message.results)
        self.compute_us = message.compute_us
        self.batch_queries = message.batch_queries

    def whole(self) -> list[bytes]:
        """All results, in order. Raises `ProtocolMismatch` when some are absent."""
        if len(self._results) != self._offer.layout.blocks:
            raise self._mismatch(f"{len(self._results)} results of {self._offer.layout.blocks}")
        return self._results

    def _mismatch(self, what: str) -> ProtocolMismatch:
        return ProtocolMismatch(f"{self._peer} sent {what}", culprits=(self._peer,))


def another_model() -> StateError:
    """A vector or an answer belongs to another model than the one that the server has now."""
    return StateError("got scores or offers of another model than the vector is of", hint="refresh() and ask again")


def checked_vector(vector: NDArray[np.floating]) -> Floats:
    """float64[n]; raises `InputError` for what is no vector or not finite. Its length is checked against the layout."""
    values = np.asarray(vector, dtype=np.float64)
    if values.ndim != 1:
        raise InputError(f"got a user vector of shape {values.shape}, expected one dimension")
    if not np.all(np.isfinite(values)):
        raise InputError("got a user vector with NaN or infinity, expected finite numbers")
    return values


def question(items: Items, history: Sequence[str], skip_unknown: bool) -> Callable[[Ready], Query]:
    """How a history is encrypted: folded in here where the model's tower is at hand, as it is otherwise."""
    if isinstance(items, FoldIn):
        vector = checked_vector(items.user_vector(history, skip_unknown=skip_unknown))
        return lambda ready: Query.of(vector, ready)
    numbers = items.numbers(history, skip_unknown=skip_unknown)
    return lambda ready: Query.of_history(numbers, ready)
