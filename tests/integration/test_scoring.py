"""Encrypted scoring end to end: a signed model, real mutual TLS, worker processes, good clients and bad ones."""

from __future__ import annotations

import json
import logging
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest

from he_inference import exchange
from he_inference.client import ScoringClient
from he_inference.config import Keys, Load, ScoringConfig
from he_inference.parameters import SESSION_4096, SESSION_8192
from he_inference.scheme import CkksSession
from he_inference.server import ScoringServer, start
from veil.errors import ArtifactError, CiphertextError, IdentityError, InputError, PeerError, PeerLost, StateError
from veil.identity import certificates
from veil.identity.authority import sign_request
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.identity.site import install, make_request
from veil.identity.trial import make_consortium
from veil.jobs.spec import Catalogue as CatalogueSpec
from veil.jobs.spec import JobSpec, Noise, Privacy, Release, SubspaceTrainer
from veil.recsys.artifact import build_files, build_manifest, save_model, sign_manifest
from veil.recsys.catalogue import Catalogue
from veil.recsys.items import ItemTable
from veil.recsys.model import Model, score_bound
from veil.wire.channel import open_channel
from veil.wire.status import from_rpc
from veil.wire.v1 import inference_pb2 as messages
from veil.wire.v1 import inference_pb2_grpc

pytestmark = pytest.mark.integration

ITEMS, DIMENSIONS = 5000, 19
ROOT = Path(__file__).resolve().parents[2]
SERVER = Identity("trial", Role.SCORING, "main")
ANNA, EVE = Identity("trial", Role.CLIENT, "main"), Identity("trial", Role.CLIENT, "eve")


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
    save_model(directory, files, manifest, signatures)
    return directory


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("scoring")
    members = make_consortium(folder / "certs", "trial", ["alpha", "beta"])
    authority, eve = folder / "certs" / "authority", folder / "certs" / "client-eve"
    request = make_request(eve, EVE).read_bytes()
    authority_pem = certificates.read_pem(authority / "authority.pem")
    install(eve, sign_request(authority, request, role=Role.CLIENT, name="eve"), authority_pem)
    members[EVE] = eve
    model = make_model(1)
    return Site(folder, members, model, publish(members, model, folder / "model", ("alpha", "beta")))


@pytest.fixture(scope="module")
def server(site: Site) -> Iterator[ScoringServer]:
    with start(site.config(site.folder)) as running:
        yield running


Connect = Callable[..., ScoringClient]


@pytest.fixture
def connect(site: Site, server: ScoringServer, tmp_path: Path) -> Iterator[Connect]:
    """Clients of the server, closed at the end."""
    opened: list[ScoringClient] = []

    def make(
        who: Identity = ANNA, address: str | None = None, keys: Path | None = None, **more: object
    ) -> ScoringClient:
        folder = keys or tmp_path / f"keys-{who.name}"
        client = ScoringClient(address or server.address, site.credentials(who), SERVER, folder, **more)  # type: ignore[arg-type]
        opened.append(client)
        return client

    yield make
    for client in opened:
        client.close()


@pytest.fixture
def stub(site: Site, server: ScoringServer) -> Iterator[inference_pb2_grpc.InferenceServiceStub]:
    """Plain gRPC under anna's certificate."""
    with open_channel(server.address, site.credentials(ANNA), SERVER) as channel:
        yield inference_pb2_grpc.InferenceServiceStub(channel)


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


def test_scores_are_those_of_the_model(site: Site, server: ScoringServer, connect: Connect) -> None:
    client = connect()
    for seed in range(3):
        history = np.random.default_rng(seed).choice(ITEMS, 20, replace=False)
        vector = site.model.user_vector(history)
        truth = site.model.scores(vector[None])[0]
        found = client.score(vector)
        assert found.dtype == np.float32 and found.shape == (ITEMS,)
        bound = client.terms.score_error * float(np.linalg.norm(vector))
        assert np.abs(found - truth).max() < bound
        assert set(np.argsort(-found)[:10]) == set(np.argsort(-truth)[:10])
    report = client.last_query
    assert report is not None and 0 < report.server_s < report.total_s
    assert report.query_bytes < 34_000 and client.key_bytes < 130_000
    assert report.response_bytes < server.terms.layout.blocks * 66_000


def test_recommendations_carry_ids_and_titles_and_skip_what_was_seen(site: Site, connect: Connect) -> None:
    client = connect()
    numbers = [5, 17, 4999]
    history = [str(1000 + number) for number in numbers]
    truth = site.model.scores(site.model.user_vector(numbers)[None])[0]
    best = [str(1000 + n) for n in np.argsort(-truth)]
    found = client.recommend(history, k=10)
    assert [one.item_id for one in found] == [item for item in best if item not in history][:10]
    assert all(one.title == f"Title {one.item_id}" for one in found)
    everything = client.recommend(history, k=ITEMS + 5, exclude_seen=False)
    assert len(everything) == ITEMS
    assert len(client.recommend(history, k=ITEMS)) == ITEMS - 3
    assert client.recommend([], k=1), "an empty history gets the model's general favourites"
    with pytest.raises(InputError, match=r"entries 2 of") as refused:
        client.recommend([history[0], "no-such-item"])
    assert "no-such-item" not in str(refused.value)
    assert client.recommend([history[0], "no-such-item"], skip_unknown=True)
    for wrong in ({"k": 0}, {"history": "1005"}):
        with pytest.raises(InputError):
            client.recommend(**{"history": history, **wrong})  # type: ignore[arg-type]


def test_vectors_that_do_not_fit_are_refused_before_they_leave(connect: Connect) -> None:
    client = connect()
    for vector in (np.zeros(3), np.full(DIMENSIONS, np.nan), np.zeros((2, DIMENSIONS))):
        with pytest.raises(InputError):
            client.score(vector)
    np.testing.assert_array_equal(client.score(np.zeros(DIMENSIONS)), 0.0)


def test_keys_and_model_are_kept_between_runs(server: ScoringServer, connect: Connect, tmp_path: Path) -> None:
    first = connect(keys=tmp_path / "kept", passphrase=b"word")
    first.recommend(["1001"])
    stored = {file: file.read_bytes() for file in (tmp_path / "kept").rglob("*") if file.is_file()}
    connect(keys=tmp_path / "kept", passphrase=b"word").recommend(["1001"])
    assert {file: file.read_bytes() for file in (tmp_path / "kept").rglob("*") if file.is_file()} == stored
    assert not any("item_factors" in file.name for file in stored)


def test_rotated_keys_are_registered_by_themselves(connect: Connect) -> None:
    client = connect()
    before = client.recommend(["1001"])
    client.rotate_keys()
    assert [one.item_id for one in client.recommend(["1001"])] == [one.item_id for one in before]


def test_the_card_says_what_the_model_cost(site: Site, connect: Connect) -> None:
    client = connect()
    card = client.card()
    assert (card.items, card.dimensions, list(card.signers)) == (ITEMS, DIMENSIONS, ["alpha", "beta"])
    assert card.epsilon_micro == client.model.manifest.epsilon_micro > 0
    assert card.manifest_digest == client.terms.manifest_digest


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


def test_a_server_that_has_lost_the_keys_is_sent_them_again(
    site: Site, server: ScoringServer, connect: Connect
) -> None:
    client = connect()
    first = client.recommend(["1001"], k=3)
    for file in (site.folder / "state" / "keys").rglob("*.keys"):
        file.unlink()
    assert [one.item_id for one in client.recommend(["1001"], k=3)] == [one.item_id for one in first]


@pytest.mark.parametrize("who", [Identity("trial", Role.PARTY, "alpha"), Identity("trial", Role.OPERATOR, "main")])
def test_other_roles_are_refused(connect: Connect, who: Identity) -> None:
    with pytest.raises(IdentityError, match="expected role client"):
        connect(who).recommend(["1001"])


def test_a_server_that_is_somebody_else_is_not_asked(site: Site, server: ScoringServer, tmp_path: Path) -> None:
    wanted = Identity("trial", Role.SCORING, "other")
    client = ScoringClient(server.address, site.credentials(ANNA), wanted, tmp_path / "keys")
    with client, pytest.raises(IdentityError, match="other"):
        client.recommend(["1001"])


def test_a_worker_that_dies_fails_one_request_and_no_more(server: ScoringServer, connect: Connect) -> None:
    client = connect()
    client.recommend(["1001"])
    (pid,) = server.pool.pids
    os.kill(pid, signal.SIGSTOP)
    killer = threading.Timer(0.3, os.kill, (pid, signal.SIGKILL))
    killer.start()
    with pytest.raises(PeerLost, match="replaced"):
        client.score(np.ones(DIMENSIONS))
    killer.join()
    assert client.recommend(["1001"])


def test_too_many_queries_of_one_client_are_told_to_wait(site: Site, tmp_path: Path) -> None:
    config = site.config(tmp_path, load=Load(queue=4, per_client=2, timeout_s=20.0))
    with start(config) as server, own_client(site, server, tmp_path) as client:
        client.score(np.ones(DIMENSIONS))
        (pid,) = server.pool.pids
        os.kill(pid, signal.SIGSTOP)
        threads = [threading.Thread(target=client.score, args=(np.ones(DIMENSIONS),)) for _ in range(2)]
        for thread in threads:
            thread.start()
        limit = time.monotonic() + 10
        while server.pool._waiting < 1:
            assert time.monotonic() < limit
            time.sleep(0.01)
        with pytest.raises(PeerError, match="more than 2 queries"):
            client.score(np.ones(DIMENSIONS))
        os.kill(pid, signal.SIGCONT)
        for thread in threads:
            thread.join(30)
        assert client.score(np.ones(DIMENSIONS)).shape == (ITEMS,)


def test_a_client_follows_a_server_whose_model_changes(site: Site, tmp_path: Path) -> None:
    """Also: evaluation keys survive the restart, as the layout is the same."""
    other = make_model(2)
    folder = publish(site.members, other, tmp_path / "model-2", ("alpha", "beta"))
    with start(site.config(tmp_path)) as first:
        port = first.running.port
        client = ScoringClient(first.address, site.credentials(ANNA), SERVER, tmp_path / "keys")
        with client:
            client.recommend(["1001"])
            first.stop(0.0)
            with start(site.config(tmp_path, listen=f"127.0.0.1:{port}", model=folder)):
                with pytest.raises(StateError, match="another model"):
                    client.score(np.ones(DIMENSIONS))
                found = client.recommend(["1001"], k=1)
                truth = other.scores(other.user_vector([1])[None])[0]
                truth[1] = -np.inf
                assert found[0].item_id == str(1000 + int(np.argmax(truth)))


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


def test_logs_hold_no_ciphertext_and_nothing_of_a_user(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="veil"):
        client = connect(EVE)
        client.recommend(["1007"], k=2)
    text = caplog.text
    assert "registered evaluation keys" in text
    assert "1007" not in text and "Title" not in text and re.search(r"[0-9a-f]{64}", text) is None


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def test_the_two_commands(site: Site, tmp_path: Path) -> None:
    """`veil serve` and `veil recommend` as a user types them, in processes of their own."""
    veil = [sys.executable, "-c", "from cli.main import main; main()"]
    config = tmp_path / "scoring.toml"
    config.write_text(
        f'listen = "127.0.0.1:0"\ncredentials = "{site.members[SERVER]}"\nmodel = "{site.published}"\n'
        'require_signers = ["alpha", "beta"]\nstate = "state"\nparameters = "session-4096"\n'
    )
    serving = subprocess.Popen(
        [*veil, "serve", "--config", str(config)], stderr=subprocess.PIPE, text=True, env=environment()
    )
    try:
        assert serving.stderr is not None
        line = serving.stderr.readline()
        address = re.search(r"at (127\.0\.0\.1:\d+)", line)
        assert address is not None, line + serving.stderr.read()
        arguments = ["recommend", "--server", address[1], "--credentials", str(site.members[ANNA]), "-k", "3"]
        arguments += ["--keys", str(tmp_path / "keys"), "--history"]
        asked = subprocess.run(
            [*veil, *arguments, "-", "--json"],
            input="1005\n1017\n",
            capture_output=True,
            text=True,
            env=environment(),
            check=False,
        )
        assert asked.returncode == 0, asked.stderr
        truth = site.model.scores(site.model.user_vector([5, 17])[None])[0]
        truth[[5, 17]] = -np.inf
        assert [one["item_id"] for one in json.loads(asked.stdout)] == [str(1000 + n) for n in np.argsort(-truth)[:3]]
        wrong = subprocess.run(
            [*veil, *arguments, "-"], input="nothing\n", capture_output=True, text=True, env=environment(), check=False
        )
        assert wrong.returncode == 1 and "catalogue does not have" in wrong.stderr and "Traceback" not in wrong.stderr
    finally:
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(30) == 0
        assert serving.stderr is not None
        serving.stderr.close()


def test_the_examples_run_as_written(
    site: Site, server: ScoringServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = runpy.run_path(str(ROOT / "examples" / "score_plain_grpc.py"))
    plain["main"](server.address, str(site.members[ANNA]))
    assert "bytes of keys once" in capsys.readouterr().out
    application = runpy.run_path(str(ROOT / "examples" / "score_from_app.py"))
    application["main"](server.address, str(site.members[ANNA]), str(tmp_path / "keys"), "1001", "1002")
    assert "epsilon" in capsys.readouterr().out


def test_keys_settings_reach_the_cache(site: Site, tmp_path: Path) -> None:
    config = site.config(tmp_path, keys=Keys(max_per_client=1))
    with start(config) as server, own_client(site, server, tmp_path) as client:
        for _ in range(3):
            client.score(np.ones(DIMENSIONS))
            client.rotate_keys()
    assert len(list((tmp_path / "state" / "keys").rglob("*.keys"))) == 1
