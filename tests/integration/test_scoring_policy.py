"""Tokens, budgets, limits, audiences, metrics and the canary at a real scoring server."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest

from he_inference import canary, exchange
from he_inference.exchange import Offer
from he_inference.index.build import build, scale_items
from he_inference.index.store import Index
from he_inference.scheme import SecretKey
from he_inference.service import tokens
from he_inference.service.access import AccessSettings
from he_inference.service.audience import Audience
from he_inference.service.budget import BudgetSettings
from he_inference.service.canary_process import CanaryProcess
from he_inference.service.config import ScoringConfig
from he_inference.service.journal import Journal
from he_inference.service.limits import LimitSettings
from he_inference.service.metrics import CanaryMetrics, MetricsSettings
from he_inference.service.server import ScoringServer, start
from tests.integration.scoring_site import ANNA, DIMENSIONS, EVE, ITEMS, SERVER, Site, make_model, publish, register
from veil.errors import IdentityError, LimitError, PolicyError, QueryBudgetError, StateError
from veil.identity.names import Identity, Role
from veil.wire.channel import open_channel, open_token_channel
from veil.wire.status import translated
from veil.wire.v1 import inference_pb2 as messages
from veil.wire.v1 import inference_pb2_grpc

pytestmark = pytest.mark.integration
SIGNERS = [Identity("trial", Role.PARTY, "alpha"), Identity("trial", Role.PARTY, "beta")]
FAST = {"parameters": "fast", "layout": "session"}
KEYLESS = {"parameters": "keyless-small", "layout": "keyless"}
Stub = inference_pb2_grpc.InferenceServiceStub


class Asking:
    """A client in few lines, so that every call and status is seen."""

    def __init__(self, channel: grpc.Channel) -> None:
        self.stub = Stub(channel)
        answer = self.parameters()
        self.offer: Offer = exchange.offers_from_wire(answer, "server")[0]
        self.secret = SecretKey(self.offer.layout.parameters)
        keys = self.secret.evaluation_keys(self.offer.layout.galois_elements)
        self.digest = self.register(keys)

    def register(self, keys: bytes) -> bytes:
        with translated("server"):
            return register(self.stub, self.offer, keys)

    def parameters(self) -> messages.GetParametersResponse:
        with translated("server"):
            return self.stub.GetParameters(messages.GetParametersRequest(), timeout=30)

    def query(self) -> bytes:
        vector = np.random.default_rng(1).normal(size=DIMENSIONS)
        return self.secret.encrypt(self.offer.layout.query_polynomials(vector / np.linalg.norm(vector)))

    def ask(self, query: bytes | None = None, request_id: bytes | None = None) -> int:
        """How many results came."""
        request = messages.ScoreRequest(
            key_digest=self.digest,
            query=query or self.query(),
            offer_digest=self.offer.offer_digest,
            request_id=request_id or secrets.token_bytes(16),
        )
        with translated("server"):
            return sum(len(part.results) for part in self.stub.Score(request, timeout=60))


@contextmanager
def by_token(site: Site, server: ScoringServer, token: str) -> Iterator[Asking]:
    assert server.token_address is not None
    authority = site.credentials(ANNA).authority_pem
    with open_token_channel(server.token_address, authority, token, SERVER) as channel, translated("server"):
        yield Asking(channel)


@contextmanager
def by_certificate(site: Site, server: ScoringServer, who: Identity = ANNA) -> Iterator[Asking]:
    with open_channel(server.address, site.credentials(who), SERVER) as channel, translated("server"):
        yield Asking(channel)


def test_a_token_client_asks_within_its_budget_until_it_is_revoked(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    token, _ = tokens.add(file, "main", 30)
    config = site.config(
        tmp_path,
        access=AccessSettings(token_listen="127.0.0.1:0", tokens=file),
        budget=BudgetSettings(queries_per_dimension=0.25, window_days=0),
    )
    limit = int(0.25 * DIMENSIONS)
    with start(config) as server:
        with by_token(site, server, token) as app:
            assert app.parameters().queries_left == limit
            query, request_id = app.query(), secrets.token_bytes(16)
            blocks = app.offer.layout.blocks
            # the same request three times: answered each time, counted once
            assert [app.ask(query, request_id) for _ in range(3)] == [blocks] * 3
            assert app.parameters().queries_left == limit - 1
            for _ in range(limit - 1):
                assert app.ask() == blocks
            with pytest.raises(QueryBudgetError, match="does not renew") as caught:
                app.ask()
            assert caught.value.retry_after_s is None
            # one id for another query buys nothing
            with pytest.raises(QueryBudgetError):
                app.ask(app.query(), request_id)
            assert app.ask(query, request_id) == blocks
            # the client of that name with a certificate is another one
            with by_certificate(site, server) as anna:
                assert anna.parameters().queries_left == limit
                assert anna.ask() == blocks
        metrics = server.policy.metrics.registry
        assert metrics.get_sample_value("veil_scoring_queries_total", {"code": "QUERY_BUDGET"}) == 2
    # what was spent stays spent
    with start(config) as server:
        with by_token(site, server, token) as app:
            assert app.parameters().queries_left == 0
            with pytest.raises(QueryBudgetError):
                app.ask()
            tokens.revoke(file, "main")
            with pytest.raises(IdentityError, match="no valid token"):
                app.ask()
        with pytest.raises(IdentityError, match="no valid token"), by_token(site, server, token):
            pass


def test_queries_faster_than_the_rate_are_refused_with_the_time_to_wait(site: Site, tmp_path: Path) -> None:
    config = site.config(tmp_path, limits=LimitSettings(per_client_rate_s=0.01, per_client_burst=2))
    with start(config) as server, by_certificate(site, server) as anna, by_certificate(site, server, EVE) as eve:
        assert [anna.ask() > 0, anna.ask() > 0]
        with pytest.raises(LimitError, match="queries a second of one client") as caught:
            anna.ask()
        assert caught.value.retry_after_s is not None and 50 < caught.value.retry_after_s <= 100
        assert eve.ask() > 0
        metrics = server.policy.metrics.registry
        assert metrics.get_sample_value("veil_scoring_queries_total", {"code": "LIMIT"}) == 1
        assert metrics.get_sample_value("veil_scoring_queries_total", {"code": "OK"}) == 3


def test_look_ups_and_streams_faster_than_the_rate_are_refused_and_queries_go_on(site: Site, tmp_path: Path) -> None:
    limits = LimitSettings(lookup_rate_s=0.01, lookup_burst=4, stream_rate_s=0.01, stream_burst=3)
    config = site.config(tmp_path, limits=limits)
    with start(config) as server, by_certificate(site, server) as anna, by_certificate(site, server, EVE) as eve:

        def card(asking: Asking) -> str:
            with translated("server"):
                return asking.stub.GetModelCard(messages.GetModelCardRequest(), timeout=30).card.name

        # one was for the offers; both calls take from one bucket
        assert card(anna) == "trial-job" and anna.parameters().offers and card(anna)
        for refused in (lambda: card(anna), anna.parameters):
            with pytest.raises(LimitError, match="look-ups a second of one client") as caught:
                refused()
            assert caught.value.retry_after_s is not None and 50 < caught.value.retry_after_s <= 100

        def file(asking: Asking) -> int:
            request = messages.GetClientModelRequest(file="manifest.json")
            with translated("server"):
                return sum(len(part.payload) for part in asking.stub.GetClientModel(request, timeout=30))

        # one was for the keys; both calls take from one bucket
        assert file(anna) == file(anna) > 0
        for refused in (lambda: file(anna), lambda: len(anna.register(b""))):
            with pytest.raises(LimitError, match="streams of keys or files a second of one client") as caught:
                refused()
            assert caught.value.retry_after_s is not None and 50 < caught.value.retry_after_s <= 100
        assert file(eve) > 0
        with pytest.raises(grpc.RpcError) as status:
            anna.stub.GetModelCard(messages.GetModelCardRequest(), timeout=30)
        assert status.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert anna.ask() > 0 and eve.parameters().offers and card(eve)
        value = server.policy.metrics.registry.get_sample_value
        assert value("veil_scoring_lookups_total", {"code": "LIMIT"}) == 3
        assert value("veil_scoring_lookups_total", {"code": "OK"}) == 7
        assert value("veil_scoring_queries_total", {"code": "LIMIT"}) == 0


def test_metrics_over_http(site: Site, tmp_path: Path) -> None:
    config = site.config(tmp_path, metrics=MetricsSettings(listen="127.0.0.1:0"))
    with start(config) as server, by_certificate(site, server) as anna:
        anna.ask()
        with urllib.request.urlopen(f"http://{server.metrics_address}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    assert 'veil_scoring_queries_total{code="OK"} 1.0' in text
    assert 'veil_scoring_stage_seconds_count{stage="compute"} 1.0' in text
    assert "main" not in text and "client" not in text.replace("clients", "")


# --- the canary


def canary_site(site: Site, folder: Path, **changes: object) -> tuple[ScoringConfig, Path]:
    """A configuration with a canary, as an object and as a file."""
    credentials = {name: str(site.members[who]) for name, who in (("server", SERVER), ("canary", ANNA))}
    config = site.config(
        folder,
        offers=("fast", "keyless-small"),
        budget=BudgetSettings(queries_per_dimension=0.1, exempt=("certificate/main",)),
        **changes,
    )
    file = folder / "scoring.toml"
    file.write_text(
        f'listen = "127.0.0.1:0"\ncredentials = "{credentials["server"]}"\nmodel = "{config.model}"\n'
        f'require_signers = ["alpha", "beta"]\nstate = "{config.state}"\noffers = ["fast", "keyless-small"]\n'
        f'[canary]\ncredentials = "{credentials["canary"]}"\nevery_s = 0.1\nmetrics.listen = "127.0.0.1:0"\n'
    )
    return config, file


def one_round(site: Site, server: ScoringServer, model: Path) -> tuple[bool, CanaryMetrics]:
    own = site.credentials(ANNA)
    metrics = CanaryMetrics()
    with ExitStack() as resources:
        asker = canary.Asker(server.address, own, SERVER)
        resources.callback(asker.close)
        plaintext = canary.Plaintext(model, own.authority_pem, SIGNERS)
        held = [canary.one_round(asker, plaintext, metrics, Journal()) for _ in range(2)]
    assert held[0] == held[1]
    return held[0], metrics


def test_the_canary_finds_a_good_server_good(site: Site, tmp_path: Path) -> None:
    config, _ = canary_site(site, tmp_path)
    with start(config) as server:
        held, metrics = one_round(site, server, site.published)
        value = metrics.registry.get_sample_value
        assert held
        assert value("veil_canary_queries_total", {"code": "OK"}) == 4
        for offer in FAST, KEYLESS:
            assert value("veil_canary_last_top10_recall", offer) == 1.0
            worst = value("veil_canary_score_error_worst", offer)
            bound = value("veil_canary_score_error_bound", offer)
            assert worst is not None and bound is not None and 0 < worst < bound
        # two offers, two rounds, no budget: it is exempt, nobody else is
        with by_certificate(site, server, EVE) as eve:
            assert eve.ask() and eve.parameters().queries_left == 0


def test_the_canary_notices_a_wrong_index(site: Site, tmp_path: Path) -> None:
    """An index whose rows are not the model's, under the model's own digest: only the scores show it."""
    config, _ = canary_site(site, tmp_path)
    start(config).stop(0.0)
    scaled = scale_items(site.model.item_factors)
    rows = scaled.rows.copy()
    rows[4321] = 0.5 * np.eye(DIMENSIONS)[0]
    for path in (tmp_path / "state" / "index").glob("*.index"):
        with Index.open(path) as index:
            layout, norm, digests = index.layout, index.item_norm, (index.model_digest, index.item_ids_digest)
        build(path, layout, rows, item_norm=norm, model_digest=digests[0], item_ids_digest=digests[1])
    with start(config) as server:
        held, metrics = one_round(site, server, site.published)
    assert not held
    value = metrics.registry.get_sample_value
    for offer in FAST, KEYLESS:
        worst = value("veil_canary_score_error_worst", offer)
        bound = value("veil_canary_score_error_bound", offer)
        assert worst is not None and bound is not None and worst > bound
        assert value("veil_canary_last_success_timestamp_seconds", offer) == 0


def test_the_canary_does_not_compare_with_another_model(site: Site, tmp_path: Path) -> None:
    other = publish(site.members, make_model(2), tmp_path / "other", ("alpha", "beta"))
    config, _ = canary_site(site, tmp_path)
    with start(config) as server:
        held, metrics = one_round(site, server, other)
    assert not held and metrics.registry.get_sample_value("veil_canary_queries_total", {"code": "ARTIFACT"}) == 4


def test_the_canary_as_a_process(site: Site, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config, file = canary_site(site, tmp_path)
    with start(config) as server:
        command = [sys.executable, "-m", "he_inference.canary", "--config", str(file), "--address", server.address]
        done = subprocess.run([*command, "--rounds", "2"], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        # it writes the log of the server's own form, and nothing else
        lines = [json.loads(line) for line in done.stderr.splitlines()]
        answered = [line for line in lines if line["event"] == "canary_answered"]
        assert len(answered) == 4 and {line["layout"] for line in answered} == {"session", "keyless"}
        assert all(line["top10_recall"] == 1.0 for line in answered) and not done.stdout
        with CanaryProcess(file, server.address) as process:
            assert process.running
    # the server has gone: a canary says that nobody answers, and fails
    done = subprocess.run([*command, "--rounds", "1"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1 and "canary_failed" in done.stderr
    capfd.readouterr()


def test_a_canary_ends_with_whoever_started_it(site: Site, tmp_path: Path) -> None:
    _, file = canary_site(site, tmp_path)
    command = [sys.executable, "-m", "he_inference.canary", "--config", str(file), "--address", "127.0.0.1:1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        # as when the server is killed: the pipe ends, and nobody sends a signal
        process.stdin.close()
        # whether it had asked before it noticed or not
        assert process.wait(120) in (0, 1)


def test_items_that_nobody_has_seen_are_as_many_as_everybodys(site: Site, tmp_path: Path) -> None:
    """Audiences: see tests/unit/he_inference/service/test_audience.py for what is hidden; here, who gets which."""
    hidden = tmp_path / "hidden.txt"
    longest = int(np.argmax(np.linalg.norm(site.model.item_factors, axis=1)))
    hidden.write_text("\n".join(map(str, {longest, *range(100)})))
    config = site.config(
        tmp_path,
        audiences=(Audience(name="guests", index=tmp_path / "guests", hidden=hidden, clients=("certificate/eve",)),),
    )
    with start(config) as server, by_certificate(site, server) as anna, by_certificate(site, server, EVE) as eve:
        assert anna.offer.layout == eve.offer.layout and anna.offer.layout.items == ITEMS
        assert anna.ask() == eve.ask()
        with pytest.raises(PolicyError, match="some of the items only"), translated("server"):
            list(eve.stub.GetClientModel(messages.GetClientModelRequest(file="client.safetensors"), timeout=30))
        assert list(anna.stub.GetClientModel(messages.GetClientModelRequest(file="manifest.json"), timeout=30))
        # an offer of the one audience is none of the other
        assert eve.offer.item_norm < anna.offer.item_norm
        anna.offer = eve.offer
        with pytest.raises(StateError, match="offer"):
            anna.ask()
