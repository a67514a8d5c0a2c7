"""A scoring server in the test's own process: real TLS, real arithmetic, and failures on demand.

The answers are those of `he_inference.engine.compute`; what the real server adds (workers, budgets, key cache) has
tests of its own.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from he_inference import exchange
from he_inference.engine.compute import Compute
from he_inference.engine.history import HistoryCompute, encode_fold_in
from he_inference.exchange import Offer
from he_inference.layouts import tower
from he_inference.layouts.catalogue import layout_of
from he_inference.scheme import SecretKey
from veil.errors import StateError, VeilError
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.jobs.spec import Catalogue as CatalogueSpec
from veil.jobs.spec import JobSpec, Noise, Privacy, Release, SubspaceTrainer
from veil.recsys.artifact import build_files, build_manifest
from veil.recsys.catalogue import Catalogue
from veil.recsys.items import ItemTable
from veil.recsys.manifest import sign_manifest
from veil.recsys.model import Model, score_bound
from veil.recsys.signed import save_directory
from veil.wire.channel import RunningServer, Service, serve
from veil.wire.status import abort
from veil.wire.v1 import inference_pb2 as messages
from veil.wire.v1 import inference_pb2_grpc, model_pb2

ITEMS, DIMENSIONS = 300, 19
SERVER = Identity("trial", Role.SCORING, "main")
NAME = "veil.wire.v1.InferenceService"
OFFERS = (("session", "fast", 0), ("session", "exact", 0), ("keyless", "keyless", 8))


def make_model(seed: int) -> Model:
    generator = np.random.default_rng(seed)
    factors = generator.normal(size=(ITEMS, DIMENSIONS)).astype(np.float32)
    factors[11] = 0  # a cold item
    fold_in = generator.normal(size=(ITEMS, DIMENSIONS)).astype(np.float32)
    norm_terms = np.stack([np.full(ITEMS, 20.0), np.full(ITEMS, 0.1)], axis=1).astype(np.float32)
    return Model(
        fold_in=fold_in,
        norm_terms=norm_terms,
        collaborative=10,
        taste_centre=0.0,
        item_factors=factors,
        score_scale=score_bound(factors, 10),
    )


def publish(consortium: Path, model: Model, directory: Path) -> Path:
    ids = tuple(str(1000 + number) for number in range(ITEMS))
    table = ItemTable(ids, tuple(f"Title {item}" for item in ids), tuple(("genre",) for _ in ids))
    catalogue = Catalogue(table, np.zeros((ITEMS, 2), np.float32))
    parties = ("alpha", "beta")
    spec = JobSpec(
        name="trial-job",
        nonce="0" * 32,
        consortium="trial",
        parties=parties,
        dealer="main",
        catalogue=CatalogueSpec(digest=catalogue.digest, items=ITEMS, features=2),
        privacy=Privacy(epsilon=3.0, delta=1e-6, noise=Noise(source="dealer")),
        trainer=SubspaceTrainer(dimensions=10, content_dimensions=6, rounds=1, clip=0.5, popularity_power=0.2),
        releases=(Release(name="counts", shape=(ITEMS,), sensitivity=1000, sigma=3000),),
        versions={"veil": "0.1.0"},
    )
    files = build_files(spec, catalogue, model)
    manifest = build_manifest(spec, model, files, created_s=int(time.time()))
    signatures = []
    for name in parties:
        own = Credentials.load(consortium / f"party-{name}")
        signatures.append(sign_manifest(manifest, name, own.certificate_pem, own.sign))
    save_directory(directory, files, manifest, signatures)
    return directory


@dataclass
class Seen:
    """One query as the server had it."""

    request_id: bytes
    query: bytes
    offer: Offer
    results: list[bytes] = field(default_factory=list)


class Desk(inference_pb2_grpc.InferenceServiceServicer):
    """The servicer. `faults` are raised by the next calls of Score, one each; a status, or a `VeilError` with one."""

    def __init__(self, model: Model, published: Path, offers: tuple[tuple[str, str, int], ...] = OFFERS) -> None:
        self.kinds = offers
        self.faults: list[tuple[grpc.StatusCode, VeilError | None]] = []
        self.seen: list[Seen] = []
        self.keys: dict[bytes, bytes] = {}
        self.registrations = 0
        self.parameters_asked = 0
        self.tokens: list[str] = []
        self.spoil: Any = None
        self.spoil_score: Any = None
        self.queries_left: int | None = None
        self.delay_s = 0.0
        self.computing = threading.Lock()
        self.publish(model, published)
        self._warm()

    def _warm(self) -> None:
        """One query of each kind: kernels that are compiled now keep no client waiting later."""
        for offer, compute, index in zip(self.offers, self.computes, self.indexes, strict=True):
            layout = offer.layout
            secret = SecretKey(layout.parameters)
            elements = layout.galois_elements
            keys = compute.read_keys(secret.evaluation_keys(elements)) if elements else np.empty((0,), np.uint32)
            vector = np.zeros(layout.items if layout.kind == "history" else layout.dimensions)
            query = compute.read_query(secret.encrypt(layout.query_polynomials(vector)))
            for _ in compute.score(index, [query], [keys]):
                pass

    def publish(self, model: Model, published: Path) -> None:
        """Serves that model from now on."""
        self.model, self.folder = model, published
        digest = hashlib.sha256((published / "manifest.json").read_bytes()).digest()
        factors = model.item_factors.astype(np.float64)
        norm = float(np.linalg.norm(factors, axis=1).max())
        self.offers: list[Offer] = []
        self.computes: list[Any] = []
        self.indexes: list[Any] = []
        for kind, name, packing in self.kinds:
            if kind == "history":
                self._publish_history(model, digest)
                continue
            layout = layout_of(kind, name, ITEMS, DIMENSIONS, packing)
            compute = Compute(layout)
            size = layout.block_items
            blocks = [
                compute.encode(layout.item_polynomials(factors[start : start + size] / norm, number))
                for number, start in enumerate(range(0, ITEMS, size))
            ]
            self.offers.append(Offer(layout, norm, digest))
            self.computes.append(compute)
            self.indexes.append(np.stack(blocks))

    def _publish_history(self, model: Model, digest: bytes) -> None:
        made = tower.split(model.fold_in, model.norm_terms, model.item_factors, model.taste_centre)
        layout = made.layout
        rows = made.fold_in
        n = layout.parameters.degree
        folding = [
            encode_fold_in(layout, layout.fold_in_polynomials(rows[start : start + n], number))
            for number, start in enumerate(range(0, len(rows), n))
        ]
        compute = HistoryCompute(layout, np.stack(folding))
        blocks = [
            compute.encode(layout.item_polynomials(made.rows[start : start + n], number))
            for number, start in enumerate(range(0, len(made.rows), n))
        ]
        self.offers.append(Offer(layout, made.item_norm, digest))
        self.computes.append(compute)
        self.indexes.append(np.stack(blocks))

    def truth(self, vector: np.ndarray) -> np.ndarray:
        return self.model.item_factors.astype(np.float64) @ np.asarray(vector, np.float64)

    def GetParameters(self, request: Any, context: grpc.ServicerContext) -> messages.GetParametersResponse:
        self.parameters_asked += 1
        answer = messages.GetParametersResponse(
            offers=[exchange.offer_to_wire(offer) for offer in self.offers],
            manifest_digest=self.offers[0].manifest_digest,
        )
        if self.queries_left is not None:
            answer.queries_left = self.queries_left
        return self.spoil(answer) if self.spoil is not None else answer

    def GetModelCard(self, request: Any, context: grpc.ServicerContext) -> messages.GetModelCardResponse:
        return messages.GetModelCardResponse(card=model_pb2.ModelCard(name="trial-job", items=ITEMS))

    def GetClientModel(
        self, request: messages.GetClientModelRequest, context: grpc.ServicerContext
    ) -> Iterator[messages.GetClientModelResponse]:
        for piece in exchange.chunks((self.folder / request.file).read_bytes()):
            yield messages.GetClientModelResponse(payload=piece)

    def RegisterKeys(
        self, request_iterator: Iterator[messages.RegisterKeysRequest], context: grpc.ServicerContext
    ) -> messages.RegisterKeysResponse:
        pieces = list(request_iterator)
        keys = b"".join(piece.payload for piece in pieces)
        digest = exchange.key_digest(pieces[0].parameters_digest, keys)
        self.keys[digest] = keys
        self.registrations += 1
        return messages.RegisterKeysResponse(key_digest=digest)

    def Score(self, request: messages.ScoreRequest, context: grpc.ServicerContext) -> Iterator[messages.ScoreResponse]:
        digests = [offer.offer_digest for offer in self.offers]
        if request.offer_digest not in digests:
            raise StateError("got an offer that is not known, expected one of this server's")
        number = digests.index(request.offer_digest)
        offer, compute = self.offers[number], self.computes[number]
        seen = Seen(request.request_id, request.query, offer)
        self.seen.append(seen)
        time.sleep(self.delay_s)
        if self.faults:
            status, error = self.faults.pop(0)
            if error is not None:
                abort(context, error, status)
            context.abort(status, "not now")
        keys = np.empty((0,), np.uint32)
        if offer.layout.galois_elements:
            if request.key_digest not in self.keys:
                raise StateError("got keys that are not known, expected registered ones")
            keys = compute.read_keys(self.keys[request.key_digest])
        query = compute.read_query(request.query)
        # numba's parallel kernels must not run two at a time
        with self.computing:
            seen.results = [data for part in compute.score(self.indexes[number], [query], [keys]) for data in part[0]]
        for first, batch in exchange.batches(seen.results):
            answer = messages.ScoreResponse(
                results=batch,
                compute_us=7,
                manifest_digest=offer.manifest_digest,
                first_block=first,
                batch_queries=1,
            )
            yield from [answer] if self.spoil_score is None else self.spoil_score(answer)


def open_desk(desk: Desk, credentials: Credentials, token: str | None = None) -> RunningServer:
    """Listens on ports that the system chooses; for `token` too, when there is one."""

    def add(server: grpc.Server) -> None:
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(desk, server)

    def check(got: str) -> None:
        from veil.wire.admission import no_token

        desk.tokens.append(got)
        if got != token:
            raise no_token()

    service = Service(NAME, add, frozenset({Role.CLIENT}), bearer=check if token else None)
    return serve("127.0.0.1:0", credentials, [service], max_workers=16, token_address="127.0.0.1:0" if token else None)
