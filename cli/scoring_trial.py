"""A client's queries against a running scoring server, checked against the same model in plaintext."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from he_inference.client import ScoringClient
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role

if TYPE_CHECKING:
    from cli.local import LocalConsortium
    from veil.recsys.artifact import Artifact
    from veil.recsys.dataset import Dataset

_SAMPLE_SCORES = 2_000


def run_trial(
    consortium: LocalConsortium, dataset: Dataset, published: Artifact, model: Path, *, queries: int
) -> dict[str, Any]:
    """Starts the scoring server on `model`, asks for `queries` users, and returns the report's `scoring` part."""
    # The demo asks as one client, more than half as often as a vector has entries.
    server = consortium.start_scoring(model, budget={"enabled": False})
    credentials = Credentials.load(consortium.credentials(Role.CLIENT))
    expect = Identity(consortium.consortium, Role.SCORING, "main")
    users = np.linspace(0, dataset.train.users - 1, queries).astype(np.int64)
    round_trips, server_ms, errors, overlaps = [], [], [], []
    sample: dict[str, list[float]] = {}
    with ScoringClient(server.address, credentials, expect, consortium.root / "client-keys") as client:
        # The first query registers the evaluation keys; that is a client's set-up, not a query's cost.
        client.score(published.model.user_vector(dataset.train.history(int(users[0]))))
        for user in users:
            history = dataset.train.history(int(user))
            started = time.perf_counter()
            encrypted = client.score(client.model.fold_in.user_vector(history))
            round_trips.append(1000 * (time.perf_counter() - started))
            report = client.last_query
            if report is not None:
                server_ms.append(1000 * report.server_s)
            plain = published.model.scores(published.model.user_vector(history)[None])[0]
            errors.append(float(np.abs(encrypted - plain).max()))
            overlaps.append(len(set(_top(encrypted, history)) & set(_top(plain, history))) / 10)
            if not sample:
                shown = slice(0, _SAMPLE_SCORES)
                sample = {"plaintext": plain[shown].tolist(), "encrypted": encrypted[shown].tolist()}
        example = client.recommend([published.ids[item] for item in dataset.train.history(int(users[-1]))], k=10)
        report = client.last_query
        sizes = (report.query_bytes, report.response_bytes) if report is not None else (0, 0)
        return {
            "median_ms": float(np.median(round_trips)),
            "p99_ms": float(np.quantile(round_trips, 0.99)),
            "server_median_ms": float(np.median(server_ms)),
            "round_trip_ms": [round(value, 3) for value in round_trips],
            "query_bytes": sizes[0],
            "response_bytes": sizes[1],
            "key_bytes": client.key_bytes,
            "max_abs_error": max(errors),
            "score_scale": published.model.score_scale,
            "top10_overlap": float(np.mean(overlaps)),
            "parameters": client.offer.layout.parameters.name,
            "queries": queries,
            "sample": sample,
            "example": [{"title": item.title or item.item_id, "score": item.score} for item in example],
        }


def _top(scores: np.ndarray, history: np.ndarray) -> list[int]:
    masked = np.array(scores, dtype=np.float64)
    masked[history] = -np.inf
    return [int(item) for item in np.argsort(-masked, kind="stable")[:10]]
