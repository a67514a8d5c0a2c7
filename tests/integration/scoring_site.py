"""A consortium with a published model, for tests of encrypted scoring with real servers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from he_inference import exchange
from he_inference.client import ScoringClient
from he_inference.exchange import Offer
from he_inference.scheme import SecretKey
from he_inference.service.budget import BudgetSettings
from he_inference.service.config import Load, Reload, ScoringConfig
from he_inference.service.limits import LimitSettings
from he_inference.service.server import ScoringServer
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
from veil.wire.v1 import inference_pb2 as messages
from veil.wire.v1 import inference_pb2_grpc

ITEMS, DIMENSIONS = 5000, 19
SERVER = Identity("trial", Role.SCORING, "main")
ANNA, EVE = Identity("trial", Role.CLIENT, "main"), Identity("trial", Role.CLIENT, "eve")
Connect = Callable[..., ScoringClient]


@dataclass
class Site:
    """A consortium with a published model."""

    folder: Path
    members: dict[Identity, Path]
    model: Model
    published: Path

    def credentials(self, who: Identity) -> Credentials:
        return Credentials.load(self.members[who])

    def config(self, folder: Path, **changes: object) -> ScoringConfig:
        values: dict[str, object] = {
            "listen": "127.0.0.1:0",
            "credentials": self.members[SERVER],
            "model": self.published,
            "require_signers": ("alpha", "beta"),
            "state": folder / "state",
            "offers": ("fast",),
            "load": Load(timeout_s=20.0),
            "reload": Reload(every_s=0),
            "budget": BudgetSettings(enabled=False),
            "limits": LimitSettings(
                per_client_rate_s=1e5,
                per_client_burst=100_000,
                lookup_rate_s=1e5,
                lookup_burst=100_000,
                stream_rate_s=1e5,
                stream_burst=100_000,
            ),
        }
        return ScoringConfig.model_validate({**values, **changes})


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


def publish(members: dict[Identity, Path], model: Model, directory: Path, signers: tuple[str, ...]) -> Path:
    ids = tuple(str(1000 + number) for number in range(ITEMS))
    table = ItemTable(ids, tuple(f"Title {item}" for item in ids), tuple(("genre",) for _ in ids))
    catalogue = Catalogue(table, np.zeros((ITEMS, 2), np.float32))
    spec = JobSpec(
        name="trial-job",
        nonce="0" * 32,
        consortium="trial",
        parties=("alpha", "beta"),
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
    for name in signers:
        own = Credentials.load(members[Identity("trial", Role.PARTY, name)])
        signatures.append(sign_manifest(manifest, name, own.certificate_pem, own.sign))
    save_directory(directory, files, manifest, signatures)
    return directory


def own_client(site: Site, server: ScoringServer, folder: Path) -> ScoringClient:
    return ScoringClient(server.address, site.credentials(ANNA), SERVER, folder / "keys")


class Raw:
    """A client by generated stubs and the encryption layer alone, so that every call and status is seen."""

    def __init__(self, channel: grpc.Channel, model: Model, *, offer: int = 0) -> None:
        self.stub = inference_pb2_grpc.InferenceServiceStub(channel)
        self.model = model
        self.refresh(offer)
        self.secret = SecretKey(self.offer.layout.parameters)
        self.keys = self.secret.evaluation_keys(self.offer.layout.galois_elements)
        self.digest = b""
        self.register()

    def refresh(self, offer: int = 0) -> None:
        """Asks for the offers and takes one of them."""
        message = self.stub.GetParameters(messages.GetParametersRequest(), timeout=30)
        self.offer = exchange.offers_from_wire(message, "server")[offer]

    def register(self) -> None:
        """Sends the evaluation keys, where the offer wants them."""
        if self.offer.layout.galois_elements:
            self.digest = register(self.stub, self.offer, self.keys)

    def query(self, vector: NDArray[np.float64]) -> bytes:
        return self.secret.encrypt(self.offer.layout.query_polynomials(vector))

    def ask(self, query: bytes, **more: Any) -> list[bytes]:
        return ask(self.stub, self.offer, self.digest, query, **more)

    def check(self, results: list[bytes], vector: NDArray[np.float64]) -> None:
        """Results are the model's scores of that vector."""
        layout = self.offer.layout
        found = layout.scores(*self.secret.decrypt(results, layout.coefficient_places())) * self.offer.item_norm
        truth = self.model.item_factors.astype(np.float64) @ vector
        assert np.abs(found - truth).max() < self.offer.score_error

    def right(self, seed: int = 0, **more: Any) -> None:
        """One query, answered rightly."""
        vector = unit_vector(seed)
        self.check(self.ask(self.query(vector), **more), vector)


def unit_vector(seed: int) -> NDArray[np.float64]:
    vector = np.random.default_rng(seed).normal(size=DIMENSIONS)
    return vector / np.linalg.norm(vector)


def register(stub: inference_pb2_grpc.InferenceServiceStub, offer: Offer, keys: bytes) -> bytes:
    pieces = [
        messages.RegisterKeysRequest(parameters_digest=offer.parameters_digest if n == 0 else b"", payload=piece)
        for n, piece in enumerate(exchange.chunks(keys))
    ]
    return bytes(stub.RegisterKeys(iter(pieces), timeout=30).key_digest)


def ask(
    stub: inference_pb2_grpc.InferenceServiceStub,
    offer: Offer,
    digest: bytes,
    query: bytes,
    *,
    request_id: bytes | None = None,
    timeout_s: float = 30,
) -> list[bytes]:
    request = messages.ScoreRequest(
        key_digest=digest,
        query=query,
        offer_digest=offer.offer_digest,
        request_id=os.urandom(16) if request_id is None else request_id,
    )
    return [data for part in stub.Score(request, timeout=timeout_s) for data in part.results]
