"""A server in this process, and clients of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from he_inference.client import Retries, ScoringClient
from tests.unit.he_inference.client.desk import SERVER, Desk, make_model, open_desk, publish
from veil.identity.credentials import Credentials
from veil.wire.channel import RunningServer

TOKEN = "token-of-a-test-0123456789"
QUICK = Retries(attempts=4, first_s=0.01, longest_s=0.05)
Connect = Callable[..., ScoringClient]


@pytest.fixture(scope="module")
def published(consortium: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(consortium, make_model(1), tmp_path_factory.mktemp("model") / "first")


@pytest.fixture(scope="module")
def shared_desk(published: Path) -> Desk:
    return Desk(make_model(1), published)


@pytest.fixture
def desk(shared_desk: Desk) -> Desk:
    """The servicer, with nothing left over from the test before."""
    shared_desk.faults, shared_desk.seen, shared_desk.tokens, shared_desk.keys = [], [], [], {}
    shared_desk.registrations = shared_desk.parameters_asked = 0
    shared_desk.spoil = shared_desk.spoil_score = shared_desk.queries_left = None
    shared_desk.delay_s = 0.0
    return shared_desk


@pytest.fixture(scope="module")
def running(shared_desk: Desk, consortium: Path) -> Iterator[RunningServer]:
    with open_desk(shared_desk, Credentials.load(consortium / "scoring-main"), TOKEN) as server:
        yield server


@pytest.fixture
def anna(consortium: Path) -> Credentials:
    return Credentials.load(consortium / "client-main")


@pytest.fixture
def connect(desk: Desk, running: RunningServer, anna: Credentials, tmp_path: Path) -> Iterator[Connect]:
    """Clients of the server, closed at the end."""
    opened: list[ScoringClient] = []

    def make(address: str | None = None, credentials: Any = None, keys: Any = "keys", **more: Any) -> ScoringClient:
        folder = None if keys is None else tmp_path / keys
        settings = {"retries": QUICK, "timeout_s": 20.0, **more}
        client = ScoringClient(address or running.address, credentials or anna, SERVER, folder, **settings)
        opened.append(client)
        return client

    yield make
    for client in opened:
        client.close()
