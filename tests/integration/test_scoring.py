"""The scoring service as its clients meet it: real mutual TLS, a compute process, every layout; and the commands."""

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
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from he_inference.client import ScoringClient
from he_inference.service.config import Load
from he_inference.service.server import ScoringServer, start
from tests.integration.scoring_site import ANNA, DIMENSIONS, ITEMS, SERVER, Raw, Site, unit_vector
from veil.wire.channel import open_channel
from veil.wire.v1 import inference_pb2 as messages
from veil.wire.v1 import inference_pb2_grpc

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
EVERY_OFFER = ("fast", "pq", "exact", "keyless", "keyless-small/2")
BY_HISTORY = "history"


@pytest.fixture(scope="module")
def server(site: Site) -> Iterator[ScoringServer]:
    with start(site.config(site.folder, offers=(*EVERY_OFFER, BY_HISTORY))) as running:
        yield running


@pytest.fixture
def channel(site: Site, server: ScoringServer) -> Iterator[grpc.Channel]:
    with open_channel(server.address, site.credentials(ANNA), SERVER) as opened:
        yield opened


@pytest.fixture
def raw(site: Site, channel: grpc.Channel) -> Raw:
    return Raw(channel, site.model)


@pytest.mark.parametrize("number", range(len(EVERY_OFFER)))
def test_scores_of_every_offer_are_those_of_the_model(site: Site, channel: grpc.Channel, number: int) -> None:
    client = Raw(channel, site.model, offer=number)
    for seed in range(3):
        client.right(seed)
    parameters = client.offer.layout.parameters.name
    assert EVERY_OFFER[number].partition("/")[0] == parameters


def test_histories_are_folded_in_under_encryption(site: Site, server: ScoringServer) -> None:
    numbers = [5, 17, 400]
    history = [str(1000 + number) for number in numbers]
    with ScoringClient(server.address, site.credentials(ANNA), SERVER, None, from_history=True) as client:
        found = client.score_history(history)
        assert client.offer.layout.kind == "history"
        truth = site.model.scores(site.model.user_vector(numbers)[None])[0]
        assert found.error is not None and np.abs(np.asarray(found) - truth).max() < found.error
        assert len(client.recommend(history, k=5)) == 5


def test_every_query_gets_an_answer_of_the_same_shape(raw: Raw) -> None:
    """Zero, one item, everything at once: nothing in the shape of an answer tells them apart."""
    layout = raw.offer.layout
    shapes = set()
    for vector in (np.zeros(DIMENSIONS), np.eye(DIMENSIONS)[0], unit_vector(1), -unit_vector(2)):
        request = messages.ScoreRequest(
            key_digest=raw.digest,
            query=raw.query(vector),
            offer_digest=raw.offer.offer_digest,
            request_id=os.urandom(16),
        )
        parts = list(raw.stub.Score(request, timeout=30))
        raw.check([data for part in parts for data in part.results], vector)
        shapes.add(tuple((part.first_block, tuple(map(len, part.results))) for part in parts))
        assert {part.manifest_digest for part in parts} == {raw.offer.manifest_digest}
        assert all(part.compute_us > 0 and part.batch_queries >= 1 for part in parts)
    assert len(shapes) == 1
    assert sum(len(sizes) for _, sizes in next(iter(shapes))) == layout.blocks


def test_many_clients_at_once_are_answered_together(site: Site, server: ScoringServer) -> None:
    with open_channel(server.address, site.credentials(ANNA), SERVER) as channel:
        clients = [Raw(channel, site.model, offer=number % 2) for number in range(4)]
        threads = [threading.Thread(target=client.right, args=(seed,)) for seed in range(2) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()


def test_the_server_process_never_imports_what_decrypts(site: Site) -> None:
    """Neither it nor the process that computes; the tests' own process has it, so a fresh one is asked."""
    modules = "he_inference.__main__, he_inference.service.worker, he_inference.service.indexing"
    code = f"import sys, {modules}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    found = set(done.stdout.split())
    assert "he_inference.service.servicer" in found
    assert not found & {"tenseal", "he_inference.scheme", "he_inference.client", "he_inference.client.keys"}
    code = "import sys, he_inference.__main__; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "numba" not in set(done.stdout.split()), "the listening process compiles nothing"


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture
def serving(site: Site, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`veil serve` as a user types it, and its address."""
    config = tmp_path / "scoring.toml"
    config.write_text(
        f'listen = "127.0.0.1:0"\ncredentials = "{site.members[SERVER]}"\nmodel = "{site.published}"\n'
        'require_signers = ["alpha", "beta"]\nstate = "state"\noffers = ["fast"]\n[load]\nthreads = 1\n'
    )
    command = [sys.executable, "-c", "from cli.main import main; main()", "serve", "--config", str(config)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment())
    try:
        assert process.stderr is not None
        for line in process.stderr:
            address = re.search(r"at (127\.0\.0\.1:\d+)", line)
            if address is not None:
                yield process, address[1]
                break
        else:
            pytest.fail("the server ended before it listened")
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def test_the_two_commands(site: Site, tmp_path: Path, serving: tuple[subprocess.Popen[str], str]) -> None:
    process, address = serving
    arguments = [sys.executable, "-c", "from cli.main import main; main()", "recommend", "--server", address]
    arguments += ["--credentials", str(site.members[ANNA]), "-k", "3", "--keys", str(tmp_path / "keys"), "--history"]

    def recommend(history: str, *more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*arguments, "-", *more], input=history, capture_output=True, text=True, env=environment(), check=False
        )

    asked = recommend("1005\n1017\n", "--json")
    assert asked.returncode == 0, asked.stderr
    truth = site.model.scores(site.model.user_vector([5, 17])[None])[0]
    truth[[5, 17]] = -np.inf
    assert [one["item_id"] for one in json.loads(asked.stdout)] == [str(1000 + n) for n in np.argsort(-truth)[:3]]
    wrong = recommend("nothing\n")
    assert wrong.returncode == 1 and "catalogue does not have" in wrong.stderr and "Traceback" not in wrong.stderr
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert process.stderr is not None
    lines = [json.loads(line) for line in process.stderr.read().splitlines()]
    assert {"query_answered", "keys_registered", "stopping"} <= {line["event"] for line in lines}


def test_a_server_that_is_told_to_stop_answers_what_it_has_begun(
    site: Site, serving: tuple[subprocess.Popen[str], str]
) -> None:
    process, address = serving
    with open_channel(address, site.credentials(ANNA), SERVER) as channel:
        client = Raw(channel, site.model)
        vector = unit_vector(1)
        query = client.query(vector)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        workers = [int(pid) for pid in children.read_text().split()] if children.exists() else []
        if not workers:
            pytest.skip("this system does not tell the children of a process")
        os.kill(workers[0], signal.SIGSTOP)
        found: list[list[bytes]] = []
        thread = threading.Thread(target=lambda: found.append(client.ask(query)))
        thread.start()
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        limit = time.monotonic() + 20
        with pytest.raises(grpc.RpcError):  # as soon as the signal has arrived
            while time.monotonic() < limit:
                client.stub.GetParameters(messages.GetParametersRequest(), timeout=5)
                time.sleep(0.05)
        os.kill(workers[0], signal.SIGCONT)
        thread.join(30)
        assert len(found) == 1
        client.check(found[0], vector)
    assert process.wait(30) == 0


def test_the_examples_run_as_written(
    site: Site, server: ScoringServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = runpy.run_path(str(ROOT / "examples" / "score_plain_grpc.py"))
    plain["main"](server.address, str(site.members[ANNA]))
    assert "bytes of keys once" in capsys.readouterr().out
    application = runpy.run_path(str(ROOT / "examples" / "score_from_app.py"))
    application["main"](server.address, str(site.members[ANNA]), str(tmp_path / "keys"), "1001", "1002")
    assert "epsilon" in capsys.readouterr().out


def test_the_card_says_what_the_model_cost(raw: Raw) -> None:
    card = raw.stub.GetModelCard(messages.GetModelCardRequest(), timeout=30).card
    assert (card.items, card.dimensions, list(card.signers)) == (ITEMS, DIMENSIONS, ["alpha", "beta"])
    assert card.epsilon_micro > 0 and card.manifest_digest == raw.offer.manifest_digest


def test_a_server_over_its_limits_says_when_to_come_again(site: Site, tmp_path: Path) -> None:
    config = site.config(tmp_path, load=Load(queue=1, threads=1, timeout_s=20.0))
    with start(config) as server, open_channel(server.address, site.credentials(ANNA), SERVER) as channel:
        client = Raw(channel, site.model)
        (pid,) = server.pool.pids
        os.kill(pid, signal.SIGSTOP)
        threads = []
        for waiting in range(2):
            threads.append(threading.Thread(target=client.right, args=(waiting,)))
            threads[-1].start()
            limit = time.monotonic() + 20
            while server.pool.waiting + server.pool._running < waiting + 1:
                assert time.monotonic() < limit
                time.sleep(0.01)
        with pytest.raises(grpc.RpcError) as refused:
            client.right(9)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
        trailers = dict(refused.value.trailing_metadata())  # type: ignore[attr-defined]
        assert 0 < float(trailers["veil-retry-after-s"]) < 60
        os.kill(pid, signal.SIGCONT)
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        client.right(9)


def test_deadlines_and_departed_clients_cost_no_arithmetic(site: Site, tmp_path: Path) -> None:
    config = site.config(tmp_path, load=Load(threads=1, timeout_s=30.0))
    with start(config) as server, open_channel(server.address, site.credentials(ANNA), SERVER) as channel:
        client = Raw(channel, site.model)
        (pid,) = server.pool.pids
        os.kill(pid, signal.SIGSTOP)
        running = threading.Thread(target=client.right)
        running.start()
        limit = time.monotonic() + 20
        while server.pool._running < 1:
            assert time.monotonic() < limit
            time.sleep(0.01)
        with pytest.raises(grpc.RpcError) as late:
            client.right(1, timeout_s=0.3)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # type: ignore[attr-defined]
        request = messages.ScoreRequest(
            key_digest=client.digest,
            query=client.query(unit_vector(2)),
            offer_digest=client.offer.offer_digest,
            request_id=os.urandom(16),
        )
        departing = client.stub.Score(request, timeout=30)
        while server.pool.waiting < 1:
            assert time.monotonic() < limit
            time.sleep(0.01)
        departing.cancel()
        while server.pool.waiting:
            assert time.monotonic() < limit
            time.sleep(0.01)
        os.kill(pid, signal.SIGCONT)
        running.join(30)
        registry = server.policy.metrics.registry
        assert registry.get_sample_value("veil_scoring_batch_queries_sum") == 1
        while registry.get_sample_value("veil_scoring_queries_total", {"code": "CANCELLED"}) != 2:
            assert time.monotonic() < limit
            time.sleep(0.01)


def test_logs_hold_no_ciphertext_and_nothing_of_a_user(
    raw: Raw, caplog: pytest.LogCaptureFixture, server: ScoringServer
) -> None:
    with caplog.at_level(logging.DEBUG, logger="veil"):
        raw.right()
        raw.register()
    assert "query_answered" in caplog.text and "keys_registered" in caplog.text
    for record in caplog.records:
        text = f"{record.getMessage()} {record.__dict__}"
        assert "certificate/main" not in text and re.search(r"[0-9a-f]{32}", text) is None


def test_reflection_and_health_know_the_service(channel: grpc.Channel) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    asked = health_pb2.HealthCheckRequest(service="veil.wire.v1.InferenceService")
    assert health_pb2_grpc.HealthStub(channel).Check(asked, timeout=10).status == 1
    assert inference_pb2_grpc.InferenceServiceStub(channel)
