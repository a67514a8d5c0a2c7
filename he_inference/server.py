"""InferenceService: scores of all items for an encrypted user vector, over mutual TLS, for role `client` only.

Guarantee: this process never holds a secret key, a user vector or a score, and never lets SEAL read a client's bytes:
it checks sizes and envelopes, looks up keys by the caller's own identity, and hands the rest to a worker process. What
is malformed ends as INVALID_ARGUMENT with a sentence; a worker that dies fails one request, not the service.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from he_inference import exchange, seal_file
from he_inference.config import ScoringConfig
from he_inference.exchange import Terms
from he_inference.key_cache import KeyCache, Limits
from he_inference.packing import SessionLayout
from he_inference.parameters import named
from he_inference.pool import Overloaded, WorkerPool
from he_inference.published import PublishedModel, open_model
from he_inference.scoring import scale_items
from veil.errors import CiphertextError, IdentityError, WireError
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.wire.channel import RunningServer, Service, caller, serve
from veil.wire.status import abort
from veil.wire.v1 import inference_pb2, inference_pb2_grpc

NAME = "veil.wire.v1.InferenceService"
# A client that sends or takes a stream more slowly than this is cut off: it occupies a thread.
_STREAM_TIMEOUT_S = 300.0
_DAY_S = 86_400.0
_log = logging.getLogger("veil.he_inference.server")


class _Turns:
    """How many queries each client has under way; no client may take all places."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._running: Counter[Identity] = Counter()

    @contextmanager
    def of(self, client: Identity) -> Iterator[None]:
        """One query of `client`; raises `Overloaded` when it has too many."""
        with self._lock:
            if self._running[client] >= self._limit:
                raise Overloaded(
                    f"got more than {self._limit} queries of one client at a time, expected at most that many"
                )
            self._running[client] += 1
        try:
            yield
        finally:
            with self._lock:
                self._running[client] -= 1
                if not self._running[client]:
                    del self._running[client]


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """The five calls of protos/veil/wire/v1/inference.proto."""

    def __init__(self, model: PublishedModel, terms: Terms, pool: WorkerPool, keys: KeyCache, per_client: int) -> None:
        self._model = model
        self._terms = terms
        self._pool = pool
        self._keys = keys
        self._turns = _Turns(per_client)

    def GetParameters(
        self, request: inference_pb2.GetParametersRequest, context: grpc.ServicerContext
    ) -> inference_pb2.GetParametersResponse:
        """Parameter set and layout."""
        return exchange.terms_to_wire(self._terms)

    def GetModelCard(
        self, request: inference_pb2.GetModelCardRequest, context: grpc.ServicerContext
    ) -> inference_pb2.GetModelCardResponse:
        """What the model is and what it cost."""
        return inference_pb2.GetModelCardResponse(card=self._model.card)

    def GetClientModel(
        self, request: inference_pb2.GetClientModelRequest, context: grpc.ServicerContext
    ) -> Iterator[inference_pb2.GetClientModelResponse]:
        """One file of the client's part, in pieces."""
        with self._admitted(caller(context), context):
            size, pieces = self._model.client_file(request.file)
            for number, piece in enumerate(pieces):
                yield inference_pb2.GetClientModelResponse(payload=piece, file_bytes=size if number == 0 else 0)

    def RegisterKeys(
        self, request_iterator: Iterator[inference_pb2.RegisterKeysRequest], context: grpc.ServicerContext
    ) -> inference_pb2.RegisterKeysResponse:
        """Checks evaluation keys in a worker, then stores them for the caller."""
        client = caller(context)
        with self._admitted(client, context):
            keys = self._gather_keys(request_iterator)
            digest = exchange.key_digest(self._terms.parameters_digest, keys)
            self._pool.register(_held_as(client, digest), keys, timeout_s=context.time_remaining())
            self._keys.put(client, keys)
        _log.info("%s registered evaluation keys of %d bytes", client, len(keys))
        return inference_pb2.RegisterKeysResponse(key_digest=digest)

    def Score(
        self, request: inference_pb2.ScoreRequest, context: grpc.ServicerContext
    ) -> Iterator[inference_pb2.ScoreResponse]:
        """Encrypted scores of all items."""
        client = caller(context)
        self._keys.known(client, request.key_digest)
        seal_file.check(request.query, "a query", limit_bytes=self._terms.layout.parameters.max_query_bytes)
        with self._admitted(client, context):
            scores = self._pool.score(
                _held_as(client, request.key_digest),
                request.query,
                lambda: self._keys.get(client, request.key_digest),
                timeout_s=context.time_remaining(),
            )
            for first, batch in exchange.batches(scores.ciphertexts):
                yield inference_pb2.ScoreResponse(
                    ciphertexts=batch,
                    compute_us=scores.compute_us,
                    manifest_digest=self._terms.manifest_digest,
                    first_block=first,
                )

    @contextmanager
    def _admitted(self, client: Identity, context: grpc.ServicerContext) -> Iterator[None]:
        """One stream of `client`: counted, and cut off when it dawdles. Too much load has a status of its own."""
        cut_off = threading.Timer(_STREAM_TIMEOUT_S, context.cancel)
        cut_off.daemon = True
        cut_off.start()
        try:
            with self._turns.of(client):
                yield
        except Overloaded as error:
            abort(context, error, grpc.StatusCode.RESOURCE_EXHAUSTED)
        finally:
            cut_off.cancel()

    def _gather_keys(self, pieces: Iterator[inference_pb2.RegisterKeysRequest]) -> bytes:
        limit = self._terms.layout.max_key_bytes
        gather = exchange.Gather("evaluation keys", limit)
        for number, message in enumerate(pieces):
            if number == 0 and message.parameters_digest != self._terms.parameters_digest:
                raise CiphertextError(
                    "got keys for other parameters or another layout than this server has",
                    hint="ask for its parameters and make the keys anew",
                )
            if number and not message.payload:
                raise WireError("got an empty piece of evaluation keys, expected bytes in each")
            gather.add(message.payload)
        keys = gather.whole()
        seal_file.check(keys, "evaluation keys", limit_bytes=limit)
        return keys


def _held_as(client: Identity, digest: bytes) -> str:
    """The name of keys in a worker's memory: nobody else's request can use them."""
    return f"{client.uri} {digest.hex()}"


@dataclass(frozen=True)
class ScoringServer:
    """A server that listens, with its workers; a context manager that stops both."""

    running: RunningServer
    pool: WorkerPool
    terms: Terms
    model: PublishedModel

    @property
    def address(self) -> str:
        """Where it listens."""
        return self.running.address

    def stop(self, grace_s: float = 5.0) -> None:
        """Takes no new requests, gives running ones `grace_s`, ends the workers."""
        self.running.stop(grace_s)
        self.pool.close()
        self.model.close()

    def __enter__(self) -> ScoringServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(0.0)


def start(config: ScoringConfig) -> ScoringServer:
    """Verifies the model, encodes its items in every worker, then listens.

    Raises `IdentityError`, `ArtifactError`, `ConfigError` or `StateError`; nothing listens then.
    """
    credentials = Credentials.load(config.credentials)
    own = credentials.identity
    if own.role is not Role.SCORING:
        raise IdentityError(f"got credentials of {own}, expected role scoring", hint="veil certs issue --role scoring")
    signers = [Identity(own.consortium, Role.PARTY, name) for name in config.require_signers]
    model = open_model(config.model, credentials.authority_pem, signers)
    try:
        return start_with(model, credentials, config)
    except BaseException:
        model.close()
        raise


def start_with(model: PublishedModel, credentials: Credentials, config: ScoringConfig) -> ScoringServer:
    """As `start`, for a model that is loaded already."""
    scaled = scale_items(model.factors)
    layout = SessionLayout(named(config.parameters), *model.factors.shape)
    terms = Terms(layout, scaled.norm, model.manifest_digest)
    keys = KeyCache(
        _private(config.state) / "keys",
        terms.parameters_digest,
        Limits(config.keys.max_bytes, config.keys.max_per_client, config.keys.lifetime_days * _DAY_S),
    )
    load = config.load
    pool = WorkerPool(
        layout, scaled.rows, workers=load.workers, queue_limit=load.queue, timeout_s=load.timeout_s
    ).start()
    servicer = InferenceServicer(model, terms, pool, keys, load.per_client)

    def add(server: grpc.Server) -> None:
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, server)

    try:
        # Every place in the queue is a thread that waits; some more answer the cheap calls meanwhile.
        threads = load.workers + load.queue + 16
        running = serve(
            config.listen, credentials, [Service(NAME, add, frozenset({Role.CLIENT}))], max_workers=min(threads, 1024)
        )
    except BaseException:
        pool.close()
        raise
    return ScoringServer(running, pool, terms, model)


def _private(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    return directory
