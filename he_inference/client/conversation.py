"""What a client says to a scoring server and makes of the answers: offers, keys, queries, retries, new models.

Guarantee: history, vectors, scores and secret keys stay in this process. An offer is taken only when it follows from a
parameter set and layout known here. A call that failed is repeated only when the failure may pass, the same question as
the same bytes, and every conversation ends by the caller's time limit.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from he_inference import exchange
from he_inference.client.fold_in import FoldIn, Items
from he_inference.client.keys import Keys, Ring
from he_inference.client.linear import LinearClient, fetch_linear
from he_inference.client.model import TITLES, TOWER, ModelCache
from he_inference.client.query import (
    Answer,
    Query,
    QueryReport,
    Ready,
    Recommendation,
    another_model,
    checked_vector,
    question,
)
from he_inference.client.scores import Scores
from he_inference.client.steps import Alone, Ask, CallFailed, Conversation, Pause, Receive, Retries, Send, Step, Work
from he_inference.client.wishes import Wishes
from he_inference.exchange import Offer
from veil.errors import ConfigError, InputError, PeerLost, ProtocolMismatch, StateError
from veil.wire.v1 import inference_pb2, model_pb2

_LONGEST_TIMEOUT_S = 86_400.0


class Dialogue:
    """A client's state towards one server, and its conversations, which `sync` or `aio` carries out.

    Threads may share it. What fills the state runs within `Alone`, one conversation at a time.
    """

    def __init__(
        self, peer: str, ring: Ring, models: ModelCache, *, wishes: Wishes, retries: Retries, timeout_s: float
    ) -> None:
        if not 0 < timeout_s <= _LONGEST_TIMEOUT_S:
            raise ConfigError(f"got a time limit of {timeout_s} s, expected more than 0 and at most a day")
        self.peer = peer
        self.ring = ring
        self.last_query: QueryReport | None = None
        self.queries_left: int | None = None
        self.key_bytes = 0
        self._models = models
        self._wishes = wishes
        self._retries = retries
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._offer: Offer | None = None
        self._fold_in: FoldIn | None = None
        self._titles: Items | None = None
        self._linear: LinearClient | None = None
        self._ready: Ready | None = None

    # --- what can be asked

    def offer(self) -> Conversation[Offer]:
        """The offer that this client takes; asked once, again after `forget`."""
        found: Offer = self._offer or (yield Alone(self._get_offer(self._limit())))
        return found

    def card(self) -> Conversation[model_pb2.ModelCard]:
        """What the model is and what it cost, in the server's words."""
        request = inference_pb2.GetModelCardRequest()
        answer: inference_pb2.GetModelCardResponse = yield from self._patiently(
            lambda left: Ask("GetModelCard", request, left), self._limit()
        )
        return answer.card

    def fold_in(self) -> Conversation[FoldIn]:
        """The client's part of the model, verified; fetched once, then read from the cache by its digest."""
        return (yield from self._folded(self._limit()))

    def items(self) -> Conversation[Items]:
        """Ids and titles, with the fold-in where vectors are sent; otherwise as `fold_in`."""
        return (yield from self._items(self._limit()))

    def linear(self) -> Conversation[LinearClient]:
        """What encodes rows for the server's models on columns, verified; fetched once, again after `forget`."""
        found: LinearClient = self._linear or (yield Alone(self._get_linear(self._limit())))
        return found

    def score(self, vector: NDArray[np.floating]) -> Conversation[Scores]:
        """Scores of all items. Raises `StateError` when the server has another model than when it was last asked."""
        values = checked_vector(vector)
        known = self._offer
        model = known.manifest_digest if known else None
        return (yield from self._score(lambda ready: Query.of(values, ready), model, self._limit()))

    def score_history(self, history: Sequence[str], *, skip_unknown: bool) -> Conversation[Scores]:
        """Scores of all items for a history of ids. Raises as `score`."""
        limit = self._limit()
        items = yield from self._items(limit)
        return (yield from self._score(question(items, history, skip_unknown), items.digest, limit))

    def recommend(
        self, history: Sequence[str], k: int, *, exclude_seen: bool, skip_unknown: bool
    ) -> Conversation[list[Recommendation]]:
        """The k best items. Where the server's model changes meanwhile, the new one's fold-in is taken, once."""
        if isinstance(k, bool) or k < 1:
            raise InputError(f"got k = {k}, expected at least 1")
        limit = self._limit()
        try:
            return (yield from self._recommend(history, k, exclude_seen, skip_unknown, limit))
        except StateError:
            self.forget()
            return (yield from self._recommend(history, k, exclude_seen, skip_unknown, limit))

    def rotate(self) -> Conversation[None]:
        """A new secret key; the next query registers its evaluation keys."""
        yield Alone(self._rotate(self._limit()))

    def forget(self) -> None:
        """Asks for offers and model anew the next time."""
        with self._lock:
            self._offer = self._ready = self._fold_in = self._titles = self._linear = None

    # --- state, filled when it is wanted

    def _limit(self) -> float:
        return time.monotonic() + self._timeout_s

    def _folded(self, limit: float) -> Conversation[FoldIn]:
        found: FoldIn = self._fold_in or (yield Alone(self._get_fold_in(limit)))
        return found

    def _items(self, limit: float) -> Conversation[Items]:
        if not self._wishes.from_history:
            return (yield from self._folded(limit))
        found: Items = self._titles or (yield Alone(self._get_titles(limit)))
        return found

    def _get_titles(self, limit: float) -> Conversation[Items]:
        offer = yield from self._get_offer(limit)
        known = self._titles
        if known is not None and known.digest == offer.manifest_digest:
            return known
        titles = yield from self._models.fetch(TITLES, offer, lambda step: self._patiently(step, limit))
        made: Items = yield Work(lambda: Items(titles))
        with self._lock:
            self._titles = made
        return made

    def _get_offer(self, limit: float) -> Conversation[Offer]:
        if self._offer is not None:
            return self._offer
        request = inference_pb2.GetParametersRequest()
        message: inference_pb2.GetParametersResponse = yield from self._patiently(
            lambda left: Ask("GetParameters", request, left), limit
        )
        offer = self._wishes.choose(exchange.offers_from_wire(message, self.peer), self.peer)
        with self._lock:
            self._offer = offer
            self.queries_left = message.queries_left if message.HasField("queries_left") else None
        return offer

    def _get_fold_in(self, limit: float) -> Conversation[FoldIn]:
        offer = yield from self._get_offer(limit)
        known = self._fold_in
        if known is not None and known.digest == offer.manifest_digest:
            return known
        model = yield from self._models.fetch(TOWER, offer, lambda step: self._patiently(step, limit))
        fold_in: FoldIn = yield Work(lambda: FoldIn(model))
        with self._lock:
            self._fold_in = fold_in
        return fold_in

    def _get_linear(self, limit: float) -> Conversation[LinearClient]:
        offer = yield from self._get_offer(limit)
        linear = yield from fetch_linear(self._models, offer, lambda step: self._patiently(step, limit))
        with self._lock:
            self._linear = linear
        return linear

    def _get_ready(self, limit: float) -> Conversation[Ready]:
        offer = yield from self._get_offer(limit)
        known = self._ready
        if known is not None and known.offer == offer:
            return known
        layout = offer.layout
        keys: Keys = yield Work(lambda: self.ring.open(layout.parameters, layout.galois_elements))
        digest = (yield from self._register(offer, keys.evaluation, limit)) if keys.evaluation else b""
        ready = Ready(offer, keys, digest)
        with self._lock:
            self._ready, self.key_bytes = ready, len(keys.evaluation)
        return ready

    def _register(self, offer: Offer, evaluation: bytes, limit: float) -> Conversation[bytes]:
        pieces = [
            inference_pb2.RegisterKeysRequest(
                parameters_digest=b"" if number else offer.parameters_digest, payload=piece
            )
            for number, piece in enumerate(exchange.chunks(evaluation))
        ]
        answer: inference_pb2.RegisterKeysResponse = yield from self._patiently(
            lambda left: Send("RegisterKeys", pieces, left), limit
        )
        if answer.key_digest != exchange.key_digest(offer.parameters_digest, evaluation):
            raise ProtocolMismatch(f"{self.peer} stored other keys than it was sent", culprits=(self.peer,))
        return answer.key_digest

    def _rotate(self, limit: float) -> Conversation[None]:
        offer = yield from self._get_offer(limit)
        yield Work(lambda: self.ring.rotate(offer.layout.parameters))
        with self._lock:
            self._ready = None

    # --- questions

    def _score(self, encrypted: Callable[[Ready], Query], model: bytes | None, limit: float) -> Conversation[Scores]:
        """model: manifest digest of the model that the question is of; None when nobody has looked yet."""
        started = time.perf_counter()
        ready: Ready = self._ready or (yield Alone(self._get_ready(limit)))
        if model is not None and ready.offer.manifest_digest != model:
            raise another_model()
        query: Query = yield Work(lambda: encrypted(ready))
        try:
            answer = yield from self._ask(query, limit)
        except CallFailed as failed:
            if not failed.outdated:
                raise
            # Keys or offer are no longer known there: look at the offers, send the keys, and ask once more.
            again = yield from self._renewed(ready, limit)
            if not again.asks_like(ready):
                query = yield Work(lambda: encrypted(again))
            answer = yield from self._ask(query, limit)
        results = answer.whole()
        scores: Scores = yield Work(lambda: query.decrypt(results))
        self.last_query = QueryReport(
            query_bytes=len(query.data),
            response_bytes=sum(map(len, results)),
            total_s=time.perf_counter() - started,
            server_s=answer.compute_us / 1e6,
            attempts=query.attempts,
            batch_queries=answer.batch_queries,
        )
        return scores

    def _renewed(self, stale: Ready, limit: float) -> Conversation[Ready]:
        """What is ready after the server refused `stale`. Raises `StateError` when its model is another one now."""
        with self._lock:
            if self._ready is stale:
                self._offer = self._ready = None
        ready: Ready = yield Alone(self._get_ready(limit))
        if ready.offer.manifest_digest != stale.offer.manifest_digest:
            raise another_model()
        return ready

    def _ask(self, query: Query, limit: float) -> Conversation[Answer]:
        message = query.message()

        def attempt(left: float) -> Step:
            query.attempts += 1
            # Half an answer is thrown away with the call that it came from.
            return Receive("Score", message, Answer(query.ready.offer, self.peer), left)

        answer: Answer = yield from self._patiently(attempt, limit)
        return answer

    def _recommend(
        self, history: Sequence[str], k: int, exclude_seen: bool, skip_unknown: bool, limit: float
    ) -> Conversation[list[Recommendation]]:
        items = yield from self._items(limit)
        scores = yield from self._score(question(items, history, skip_unknown), items.digest, limit)
        kept = np.ones(len(scores), bool)
        if scores.origin is not None:
            kept[list(scores.origin.offer.removed)] = False
        if exclude_seen:
            kept[items.numbers(history, skip_unknown=skip_unknown)] = False
        order = np.argsort(-np.asarray(scores), kind="stable")
        return [
            Recommendation(items.ids[number], items.titles[number], float(scores[number]))
            for number in order[kept[order]][:k]
        ]

    def _patiently(self, step: Callable[[float], Step], limit: float) -> Conversation[Any]:
        """The answer to `step(seconds left)`, tried again while failures may pass, within `limit`."""
        pauses = self._retries.pauses()
        while True:
            left = limit - time.monotonic()
            if left <= 0:
                raise PeerLost(f"{self.peer} did not answer within {self._timeout_s:g} s", culprits=(self.peer,))
            try:
                return (yield step(left))
            except CallFailed as failed:
                pause = next(pauses, None) if failed.passing else None
                if pause is None or (wait_s := max(pause, failed.wait_s)) >= limit - time.monotonic():
                    raise
            yield Pause(wait_s)
