"""A scoring server over time: lost keys, dead processes, other models, changed indexes, restarts."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import grpc
import numpy as np
import pytest

from he_inference.index.build import update
from he_inference.service.config import Keys, Load, Reload
from he_inference.service.server import ScoringServer, start
from tests.integration.scoring_site import (
    ANNA,
    SERVER,
    Raw,
    Site,
    make_model,
    own_client,
    publish,
    unit_vector,
)
from veil.errors import StateError, VeilError
from veil.recsys.model import Model
from veil.wire.channel import open_channel
from veil.wire.status import from_rpc, translated

pytestmark = pytest.mark.integration
ONE_THREAD = Load(threads=1, timeout_s=20.0)
# Seconds of load with processes killed at random; ten minutes for a soak.
SOAK_S = float(os.environ.get("VEIL_SOAK_S", "20"))


@pytest.fixture(scope="module")
def server(site: Site) -> Iterator[ScoringServer]:
    with start(site.config(site.folder, load=ONE_THREAD)) as running:
        yield running


@pytest.fixture
def raw(site: Site, server: ScoringServer) -> Iterator[Raw]:
    with open_channel(server.address, site.credentials(ANNA), SERVER) as channel:
        yield Raw(channel, site.model)


@pytest.fixture
def site_of_two(site: Site, tmp_path: Path) -> tuple[Path, Model, Path]:
    """A folder with the first model that a test may replace, another model, and its folder."""
    other = make_model(2)
    shutil.copytree(site.published, tmp_path / "served")
    return tmp_path / "served", other, publish(site.members, other, tmp_path / "second", ("alpha", "beta"))


def exchange_folder(served: Path, other: Path) -> None:
    """As an operator does it: the other folder takes the name."""
    served.rename(served.with_name("former"))
    shutil.copytree(other, served)


def test_a_server_that_has_lost_the_keys_says_so_and_takes_them_again(site: Site, raw: Raw) -> None:
    raw.right()
    for file in (site.folder / "state" / "keys").rglob("*.keys"):
        file.unlink()
    with pytest.raises(StateError, match="register"), translated("server"):
        raw.right()
    raw.register()
    raw.right()


def test_a_process_that_dies_costs_no_query(server: ScoringServer, raw: Raw) -> None:
    raw.right()
    (pid,) = server.pool.pids
    os.kill(pid, signal.SIGSTOP)
    killer = threading.Timer(0.3, os.kill, (pid, signal.SIGKILL))
    killer.start()
    raw.right()
    killer.join()
    assert server.pool.pids != [pid]
    registry = server.policy.metrics.registry
    assert registry.get_sample_value("veil_scoring_worker_restarts_total") == 1


def test_another_model_takes_over_while_queries_run(
    site: Site, site_of_two: tuple[Path, Model, Path], tmp_path: Path
) -> None:
    served, other, second = site_of_two
    config = site.config(tmp_path, model=served, load=ONE_THREAD, reload=Reload(every_s=0, grace_s=3600))
    with start(config) as server, open_channel(server.address, site.credentials(ANNA), SERVER) as channel:
        before = Raw(channel, site.model)
        stop = threading.Event()
        answered: list[int] = []
        failures: list[BaseException] = []

        def keep_asking() -> None:
            while not stop.is_set():
                try:
                    before.right(len(answered))
                except BaseException as error:  # noqa: BLE001 - the test's own thread tells
                    failures.append(error)
                    return
                answered.append(1)

        thread = threading.Thread(target=keep_asking)
        thread.start()
        assert not server.reload(), "nothing has changed"
        exchange_folder(served, second)
        assert server.reload() and not server.reload()
        so_far = len(answered)
        after = Raw(channel, other)
        assert after.offer.manifest_digest != before.offer.manifest_digest
        after.right()
        limit = time.monotonic() + 60
        while len(answered) < so_far + 3 and not failures:
            assert time.monotonic() < limit
            time.sleep(0.01)
        stop.set()
        thread.join(30)
        assert not failures, "queries for the former model are answered from the former index"
        after.right()
        # Keys of one layout serve both models.
        assert before.offer.parameters_digest == after.offer.parameters_digest


def test_a_former_model_is_let_go_after_its_time(
    site: Site, site_of_two: tuple[Path, Model, Path], tmp_path: Path
) -> None:
    served, other, second = site_of_two
    config = site.config(tmp_path, model=served, load=ONE_THREAD, reload=Reload(every_s=0.2, grace_s=0))
    with start(config) as server, open_channel(server.address, site.credentials(ANNA), SERVER) as channel:
        before = Raw(channel, site.model)
        before.right()
        exchange_folder(served, second)
        limit = time.monotonic() + 60
        while server.offers.offers[0].manifest_digest == before.offer.manifest_digest:
            assert time.monotonic() < limit
            time.sleep(0.05)
        with pytest.raises(StateError, match="model has changed"), translated("server"):
            before.right()
        Raw(channel, other).right()
        while len(server.generations.held) > 1:
            assert time.monotonic() < limit
            time.sleep(0.05)
        Raw(channel, other).right()


def test_a_model_that_is_not_signed_is_not_taken_up(
    site: Site, site_of_two: tuple[Path, Model, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    served, other, second = site_of_two
    half = publish(site.members, other, tmp_path / "half", ("alpha",))
    config = site.config(tmp_path, model=served, load=ONE_THREAD)
    with start(config) as server, open_channel(server.address, site.credentials(ANNA), SERVER) as channel:
        exchange_folder(served, half)
        assert not server.reload()
        assert "stays as it is" in caplog.text and "beta" in caplog.text
        Raw(channel, site.model).right()
        shutil.rmtree(served)
        assert not server.reload()
        shutil.copytree(second, served)
        assert server.reload()
        Raw(channel, other).right()


def test_a_changed_index_is_taken_up_and_offered_under_the_same_name(site: Site, tmp_path: Path) -> None:
    config = site.config(tmp_path, load=ONE_THREAD)
    with start(config) as server, open_channel(server.address, site.credentials(ANNA), SERVER) as channel:
        client = Raw(channel, site.model)
        client.right()
        (path,) = (tmp_path / "state" / "index").glob("*.index")
        row = unit_vector(5)
        update(path, {7: row})
        assert server.reload()
        changed = site.model.item_factors.astype(np.float64)
        changed[7] = row * client.offer.item_norm
        vector = unit_vector(1)
        layout = client.offer.layout
        numbers, bits = client.secret.decrypt(client.ask(client.query(vector)), layout.coefficient_places())
        found = layout.scores(numbers, bits) * client.offer.item_norm
        assert np.abs(found - changed @ vector).max() < client.offer.score_error


def test_indexes_and_keys_outlive_the_server_and_damage_is_repaired(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = site.config(tmp_path, offers=("fast", "keyless"), load=ONE_THREAD)
    with start(config) as server, open_channel(server.address, site.credentials(ANNA), SERVER) as channel:
        client = Raw(channel, site.model)
        client.right()
    files = sorted((tmp_path / "state" / "index").glob("*.index"))
    states = [file.stat().st_ino for file in files]
    with start(config) as server, open_channel(server.address, site.credentials(ANNA), SERVER) as channel:
        again = Raw(channel, site.model)
        again.secret, again.digest = client.secret, client.digest
        again.right()
    assert [file.stat().st_ino for file in files] == states, "nothing was built again"
    content = bytearray(files[1].read_bytes())
    content[-1000] ^= 1
    files[1].write_bytes(content)
    files[0].write_bytes(b"no index")
    with start(config) as server, open_channel(server.address, site.credentials(ANNA), SERVER) as channel:
        assert "builds the index files anew" in caplog.text
        for offer in range(2):
            Raw(channel, site.model, offer=offer).right()


def test_keys_settings_reach_the_cache(site: Site, tmp_path: Path) -> None:
    config = site.config(tmp_path, load=ONE_THREAD, keys=Keys(max_per_client=1))
    with start(config) as server, open_channel(server.address, site.credentials(ANNA), SERVER) as channel:
        clients = [Raw(channel, site.model) for _ in range(3)]
        assert len(list((tmp_path / "state" / "keys").rglob("*.keys"))) == 1
        clients[2].right()
        with pytest.raises(grpc.RpcError) as refused:
            clients[0].right()
        assert isinstance(from_rpc(refused.value, "server"), StateError)
        assert server.pool.replaced == 0


def test_a_client_follows_a_server_whose_model_changes(
    site: Site, site_of_two: tuple[Path, Model, Path], tmp_path: Path
) -> None:
    served, other, second = site_of_two
    config = site.config(tmp_path, model=served, load=ONE_THREAD, reload=Reload(every_s=0, grace_s=0))
    with start(config) as server, own_client(site, server, tmp_path) as client:
        client.recommend(["1001"])
        exchange_folder(served, second)
        assert server.reload()
        found = client.recommend(["1001"], k=1)
        truth = other.scores(other.user_vector([1])[None])[0]
        truth[1] = -np.inf
        assert found[0].item_id == str(1000 + int(np.argmax(truth)))


@pytest.mark.timeout(SOAK_S + 300)
def test_a_soak_with_processes_killed_at_random_gives_no_wrong_answer(site: Site, tmp_path: Path) -> None:
    config = site.config(tmp_path, offers=("fast", "keyless"), load=ONE_THREAD)
    with start(config) as server, open_channel(server.address, site.credentials(ANNA), SERVER) as channel:
        clients = [Raw(channel, site.model, offer=number % 2) for number in range(4)]
        stop = time.monotonic() + SOAK_S
        right, refused = [0] * 4, [0] * 4
        wrong: list[BaseException] = []

        def load(place: int) -> None:
            while time.monotonic() < stop and not wrong:
                try:
                    clients[place].right(right[place])
                    right[place] += 1
                except grpc.RpcError as error:
                    assert isinstance(from_rpc(error, "server"), VeilError)
                    refused[place] += 1
                except BaseException as error:  # noqa: BLE001 - the test's own thread tells
                    wrong.append(error)

        threads = [threading.Thread(target=load, args=(place,)) for place in range(4)]
        for thread in threads:
            thread.start()
        generator = np.random.default_rng(0)
        killed = 0
        while time.monotonic() < stop:
            time.sleep(generator.uniform(0.5, 3.0))
            for pid in server.pool.pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed += 1
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert not wrong, wrong
        assert killed >= 3 and min(right) >= 3
        print(f"{sum(right)} right answers, {sum(refused)} refused, {killed} processes killed")
