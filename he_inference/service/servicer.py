"""InferenceService: what is checked, counted and measured of each call, and in which order.

Of a query: who asks, which offer and keys it names, its length; then how fast and how many at a time; then whether
there is room; then the client's budget, on disk before anything is computed. So a query that is refused costs no
budget, and one that is repeated with the same id costs it once. Of a look-up (offers, model card): who asks, how fast.

Guarantee: this process holds no secret key, user vector or score. Every query to an offer gets the same number of
results of the same length. What is malformed ends as INVALID_ARGUMENT with a sentence. Nothing that a client sent is
logged, and no client is named.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc

from he_inference import exchange
from he_inference.exchange import Offer
from he_inference.layouts.catalogue import key_bytes, query_bytes
from he_inference.service.access import Access, Client
from he_inference.service.audience import refuse_files
from he_inference.service.budget import QueryBudget, request_digest
from he_inference.service.generations import Generations
from he_inference.service.journal import Journal
from he_inference.service.key_cache import KeyCache
from he_inference.service.limits import Limiter
from he_inference.service.metrics import Metrics, outcome_of
from he_inference.service.pool import WorkerPool
from he_inference.service.process import IndexFile
from he_inference.service.tickets import Late, Scores
from veil.errors import CiphertextError, WireError
from veil.wire.cutoff import Cutoff
from veil.wire.status import abort
from veil.wire.v1 import inference_pb2, inference_pb2_grpc

# A client that sends or takes a stream more slowly than this is cut off: it occupies a thread.
_STREAM_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Policy:
    """Who may ask, how fast and how often; and what is written down of it."""

    access: Access
    limiter: Limiter
    budget: QueryBudget
    metrics: Metrics
    journal: Journal


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """The five calls of protos/veil/wire/v1/inference.proto."""

    def __init__(self, generations: Generations, pool: WorkerPool, keys: KeyCache, policy: Policy) -> None:
        self._generations = generations
        self._pool = pool
        self._keys = keys
        self._policy = policy
        self._cutoff = Cutoff()

    def GetParameters(
        self, request: inference_pb2.GetParametersRequest, context: grpc.ServicerContext
    ) -> inference_pb2.GetParametersResponse:
        """The offers, and what is left of the caller's budget."""
        client = self._policy.access.client(context)
        with self._lookup(client):
            view = self._generations.current.view(client)
            first = view.offers[0]
            return inference_pb2.GetParametersResponse(
                offers=[exchange.offer_to_wire(offer) for offer in view.offers],
                manifest_digest=first.manifest_digest,
                queries_left=self._policy.budget.left(client, first.manifest_digest, first.layout.dimensions),
            )

    def GetModelCard(
        self, request: inference_pb2.GetModelCardRequest, context: grpc.ServicerContext
    ) -> inference_pb2.GetModelCardResponse:
        """What the model is and what it cost."""
        with self._lookup(self._policy.access.client(context)):
            return inference_pb2.GetModelCardResponse(card=self._generations.current.model.card)

    def GetClientModel(
        self, request: inference_pb2.GetClientModelRequest, context: grpc.ServicerContext
    ) -> Iterator[inference_pb2.GetClientModelResponse]:
        """One file of the client's part, in pieces."""
        client = self._policy.access.client(context)
        generation = self._generations.current
        refuse_files(generation.audience(client))
        with self._stream(client, context):
            size, pieces = generation.model.client_file(request.file)
            for number, piece in enumerate(pieces):
                yield inference_pb2.GetClientModelResponse(payload=piece, file_bytes=size if number == 0 else 0)

    def RegisterKeys(
        self, request_iterator: Iterator[inference_pb2.RegisterKeysRequest], context: grpc.ServicerContext
    ) -> inference_pb2.RegisterKeysResponse:
        """Checks evaluation keys in the compute process, then stores them for the caller."""
        client = self._policy.access.client(context)
        with self._stream(client, context):
            offer, index, keys = self._gather_keys(client, request_iterator)
            digest = exchange.key_digest(offer.parameters_digest, keys)
            self._pool.check_room()
            ticket = self._pool.ticket(index, _held_as(client, digest), keys, None, context.time_remaining())
            context.add_callback(ticket.cancel)
            try:
                self._pool.answer(ticket)
            except Late as error:
                abort(context, error, grpc.StatusCode.DEADLINE_EXCEEDED)
            self._keys.put(client.account, offer.parameters_digest, keys)
        self._policy.journal.write("keys_registered", client, key_bytes=len(keys))
        return inference_pb2.RegisterKeysResponse(key_digest=digest)

    def Score(
        self, request: inference_pb2.ScoreRequest, context: grpc.ServicerContext
    ) -> Iterator[inference_pb2.ScoreResponse]:
        """Encrypted scores of all items."""
        started = time.perf_counter()
        client = self._policy.access.client(context)
        metrics, journal = self._policy.metrics, self._policy.journal
        try:
            offer, index = self._checked(client, request)
            with self._policy.limiter.query(client), self._cutoff.after(_STREAM_TIMEOUT_S, context.cancel):
                scores = self._scores(client, offer, index, request, context)
                replying = time.perf_counter()
                yield from _responses(offer, scores)
        except BaseException as error:
            metrics.outcome(outcome_of(error))
            journal.write("query_refused", client, code=outcome_of(error))
            if isinstance(error, Late):
                abort(context, error, grpc.StatusCode.DEADLINE_EXCEEDED)
            raise
        ended = time.perf_counter()
        response_bytes = sum(map(len, scores.results))
        for stage, seconds in (
            ("queue", scores.queue_us / 1e6),
            ("read", scores.read_us / 1e6),
            ("compute", scores.compute_us / 1e6),
            ("reply", ended - replying),
        ):
            metrics.stage_took(stage, seconds)
        metrics.answered(offer.layout.items, response_bytes, len(request.query))
        metrics.outcome(outcome_of(None))
        journal.write(
            "query_answered",
            client,
            layout=offer.layout.kind,
            parameters=offer.layout.parameters.name,
            batch_queries=scores.batch_queries,
            query_bytes=len(request.query),
            response_bytes=response_bytes,
            compute_us=scores.compute_us,
            total_us=int(1e6 * (ended - started)),
        )

    def _checked(self, client: Client, request: inference_pb2.ScoreRequest) -> tuple[Offer, IndexFile]:
        """The offer that a query is for, and its index. Raises `WireError`, `StateError`, `CiphertextError`."""
        offer, index = self._generations.find(client, request.offer_digest)
        if len(request.query) != query_bytes(offer.layout):
            raise CiphertextError(
                f"got a query of {len(request.query)} bytes, expected {query_bytes(offer.layout)}",
                hint="made under other parameters? ask the server for its own and make it anew",
            )
        if offer.layout.galois_elements:
            self._keys.known(client.account, offer.parameters_digest, request.key_digest)
        elif request.key_digest:
            raise WireError("got a key digest for an offer without keys, expected none")
        return offer, index

    def _scores(
        self,
        client: Client,
        offer: Offer,
        index: IndexFile,
        request: inference_pb2.ScoreRequest,
        context: grpc.ServicerContext,
    ) -> Scores:
        asked = request_digest(request.request_id, request.offer_digest, request.key_digest, request.query)
        self._pool.check_room()
        self._policy.budget.spend(client, offer.manifest_digest, offer.layout.dimensions, asked)
        ticket = self._pool.ticket(
            index,
            _held_as(client, request.key_digest),
            request.query,
            lambda: self._keys.get(client.account, offer.parameters_digest, request.key_digest),
            context.time_remaining(),
        )
        if not context.add_callback(ticket.cancel):
            ticket.cancel()
        return self._pool.scores(ticket)

    @contextmanager
    def _lookup(self, client: Client) -> Iterator[None]:
        """A call that only says what is there: limited in its rate, and counted by how it ends."""
        try:
            self._policy.limiter.lookup(client)
            yield
        except BaseException as error:
            self._policy.metrics.looked_up(outcome_of(error))
            raise
        self._policy.metrics.looked_up(outcome_of(None))

    @contextmanager
    def _stream(self, client: Client, context: grpc.ServicerContext) -> Iterator[None]:
        """One stream of another kind than a query: counted, and cut off when the client dawdles."""
        with self._policy.limiter.stream(client), self._cutoff.after(_STREAM_TIMEOUT_S, context.cancel):
            yield

    def _gather_keys(
        self, client: Client, pieces: Iterator[inference_pb2.RegisterKeysRequest]
    ) -> tuple[Offer, IndexFile, bytes]:
        first = next(pieces, None)
        if first is None:
            raise WireError("got no evaluation keys, expected one piece or more")
        offer, index = self._generations.keys_for(client, first.parameters_digest)
        expected = key_bytes(offer.layout)
        gather = exchange.Gather("evaluation keys", expected)
        gather.add(first.payload)
        for message in pieces:
            if not message.payload:
                raise WireError("got an empty piece of evaluation keys, expected bytes in each")
            gather.add(message.payload)
        keys = gather.whole()
        if len(keys) != expected:
            raise CiphertextError(f"got keys of {len(keys)} bytes, expected {expected}", hint="make them anew")
        return offer, index, keys


def _responses(offer: Offer, scores: Scores) -> Iterator[inference_pb2.ScoreResponse]:
    for first, batch in exchange.batches(scores.results):
        yield inference_pb2.ScoreResponse(
            results=batch,
            compute_us=scores.compute_us,
            manifest_digest=offer.manifest_digest,
            first_block=first,
            batch_queries=scores.batch_queries,
        )


def _held_as(client: Client, digest: bytes) -> str:
    """The name of keys in the compute process's memory: nobody else's query can use them."""
    return f"{client.account} {digest.hex()}"
