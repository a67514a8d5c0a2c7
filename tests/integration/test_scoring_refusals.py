"""Encrypted scoring with bad clients, servers and models: each is refused, and the server lives."""

from __future__ import annotations

from pathlib import Path

import grpc
import numpy as np
import pytest

from he_inference.client import ScoringClient
from he_inference.parameters import SESSION_4096, SESSION_8192
from he_inference.scheme import CkksSession
from he_inference.server import ScoringServer, start
from tests.integration.scoring_site import ANNA, EVE, SERVER, Connect, Site, ask, publish, register
from veil.errors import ArtifactError, CiphertextError, IdentityError, InputError, StateError
from veil.identity.names import Identity, Role
from veil.wire.channel import open_channel
from veil.wire.status import from_rpc
from veil.wire.v1 import inference_pb2 as messages
from veil.wire.v1 import inference_pb2_grpc

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    "name", ["item_factors.safetensors", "job.json", "../model/manifest.json", "", "/etc/hostname"]
)
def test_only_the_clients_files_are_handed_out(stub: inference_pb2_grpc.InferenceServiceStub, name: str) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        list(stub.GetClientModel(messages.GetClientModelRequest(file=name), timeout=30))
    assert isinstance(from_rpc(refused.value, "server"), StateError)


def garbage(kind: str, good: bytes) -> bytes:
    generator = np.random.default_rng(3)
    flipped = bytearray(good)
    flipped[len(flipped) // 2] ^= 0x40
    flipped[40] ^= 0xFF
    return {
        "empty": b"",
        "random": generator.bytes(30_000),
        "header only": good[:16],
        "truncated": good[: len(good) // 2],
        "flipped": bytes(flipped),
        "oversize": good + b"\0" * 1_000_000,
        "declares 2^62 bytes": good[:8] + (1 << 62).to_bytes(8, "little") + good[16:],
        "other parameters": CkksSession(SESSION_8192).encrypt(np.zeros(SESSION_8192.slots)),
    }[kind]


KINDS = [
    "empty",
    "random",
    "header only",
    "truncated",
    "flipped",
    "oversize",
    "declares 2^62 bytes",
    "other parameters",
]


@pytest.mark.parametrize("kind", KINDS)
def test_garbage_is_an_invalid_argument_and_the_server_lives(
    stub: inference_pb2_grpc.InferenceServiceStub, server: ScoringServer, connect: Connect, kind: str
) -> None:
    session = CkksSession(SESSION_4096)
    keys = session.evaluation_keys(server.terms.layout.galois_elements)
    digest = register(stub, server, keys)
    query = session.encrypt(np.zeros(SESSION_4096.slots))
    for call in (
        lambda: ask(stub, digest, garbage(kind, query)),
        lambda: register(stub, server, garbage(kind, keys)),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            call()
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
        error = from_rpc(refused.value, "server")
        assert isinstance(error, InputError) and "got" in str(error)
    assert len(ask(stub, digest, query)) == server.terms.layout.blocks
    assert connect().recommend(["1001"], k=1)


def test_keys_for_another_layout_are_refused_by_their_digest(
    stub: inference_pb2_grpc.InferenceServiceStub, server: ScoringServer
) -> None:
    keys = CkksSession(SESSION_4096).evaluation_keys(server.terms.layout.galois_elements)
    request = messages.RegisterKeysRequest(parameters_digest=b"x" * 32, payload=keys)
    with pytest.raises(grpc.RpcError) as refused:
        stub.RegisterKeys(iter([request]), timeout=30)
    assert isinstance(from_rpc(refused.value, "server"), CiphertextError)
    with pytest.raises(grpc.RpcError) as refused:
        stub.RegisterKeys(iter([]), timeout=30)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]


def test_another_clients_keys_cannot_be_used(
    site: Site, server: ScoringServer, stub: inference_pb2_grpc.InferenceServiceStub
) -> None:
    session = CkksSession(SESSION_4096)
    digest = register(stub, server, session.evaluation_keys(server.terms.layout.galois_elements))
    query = session.encrypt(np.zeros(SESSION_4096.slots))
    assert ask(stub, digest, query), "anna may"
    with (
        open_channel(server.address, site.credentials(EVE), SERVER) as channel,
        pytest.raises(grpc.RpcError) as refused,
    ):
        ask(inference_pb2_grpc.InferenceServiceStub(channel), digest, query)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION  # type: ignore[attr-defined]
    assert "register" in str(from_rpc(refused.value, "server"))


@pytest.mark.parametrize("who", [Identity("trial", Role.PARTY, "alpha"), Identity("trial", Role.OPERATOR, "main")])
def test_other_roles_are_refused(connect: Connect, who: Identity) -> None:
    with pytest.raises(IdentityError, match="expected role client"):
        connect(who).recommend(["1001"])


def test_a_server_that_is_somebody_else_is_not_asked(site: Site, server: ScoringServer, tmp_path: Path) -> None:
    wanted = Identity("trial", Role.SCORING, "other")
    client = ScoringClient(server.address, site.credentials(ANNA), wanted, tmp_path / "keys")
    with client, pytest.raises(IdentityError, match="other"):
        client.recommend(["1001"])


def test_a_model_that_is_not_fully_signed_is_not_served(site: Site, tmp_path: Path) -> None:
    folder = publish(site.members, site.model, tmp_path / "unsigned", ("alpha",))
    with pytest.raises(ArtifactError, match="beta"):
        start(site.config(tmp_path, model=folder))
    with pytest.raises(ArtifactError, match="gamma"):
        start(site.config(tmp_path, require_signers=("alpha", "gamma")))
    with pytest.raises(IdentityError, match="role scoring"):
        start(site.config(tmp_path, credentials=site.members[ANNA]))


def test_a_client_believes_only_what_the_parties_signed(
    site: Site, server: ScoringServer, connect: Connect, tmp_path: Path
) -> None:
    gamma = Identity("trial", Role.PARTY, "gamma")
    with pytest.raises(ArtifactError, match="gamma"):
        connect(require_signers=[gamma]).recommend(["1001"])
    assert not [path for path in (tmp_path / "keys-main" / "models").iterdir()], "nothing is kept of it"
    client = connect()
    client.recommend(["1001"])
    (cached,) = (tmp_path / "keys-main" / "models").iterdir()
    (cached / "items.jsonl").write_bytes(b"{}\n")
    assert connect().recommend(["1001"]), "a damaged cache is fetched anew"
