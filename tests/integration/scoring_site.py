"""A consortium with a published model, for tests of encrypted scoring with real servers."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from he_inference import exchange
from he_inference.client import ScoringClient
from he_inference.config import Load, ScoringConfig
from he_inference.parameters import SESSION_4096
from he_inference.server import ScoringServer
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
            "parameters": SESSION_4096.name,
            "load": Load(timeout_s=20.0),
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


def register(stub: inference_pb2_grpc.InferenceServiceStub, server: ScoringServer, keys: bytes) -> bytes:
    pieces = [
        messages.RegisterKeysRequest(parameters_digest=server.terms.parameters_digest if n == 0 else b"", payload=piece)
        for n, piece in enumerate(exchange.chunks(keys))
    ]
    return bytes(stub.RegisterKeys(iter(pieces), timeout=30).key_digest)


def ask(stub: inference_pb2_grpc.InferenceServiceStub, digest: bytes, query: bytes) -> list[bytes]:
    request = messages.ScoreRequest(key_digest=digest, query=query)
    return [data for part in stub.Score(request, timeout=30) for data in part.ciphertexts]
