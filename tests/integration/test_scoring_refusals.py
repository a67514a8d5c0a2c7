"""Encrypted scoring with bad clients, servers and models: each is refused, and the server lives."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from he_inference import exchange, messages
from he_inference.client import ScoringClient
from he_inference.parameters import PQ
from he_inference.scheme import SecretKey
from he_inference.service.config import Load
from he_inference.service.server import ScoringServer, start
from tests.integration.scoring_site import ANNA, EVE, SERVER, Connect, Raw, Site, publish, register, unit_vector
from veil.errors import ArtifactError, CiphertextError, IdentityError, InputError, StateError, WireError
from veil.identity.names import Identity, Role
from veil.wire.channel import open_channel
from veil.wire.status import from_rpc, translated
from veil.wire.v1 import inference_pb2, inference_pb2_grpc

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def server(site: Site) -> Iterator[ScoringServer]:
    with start(site.config(site.folder, offers=("fast", "keyless"), load=Load(threads=1))) as running:
        yield running


@pytest.fixture
def channel(site: Site, server: ScoringServer) -> Iterator[grpc.Channel]:
    with open_channel(server.address, site.credentials(ANNA), SERVER) as opened:
        yield opened


@pytest.fixture
def raw(site: Site, channel: grpc.Channel) -> Raw:
    return Raw(channel, site.model)


@pytest.mark.parametrize(
    "name", ["item_factors.safetensors", "job.json", "../model/manifest.json", "", "/etc/hostname"]
)
def test_only_the_clients_files_are_handed_out(raw: Raw, name: str) -> None:
    with pytest.raises(StateError), translated("server"):
        list(raw.stub.GetClientModel(inference_pb2.GetClientModelRequest(file=name), timeout=30))


def beyond_the_modulus(good: bytes, parameters_bits: int) -> bytes:
    """All ones in the place of one residue, whatever lies around it."""
    forged = bytearray(good)
    forged[-parameters_bits // 8 - 1 :] = b"\xff" * (parameters_bits // 8 + 1)
    return bytes(forged)


def garbage(kind: str, good: bytes) -> bytes:
    return {
        "empty": b"",
        "the seed alone": good[:32],
        "truncated by a byte": good[:-1],
        "a byte too many": good + b"\0",
        "as large as a message may be": good + bytes(3_000_000),
        "residues beyond the modulus": b"\xff" * len(good),
        "one residue beyond the modulus": beyond_the_modulus(good, 28),
        "other parameters": SecretKey(PQ).encrypt(np.zeros((1, PQ.degree), np.int64)),
    }[kind]


KINDS = (
    "empty",
    "the seed alone",
    "truncated by a byte",
    "a byte too many",
    "as large as a message may be",
    "residues beyond the modulus",
    "one residue beyond the modulus",
    "other parameters",
)


@pytest.mark.parametrize("offer", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_garbage_is_an_invalid_argument_and_the_server_lives(
    site: Site, server: ScoringServer, channel: grpc.Channel, kind: str, offer: int
) -> None:
    client = Raw(channel, site.model, offer=offer)
    before = server.pool.pids
    calls = [lambda: client.ask(garbage(kind, client.query(unit_vector(1))))]
    if client.keys and offer == 0:
        calls.append(lambda: register(client.stub, client.offer, garbage(kind, client.keys)))
    for call in calls:
        with pytest.raises(grpc.RpcError) as refused:
            call()
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
        error = from_rpc(refused.value, "server")
        assert isinstance(error, CiphertextError | WireError) and "got" in str(error)
    client.right()
    assert server.pool.pids == before


def test_residues_of_any_kind_get_an_answer_like_any_other(raw: Raw) -> None:
    """Whoever makes up residues gets scores of nothing, of the same shape: there is nothing else that can happen."""
    parameters = raw.offer.layout.parameters
    generator = np.random.default_rng(3)
    primes = np.array(parameters.data_primes)[:, None]
    for words in (
        np.zeros((1, len(primes), parameters.degree)),
        np.broadcast_to(primes - 1, (1, len(primes), parameters.degree)),
        generator.random((1, len(primes), parameters.degree)) * primes,
    ):
        made_up = messages.write_query(parameters, bytes(32), words.astype(np.uint32))
        assert [len(data) for data in raw.ask(made_up)] == [
            messages.result_bytes(parameters, raw.offer.layout.used_coefficients)
        ] * raw.offer.layout.blocks
    raw.right()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"offer_digest": b"x" * 32}, StateError),
        ({"offer_digest": b""}, WireError),
        ({"offer_digest": b"x" * 33}, WireError),
        ({"key_digest": b"x" * 32}, StateError),
        ({"key_digest": b""}, WireError),
        ({"key_digest": b"../" * 11}, WireError),
        ({"request_id": b""}, WireError),
        ({"request_id": b"x" * 17}, WireError),
    ],
)
def test_other_fields_that_are_wrong_are_refused(raw: Raw, change: dict[str, bytes], expected: type[Exception]) -> None:
    fields = {
        "key_digest": raw.digest,
        "offer_digest": raw.offer.offer_digest,
        "request_id": os.urandom(16),
        "query": raw.query(unit_vector(1)),
    }
    with pytest.raises(expected), translated("server"):
        list(raw.stub.Score(inference_pb2.ScoreRequest(**{**fields, **change}), timeout=30))
    raw.right()


def test_a_keyless_query_names_no_keys(site: Site, channel: grpc.Channel) -> None:
    client = Raw(channel, site.model, offer=1)
    client.digest = b"x" * 32
    with pytest.raises(WireError, match="expected none"), translated("server"):
        client.right()


def test_keys_for_another_layout_are_refused_by_their_digest(raw: Raw) -> None:
    request = inference_pb2.RegisterKeysRequest(parameters_digest=b"x" * 32, payload=raw.keys)
    with pytest.raises(CiphertextError, match="other parameters"), translated("server"):
        raw.stub.RegisterKeys(iter([request]), timeout=30)
    for pieces in (
        [],
        [inference_pb2.RegisterKeysRequest(parameters_digest=raw.offer.parameters_digest, payload=raw.keys[:-1])],
        [
            inference_pb2.RegisterKeysRequest(parameters_digest=raw.offer.parameters_digest, payload=piece)
            for piece in (raw.keys, b"")
        ],
        [
            inference_pb2.RegisterKeysRequest(parameters_digest=raw.offer.parameters_digest, payload=raw.keys)
            for _ in range(3)
        ],
    ):
        with pytest.raises(InputError), translated("server"):
            raw.stub.RegisterKeys(iter(pieces), timeout=30)


def test_another_clients_keys_cannot_be_used(site: Site, server: ScoringServer, raw: Raw) -> None:
    query = raw.query(unit_vector(1))
    raw.check(raw.ask(query), unit_vector(1))
    with open_channel(server.address, site.credentials(EVE), SERVER) as channel:
        eve = inference_pb2_grpc.InferenceServiceStub(channel)
        raw.stub = eve
        with pytest.raises(StateError, match="register"), translated("server"):
            raw.ask(query)


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
    assert not list((tmp_path / "keys-main").rglob("items.jsonl")), "nothing is kept of it"
    client = connect()
    client.recommend(["1001"])
    (cached,) = (tmp_path / "keys-main" / "models").iterdir()
    (cached / "items.jsonl").write_bytes(b"{}\n")
    assert connect().recommend(["1001"]), "a damaged cache is fetched anew"


def test_offers_that_reach_a_client_are_those_of_the_layouts(raw: Raw) -> None:
    message = raw.stub.GetParameters(inference_pb2.GetParametersRequest(), timeout=30)
    assert [offer.layout.kind for offer in exchange.offers_from_wire(message, "server")] == ["session", "keyless"]
    assert not message.HasField("queries_left"), "this server counts no queries"
