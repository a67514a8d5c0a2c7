"""Histories that travel encrypted: the same recommendations as with a model, from a client that has none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from he_inference import exchange, parameters
from he_inference.client import ScoringClient
from he_inference.layouts import catalogue
from he_inference.layouts.history import HistoryLayout
from tests.unit.he_inference.client.conftest import QUICK
from tests.unit.he_inference.client.desk import DIMENSIONS, SERVER, Desk, make_model, open_desk
from veil.errors import ConfigError, InputError, PolicyError, StateError
from veil.identity.credentials import Credentials
from veil.wire.channel import RunningServer

OFFERS = (("session", "fast", 0), ("history", "history", 0))


@pytest.fixture(scope="module")
def history_desk(published: Path) -> Desk:
    return Desk(make_model(1), published, OFFERS)


@pytest.fixture(scope="module")
def address(history_desk: Desk, consortium: Path) -> Iterator[str]:
    with open_desk(history_desk, Credentials.load(consortium / "scoring-main")) as server:
        yield server.address


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the layout were among the offers that clients know."""
    kinds = dict(catalogue._KINDS)
    kinds.setdefault("history", HistoryLayout)
    monkeypatch.setattr(catalogue, "_KINDS", kinds)
    monkeypatch.setattr(exchange, "KINDS", tuple(kinds))
    monkeypatch.setattr(parameters, "NAMES", tuple({*parameters.NAMES, "history"}))


@pytest.fixture
def client(address: str, anna: Credentials, tmp_path: Path) -> Iterator[ScoringClient]:
    with ScoringClient(address, anna, SERVER, tmp_path / "keys", from_history=True, retries=QUICK) as made:
        yield made


def test_recommendations_are_the_models_and_the_client_has_no_model(
    client: ScoringClient, history_desk: Desk, tmp_path: Path
) -> None:
    numbers = [3, 5, 8, 250]
    history = [str(1000 + number) for number in numbers]
    truth = history_desk.truth(history_desk.model.user_vector(numbers))
    scores = client.score_history(history)
    assert client.offer.layout.kind == "history"
    assert scores.error is not None and np.abs(scores - truth).max() < scores.error < 0.5
    best = np.array([n for n in np.argsort(-truth) if n not in numbers])
    found = client.recommend(history, k=5)
    assert len({one.item_id for one in found} & {str(1000 + n) for n in best[:5]}) >= 4
    assert all(one.title == f"Title {one.item_id}" for one in found)
    assert client.items.ids[0] == "1000"
    files = {file.name for file in (tmp_path / "keys" / "models").rglob("*") if file.is_file()}
    assert files == {"manifest.json", "signatures.json", "items.jsonl"}
    assert client.recommend([], k=1), "an empty history gets the model's general favourites"
    with pytest.raises(InputError, match="entries 1"):
        client.recommend(["no-such-item"])


def test_vectors_and_releases_are_for_other_offers(client: ScoringClient) -> None:
    with pytest.raises(InputError, match="score_history"):
        client.score(np.ones(DIMENSIONS))
    scores = client.score_history(["1003"])
    with pytest.raises(PolicyError, match="session"):
        client.release(scores, 3)


def test_a_client_with_a_model_passes_history_offers_over(
    address: str, anna: Credentials, tmp_path: Path, history_desk: Desk
) -> None:
    with ScoringClient(address, anna, SERVER, tmp_path / "keys") as client:
        assert client.offer.layout.kind == "session"
        scores = client.score_history(["1003", "1004"])
        truth = history_desk.truth(history_desk.model.user_vector([3, 4]))
        assert scores.error is not None and np.abs(scores - truth).max() < scores.error


def test_wishes_that_cannot_be(running: RunningServer, anna: Credentials, tmp_path: Path, desk: Desk) -> None:
    with pytest.raises(ConfigError, match="one_shot"):
        ScoringClient(running.address, anna, SERVER, tmp_path / "keys", one_shot=True, from_history=True)
    with (
        ScoringClient(running.address, anna, SERVER, tmp_path / "keys", from_history=True) as client,
        pytest.raises(StateError, match="offers"),
    ):
        client.recommend(["1003"])
