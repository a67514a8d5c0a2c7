"""Scoring over Ray actors in real processes: the answers of one process, byte for byte, whatever is killed."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from he_inference.engine.local import LocalEngine
from he_inference.engine.ray_cluster import RayCluster
from he_inference.engine.ray_settings import RaySettings
from he_inference.engine.ray_shards import RayShards
from he_inference.index.build import build, update
from he_inference.index.store import Index
from he_inference.layouts.seam import Floats, Layout
from he_inference.layouts.session import SessionLayout
from he_inference.parameters import FAST
from he_inference.scheme import SecretKey
from he_inference.service.config import Load
from he_inference.service.server import ScoringServer, start
from tests.integration.scoring_site import ANNA, SERVER, Raw, Site
from veil.errors import ArtifactError, CiphertextError, VeilError
from veil.wire.channel import open_channel

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason='Ray is not installed: pip install "veil-recsys[ray]"'
    ),
    # Ray's own: files and processes that it leaves to the collector, and interfaces that it announces to give up.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*:FutureWarning:ray.*"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning:ray.*"),
]

LAYOUT = SessionLayout(FAST, 20_000, 8)  # five blocks
CLIENTS = 3


@dataclass
class Scene:
    """An index, queries of some clients, and what one process answers them."""

    path: Path
    rows: Floats
    secrets: list[SecretKey]
    keys: list[bytes]
    queries: list[bytes]
    vectors: Floats
    answers: list[list[bytes]]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    rows = unit(np.random.default_rng(0).standard_normal((LAYOUT.items, LAYOUT.dimensions)))
    path = tmp_path_factory.mktemp("index") / "items.index"
    build(path, LAYOUT, rows, item_norm=1.0, model_digest=bytes(32), item_ids_digest=bytes(32))
    vectors = unit(np.random.default_rng(1).standard_normal((CLIENTS, LAYOUT.dimensions)))
    secrets = [SecretKey(FAST) for _ in range(CLIENTS)]
    keys = [secret.evaluation_keys(LAYOUT.galois_elements) for secret in secrets]
    queries = [
        secret.encrypt(LAYOUT.query_polynomials(vector)) for secret, vector in zip(secrets, vectors, strict=True)
    ]
    with Index.open(path) as index:
        answers = gathered(LocalEngine(index), queries, keys)
    return Scene(path, rows, secrets, keys, queries, vectors, answers)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    before = descendants(os.getpid())
    with RayCluster(RaySettings(shards=2, threads=1, timeout_s=150.0)) as running:
        started = descendants(os.getpid()) - before
        assert started
        yield running
        started |= descendants(os.getpid()) - before
    wait_for(lambda: not started & alive(), "Ray's processes to end")


@pytest.fixture(scope="module")
def engine(cluster: RayCluster, scene: Scene) -> RayShards:
    with Index.open(scene.path) as index:
        (made,) = cluster.engines([(index, scene.path)])
    return made


def unit(rows: Floats) -> Floats:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def gathered(engine: Any, queries: list[bytes], keys: list[bytes]) -> list[list[bytes]]:
    results: list[list[bytes]] = [[] for _ in queries]
    read = [engine.read_query(query) for query in queries]
    for run in engine.score(read, [engine.read_keys(one) for one in keys]):
        for so_far, one in zip(results, run, strict=True):
            so_far.extend(one)
    return results


def scores(layout: Layout, secret: SecretKey, results: list[bytes]) -> Floats:
    return layout.scores(*secret.decrypt(results, layout.coefficient_places()))


def alive() -> set[int]:
    """Processes of this machine that have not ended."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _state(int(entry.name))[0] not in ("Z", "X", ""):
            found.add(int(entry.name))
    return found


def descendants(root: int) -> set[int]:
    """Processes that run and were started by `root`, or by one that was."""
    parents = {pid: _state(pid)[1] for pid in alive()}
    found: set[int] = set()
    while more := {pid for pid, parent in parents.items() if parent in found | {root}} - found:
        found |= more
    return found


def _state(pid: int) -> tuple[str, int]:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", 0
    return fields[0], int(fields[1])


def stands_still(counter: list[int], for_s: float = 0.5) -> bool:
    before = counter[0]
    time.sleep(for_s)
    return counter[0] == before


def wait_for(condition: Callable[[], bool], what: str, limit_s: float = 60.0) -> None:
    limit = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < limit, f"waited for {what}"
        time.sleep(0.05)


def test_actors_answer_as_one_process_does(engine: RayShards, scene: Scene) -> None:
    assert [(part.first, part.last) for part in engine.parts] == [(0, 2), (2, 5)]
    assert len(set(engine.pids())) == 2 and os.getpid() not in engine.pids()
    assert gathered(engine, scene.queries, scene.keys) == scene.answers
    assert engine.compute_us > 0
    # With keys that are held by now, and one query by itself.
    assert gathered(engine, scene.queries[1:2], scene.keys[1:2]) == scene.answers[1:2]
    for secret, vector, results in zip(scene.secrets, scene.vectors, scene.answers, strict=True):
        assert np.abs(scores(LAYOUT, secret, results) - scene.rows @ vector).max() < FAST.score_error


def test_each_actor_has_as_many_threads_as_configured(engine: RayShards) -> None:
    for pid in engine.pids():
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        threads = [line for line in environment if line.startswith(b"NUMBA_NUM_THREADS=")]
        assert threads == [b"NUMBA_NUM_THREADS=1"]


def test_what_is_no_query_is_refused_here(engine: RayShards, scene: Scene) -> None:
    for bad in (b"", scene.queries[0][:-1], b"\xff" * len(scene.queries[0])):
        with pytest.raises(CiphertextError):
            engine.read_query(bad)
    with pytest.raises(CiphertextError):
        engine.read_keys(scene.keys[0] + b"\0")


def test_actors_killed_under_load_come_back_and_no_answer_is_wrong(engine: RayShards, scene: Scene) -> None:
    import ray

    stop, problems, answered = threading.Event(), [], [0]

    def load() -> None:
        while not stop.is_set():
            try:
                right = gathered(engine, scene.queries, scene.keys) == scene.answers
            except VeilError as error:
                problems.append(repr(error))
                return
            if not right:
                problems.append("a wrong answer")
            answered[0] += 1

    first_pids = engine.pids()
    worker = threading.Thread(target=load)
    worker.start()
    try:
        wait_for(lambda: answered[0] >= 3, "answers before")
        # So that it is in the middle of a request for certain.
        os.kill(first_pids[0], signal.SIGSTOP)
        wait_for(lambda: stands_still(answered), "a request that waits for the actor")
        os.kill(first_pids[0], signal.SIGKILL)
        after = answered[0]
        wait_for(lambda: answered[0] >= after + 3 or bool(problems), "answers after a kill", 120)
        ray.kill(engine._actors[1].handle, no_restart=False)
        after = answered[0]
        wait_for(lambda: answered[0] >= after + 3 or bool(problems), "answers after Ray's kill", 120)
    finally:
        stop.set()
        worker.join(160)
    assert not worker.is_alive() and not problems
    assert not set(first_pids) & set(engine.pids())


def test_a_former_generation_is_answered_by_actors_that_come_back(
    engine: RayShards, cluster: RayCluster, scene: Scene
) -> None:
    """The file is replaced, then an actor of the former one is killed: it finds its generation by its second name."""
    update(scene.path, {7: np.zeros(LAYOUT.dimensions)})
    killed = engine.pids()[0]
    os.kill(killed, signal.SIGKILL)
    assert gathered(engine, scene.queries[:1], scene.keys[:1]) == scene.answers[:1]
    assert killed not in engine.pids()
    with Index.open(scene.path) as index:
        (newer,) = cluster.engines([(index, scene.path)])
        found = gathered(newer, scene.queries[:1], scene.keys[:1])
        assert found == gathered(LocalEngine(index), scene.queries[:1], scene.keys[:1]) != scene.answers[:1]
    newer.close()
    # The former one is wanted no more: its name is gone, and an actor that comes back says so instead of guessing.
    os.kill(engine.pids()[0], signal.SIGKILL)
    with pytest.raises(ArtifactError, match="no readable index"):
        gathered(engine, scene.queries[:1], scene.keys[:1])


def test_a_closed_engine_has_no_actors(cluster: RayCluster, scene: Scene) -> None:
    with Index.open(scene.path) as index:
        (made,) = cluster.engines([(index, scene.path)])
    pids = made.pids()
    made.close()
    wait_for(lambda: not set(pids) & alive(), "the actors to end")


def shard_pids(server: ScoringServer) -> list[int]:
    """Actors that the server's compute processes started."""
    found = []
    for root in server.pool.pids:
        for pid in descendants(root):
            try:
                name = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if name.startswith(b"ray::ShardProcess"):
                found.append(pid)
    return sorted(found)


def test_a_server_with_this_engine_answers_while_its_actors_are_killed(site: Site) -> None:
    """`[engine] kind = "ray"`: the same service, and its processes end with it."""
    settings = {"kind": "ray", "ray": {"shards": 2, "threads": 1}}
    config = site.config(site.folder, engine=settings, load=Load(timeout_s=120.0))
    before = descendants(os.getpid())
    with start(config) as server:
        first = shard_pids(server)
        assert len(first) == 2
        with open_channel(server.address, site.credentials(ANNA), SERVER) as channel:
            clients = [Raw(channel, site.model) for _ in range(2)]
            for number, client in enumerate(clients):
                client.right(number)
            # So that it is in the middle of a request for certain.
            os.kill(first[0], signal.SIGSTOP)
            asking = [threading.Thread(target=client.right, args=(7,)) for client in clients]
            for thread in asking:
                thread.start()
            wait_for(lambda: server.pool._running > 0, "a request that is computed")
            os.kill(first[0], signal.SIGKILL)
            for thread in asking:
                thread.join(120)
                assert not thread.is_alive()
            for number, client in enumerate(clients):
                client.right(number + 20)
        assert first[0] not in shard_pids(server) and server.pool.replaced == 0
        started = descendants(os.getpid()) - before
    wait_for(lambda: not started & alive(), "Ray's processes to end", 100.0)
