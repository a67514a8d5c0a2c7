"""The client kit at a real scoring server: tokens and budgets, an event loop, a restart in between, releases."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from he_inference.client import AsyncScoringClient, Retries, ScoringClient, TokenCredentials
from he_inference.service import tokens
from he_inference.service.access import AccessSettings
from he_inference.service.budget import BudgetSettings
from he_inference.service.server import start
from tests.integration.scoring_site import ANNA, DIMENSIONS, ITEMS, SERVER, Site
from veil.errors import IdentityError, QueryBudgetError, StateError

pytestmark = pytest.mark.integration
VECTOR = np.linspace(-1.0, 1.0, DIMENSIONS)


def test_every_way_to_ask_and_a_budget_that_ends(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    token, _ = tokens.add(file, "app", 30)
    config = site.config(
        tmp_path,
        offers=("fast", "exact", "keyless"),
        access=AccessSettings(token_listen="127.0.0.1:0", tokens=file),
        budget=BudgetSettings(queries_per_dimension=0.4, window_days=0),
    )
    truth = site.model.scores(VECTOR.astype(np.float32)[None])[0]
    with start(config) as server:
        assert server.token_address is not None
        bearer = TokenCredentials(site.credentials(ANNA).authority_pem, token)
        with ScoringClient(server.token_address, bearer, SERVER, None, one_shot=True) as once:
            scores = once.score(VECTOR)
            assert once.offer.layout.kind == "keyless" and once.key_bytes == 0
            assert scores.error is not None and np.abs(scores - truth).max() < scores.error
            once.refresh()
            assert once.offer and once.queries_left == int(0.4 * DIMENSIONS) - 1

        async def talk() -> None:
            folder = tmp_path / "keys"
            async with AsyncScoringClient(
                server.token_address or "", bearer, SERVER, folder, sets=["exact"], timeout_s=30.0
            ) as client:
                found = await asyncio.gather(*(client.recommend([str(1000 + n)], k=2) for n in range(3)))
                assert all(len(one) == 2 for one in found)
                scores = await client.score(VECTOR)
                released = await client.release(scores, 3, proven=True)
                assert released.method == "exact" and released.numbers[0] in np.argsort(-truth)[:20]
                with pytest.raises(QueryBudgetError):
                    for _ in range(DIMENSIONS):
                        await client.score(VECTOR)

        asyncio.run(talk())
        tokens.revoke(file, "app")
        with (
            ScoringClient(server.token_address, bearer, SERVER, None) as ended,
            pytest.raises(IdentityError) as refused,
        ):
            ended.score(VECTOR)
        assert token not in str(refused.value)


def test_a_restart_in_between_is_a_pause(site: Site, tmp_path: Path) -> None:
    with start(site.config(tmp_path)) as first:
        port = first.running.port
        patient = Retries(attempts=60, first_s=0.2, longest_s=0.5)
        folder = tmp_path / "keys"
        client = ScoringClient(first.address, site.credentials(ANNA), SERVER, folder, retries=patient, timeout_s=90.0)
        with client:
            before = client.score(VECTOR)
            first.stop(0.0)
            answers: list[np.ndarray] = []
            asking = threading.Thread(target=lambda: answers.append(client.score(VECTOR)))
            asking.start()
            time.sleep(0.5)
            with start(site.config(tmp_path, listen=f"127.0.0.1:{port}")):
                asking.join(90)
                assert len(answers) == 1 and answers[0].shape == (ITEMS,)
                assert np.abs(answers[0] - before).max() < 2 * (before.error or 0.0)
                report = client.last_query
                assert report is not None and report.attempts > 1
                assert len(list((tmp_path / "state" / "keys").rglob("*.keys"))) == 1, "the keys survived the restart"
                released = client.release(before, 2, limit=1)
                assert len(released.numbers) == 2 and released.releases_left == 0
                with pytest.raises(StateError, match="rotate"):
                    client.release(before, 2, limit=1)
                client.rotate_keys()
                client.release(client.score(VECTOR), 2, limit=1)
