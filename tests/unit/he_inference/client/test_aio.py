"""The client for event loops: the same answers, retries and refusals, and many questions at a time."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import grpc
import numpy as np
import pytest

from he_inference.client import AsyncScoringClient, TokenCredentials
from tests.unit.he_inference.client.conftest import QUICK, TOKEN
from tests.unit.he_inference.client.desk import DIMENSIONS, ITEMS, SERVER, Desk
from veil.errors import IdentityError, InputError, PeerLost, QueryBudgetError, StateError
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.wire.channel import RunningServer

VECTOR = np.linspace(-1.0, 1.5, DIMENSIONS)
BUSY = grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.fixture
def client(desk: Desk, running: RunningServer, anna: Credentials, tmp_path: Path) -> AsyncScoringClient:
    """Connects in the loop that first asks it; every test closes it there."""
    return AsyncScoringClient(running.address, anna, SERVER, tmp_path / "keys", retries=QUICK, timeout_s=20.0)


def test_scores_recommendations_and_releases(client: AsyncScoringClient, desk: Desk) -> None:
    async def talk() -> None:
        async with client:
            scores = await client.score(VECTOR)
            bound = (await client.offer()).score_error * float(np.linalg.norm(VECTOR))
            assert np.abs(scores - desk.truth(VECTOR)).max() < bound
            found = await client.recommend(["1005", "1017"], k=3)
            truth = desk.truth(desk.model.user_vector([5, 17]))
            truth[[5, 17]] = -np.inf
            assert [one.item_id for one in found] == [str(1000 + n) for n in np.argsort(-truth)[:3]]
            assert (await client.release(scores, 5)).releases_left == 31
            vector = (await client.fold_in()).user_vector(["1001"])
            assert vector.shape == (DIMENSIONS,) and (await client.model()).digest
            assert (await client.card()).items == ITEMS
            await client.rotate_keys()
            await client.score(VECTOR)
            assert desk.registrations == 2
            with pytest.raises(InputError):
                await client.score(np.zeros(2))
        with pytest.raises(StateError, match="closed"):
            await client.card()

    asyncio.run(talk())


def test_a_retry_is_the_same_bytes_under_the_same_id(client: AsyncScoringClient, desk: Desk) -> None:
    async def talk() -> None:
        async with client:
            await client.score(VECTOR)
            desk.seen.clear()
            desk.faults = [(grpc.StatusCode.UNAVAILABLE, None), (BUSY, None)]
            await client.score(VECTOR)
            assert len(desk.seen) == 3 and len({(seen.request_id, seen.query) for seen in desk.seen}) == 1
            desk.faults = [(BUSY, QueryBudgetError("spent"))]
            with pytest.raises(QueryBudgetError):
                await client.score(VECTOR)
            desk.keys.clear()
            await client.score(VECTOR)

    asyncio.run(talk())


def test_many_tasks_share_a_client_and_the_loop_stays_free(client: AsyncScoringClient, desk: Desk) -> None:
    async def talk() -> None:
        longest, over = 0.0, False

        async def watch() -> None:
            nonlocal longest
            while not over:
                before = time.perf_counter()
                await asyncio.sleep(0.005)
                longest = max(longest, time.perf_counter() - before)

        async with client:
            watching = asyncio.create_task(watch())
            desk.delay_s = 1.0
            answers = await asyncio.gather(*(client.score(VECTOR) for _ in range(8)))
            over = True
            await watching
        assert len(answers) == 8 and desk.registrations == 1 and desk.parameters_asked == 1
        # the server sleeps a second in each call; a loop that waited for one of them would show it
        assert longest < 0.9

    asyncio.run(talk())


def test_a_cancelled_task_cancels_its_call(client: AsyncScoringClient, desk: Desk) -> None:
    async def talk() -> None:
        async with client:
            await client.score(VECTOR)
            desk.delay_s = 1.0
            task = asyncio.create_task(client.score(VECTOR))
            await asyncio.sleep(0.3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            desk.delay_s = 0.0
            assert (await client.score(VECTOR)).shape == (ITEMS,)

    asyncio.run(talk())


def test_a_deadline_ends_the_wait(running: RunningServer, anna: Credentials, tmp_path: Path, desk: Desk) -> None:
    async def talk() -> None:
        async with AsyncScoringClient(running.address, anna, SERVER, tmp_path / "keys", timeout_s=2.0) as hurried:
            await hurried.score(VECTOR)
            desk.delay_s = 5.0
            with pytest.raises(PeerLost, match="deadline"):
                await hurried.score(VECTOR)

    asyncio.run(talk())


def test_identity_is_checked_and_the_difference_is_told(
    running: RunningServer, anna: Credentials, tmp_path: Path, desk: Desk
) -> None:
    other = Identity("trial", Role.SCORING, "other")

    async def talk() -> None:
        async with AsyncScoringClient(running.address, anna, other, tmp_path / "keys", timeout_s=10.0) as client:
            with pytest.raises(IdentityError, match="other"):
                await client.score(VECTOR)

    asyncio.run(talk())
    assert desk.parameters_asked == 0


def test_tokens(running: RunningServer, anna: Credentials, tmp_path: Path, desk: Desk) -> None:
    async def talk(token: str) -> int:
        credentials = TokenCredentials(anna.authority_pem, token)
        where = str(running.token_address)
        async with AsyncScoringClient(where, credentials, SERVER, tmp_path / "keys", timeout_s=10.0) as client:
            return len(await client.recommend(["1001"], k=4))

    assert asyncio.run(talk(TOKEN)) == 4
    with pytest.raises(IdentityError):
        asyncio.run(talk("another-token-0123456789"))
