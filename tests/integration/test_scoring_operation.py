"""A scoring server over time: lost keys, dead workers, many queries, another model, logs."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from he_inference.client import ScoringClient
from he_inference.config import Keys, Load
from he_inference.server import ScoringServer, start
from tests.integration.scoring_site import (
    ANNA,
    DIMENSIONS,
    EVE,
    ITEMS,
    SERVER,
    Connect,
    Site,
    make_model,
    own_client,
    publish,
)
from veil.errors import PeerError, PeerLost, StateError

pytestmark = pytest.mark.integration


def test_a_server_that_has_lost_the_keys_is_sent_them_again(
    site: Site, server: ScoringServer, connect: Connect
) -> None:
    client = connect()
    first = client.recommend(["1001"], k=3)
    for file in (site.folder / "state" / "keys").rglob("*.keys"):
        file.unlink()
    assert [one.item_id for one in client.recommend(["1001"], k=3)] == [one.item_id for one in first]


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


def test_logs_hold_no_ciphertext_and_nothing_of_a_user(connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="veil"):
        client = connect(EVE)
        client.recommend(["1007"], k=2)
    text = caplog.text
    assert "registered evaluation keys" in text
    assert "1007" not in text and "Title" not in text and re.search(r"[0-9a-f]{64}", text) is None


def test_keys_settings_reach_the_cache(site: Site, tmp_path: Path) -> None:
    config = site.config(tmp_path, keys=Keys(max_per_client=1))
    with start(config) as server, own_client(site, server, tmp_path) as client:
        for _ in range(3):
            client.score(np.ones(DIMENSIONS))
            client.rotate_keys()
    assert len(list((tmp_path / "state" / "keys").rglob("*.keys"))) == 1
