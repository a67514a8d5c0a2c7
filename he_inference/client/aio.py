"""Recommendations from a scoring server that never learns what the user likes, for programs with an event loop.

    async with AsyncScoringClient("scores.example.org:7440", credentials, expect, key_dir) as client:
        for item in await client.recommend(history=["1193", "661"], k=10):
            print(item.title, item.score)

Guarantee: that of `he_inference.client.sync`; and the loop is never kept waiting: encryption, decryption and files are
worked on in threads. A task that is cancelled cancels its call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
import numpy as np
from numpy.typing import NDArray

from he_inference.client.connection import Connection, TokenCredentials
from he_inference.client.conversation import Dialogue
from he_inference.client.fold_in import FoldIn, Items
from he_inference.client.linear import LinearClient
from he_inference.client.open import dialogue
from he_inference.client.query import QueryReport, Recommendation
from he_inference.client.release import ReleasedScores, release
from he_inference.client.scores import Scores
from he_inference.client.steps import Alone, Ask, CallFailed, Conversation, Pause, Receive, Retries, Send, Step, Work
from he_inference.exchange import Offer
from veil.errors import StateError, VeilError
from veil.identity.credentials import Credentials
from veil.identity.names import Identity
from veil.recsys.artifact import ClientArtifact
from veil.wire.aio import translated
from veil.wire.v1 import inference_pb2_grpc, model_pb2

Result = TypeVar("Result")


class AsyncScoringClient:
    """A connection to one scoring server, for the tasks of one event loop. Arguments as `ScoringClient`."""

    def __init__(
        self,
        address: str,
        credentials: Credentials | TokenCredentials,
        expect: Identity,
        key_dir: Path | None,
        *,
        passphrase: bytes | None = None,
        model_dir: Path | None = None,
        require_signers: Sequence[Identity] | None = None,
        one_shot: bool = False,
        from_history: bool = False,
        sets: Collection[str] | None = None,
        retries: Retries = Retries(),  # noqa: B008 - frozen
        timeout_s: float = 60.0,
    ) -> None:
        """Connects on the first call, to the loop that it is made in."""
        self._connection = Connection(address, credentials, expect)
        self._dialogue: Dialogue = dialogue(
            self._connection,
            key_dir,
            passphrase,
            model_dir,
            require_signers,
            one_shot,
            from_history,
            sets,
            retries,
            timeout_s,
        )
        self._channel: grpc.aio.Channel | None = None
        self._stub: Any = None
        self._lock = asyncio.Lock()
        self._closed = False

    async def offer(self) -> Offer:
        """See `ScoringClient.offer`."""
        return await self._run(self._dialogue.offer())

    async def items(self) -> Items:
        """See `ScoringClient.items`."""
        return await self._run(self._dialogue.items())

    async def fold_in(self) -> FoldIn:
        """See `ScoringClient.fold_in`."""
        return await self._run(self._dialogue.fold_in())

    async def model(self) -> ClientArtifact:
        """See `ScoringClient.model`."""
        return (await self.fold_in()).model

    @property
    def last_query(self) -> QueryReport | None:
        """See `ScoringClient.last_query`."""
        return self._dialogue.last_query

    @property
    def key_bytes(self) -> int:
        """See `ScoringClient.key_bytes`."""
        return self._dialogue.key_bytes

    @property
    def queries_left(self) -> int | None:
        """See `ScoringClient.queries_left`."""
        return self._dialogue.queries_left

    async def linear(self) -> LinearClient:
        """See `ScoringClient.linear`."""
        return await self._run(self._dialogue.linear())

    async def card(self) -> model_pb2.ModelCard:
        """See `ScoringClient.card`."""
        return await self._run(self._dialogue.card())

    def refresh(self) -> None:
        """See `ScoringClient.refresh`."""
        self._dialogue.forget()

    async def rotate_keys(self) -> None:
        """See `ScoringClient.rotate_keys`."""
        await self._run(self._dialogue.rotate())

    async def score(self, vector: NDArray[np.floating]) -> Scores:
        """See `ScoringClient.score`."""
        return await self._run(self._dialogue.score(vector))

    async def score_history(self, history: Sequence[str], *, skip_unknown: bool = False) -> Scores:
        """See `ScoringClient.score_history`."""
        return await self._run(self._dialogue.score_history(history, skip_unknown=skip_unknown))

    async def recommend(
        self,
        history: Sequence[str],
        k: int = 10,
        *,
        exclude_seen: bool = True,
        skip_unknown: bool = False,
    ) -> list[Recommendation]:
        """See `ScoringClient.recommend`."""
        talk = self._dialogue.recommend(history, k, exclude_seen=exclude_seen, skip_unknown=skip_unknown)
        return await self._run(talk)

    async def release(
        self,
        scores: Scores,
        k: int = 10,
        *,
        limit: int | None = None,
        exclude: Sequence[int] = (),
        proven: bool = False,
    ) -> ReleasedScores:
        """See `ScoringClient.release`."""
        ring = self._dialogue.ring
        return await asyncio.to_thread(lambda: release(scores, k, ring, limit=limit, exclude=exclude, proven=proven))

    async def close(self) -> None:
        """Ends the connection and cancels calls under way; what is called later raises `StateError`."""
        self._closed = True
        if self._channel is not None:
            await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._connection.peer}, {self._dialogue.ring!r})"

    async def _run(self, talk: Conversation[Result]) -> Result:
        try:
            step = next(talk)
            while True:
                try:
                    answer = await self._carry_out(step)
                except (CallFailed, VeilError) as error:
                    step = talk.throw(error)
                else:
                    step = talk.send(answer)
        except StopIteration as end:
            result: Result = end.value
            return result
        except CallFailed as failed:
            raise failed.error from failed.__cause__
        finally:
            talk.close()

    async def _carry_out(self, step: Step) -> Any:
        if isinstance(step, Work):
            return await asyncio.to_thread(step.function)
        if isinstance(step, Pause):
            return await asyncio.sleep(step.seconds)
        if isinstance(step, Alone):
            async with self._lock:
                return await self._run(step.inner)
        try:
            async with translated(self._connection.peer, self._connection.route):
                return await self._call(step)
        except VeilError as error:
            cause = error.__cause__
            if not isinstance(cause, grpc.RpcError):
                raise
            status = cause.code() if isinstance(cause, grpc.aio.AioRpcError) else grpc.StatusCode.UNKNOWN
            raise CallFailed(status, error) from cause

    async def _call(self, step: Ask | Receive | Send) -> Any:
        if self._closed:
            raise StateError("got a call to a client that is closed, expected an open one")
        if self._channel is None:
            self._channel = self._connection.open_async()
            self._stub = inference_pb2_grpc.InferenceServiceStub(self._channel)
        method = getattr(self._stub, step.method)
        if isinstance(step, Ask):
            return await method(step.request, timeout=step.timeout_s)
        if isinstance(step, Send):
            return await method(list(step.requests), timeout=step.timeout_s)
        call = method(step.request, timeout=step.timeout_s)
        try:
            async for message in call:
                step.gathering.add(message)
        finally:
            # Nothing happens to a call that has ended; one that is given up must not go on.
            call.cancel()
        return step.gathering
