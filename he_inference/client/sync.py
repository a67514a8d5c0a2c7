"""Recommendations from a scoring server that never learns what the user likes, for programs with threads.

    with ScoringClient("scores.example.org:7440", credentials, expect, key_dir) as client:
        for item in client.recommend(history=["1193", "661"], k=10):
            print(item.title, item.score)

Guarantee: history, user vector, scores and the secret key stay in this process; the server receives a ciphertext and,
in the session layout, evaluation keys. The server's identity is verified by TLS, its model by the signatures of the
parties, its parameters against the sets known here. Every error is a `VeilError`.

Scores decrypt with noise that depends on the secret key: hand them on by `release` only (docs/threat-model.md).
"""

from __future__ import annotations

import threading
import time
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
from veil.wire.status import from_rpc
from veil.wire.v1 import inference_pb2_grpc, model_pb2

Result = TypeVar("Result")


class ScoringClient:
    """A connection to one scoring server. Threads may share it."""

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
        """Connects on the first call.

        address: "host:port"; with `TokenCredentials`, the server's address for tokens. expect: identity of the server,
        role scoring. key_dir: mode 0700, made when absent; keys in it are encrypted when there is a `passphrase`. None:
        keys live in memory and end with this client. model_dir: where the client's part of models is kept (default:
        `key_dir`/models; without either, nowhere). require_signers: parties that must have signed the model beside
        those that its manifest names. one_shot: for a client that asks once: takes a keyless offer first, which needs
        no keys at the server. from_history: the server folds the encrypted history in, so that this client fetches
        ids and titles only, no numbers of the model. sets: parameter sets that will do, by name. timeout_s: of each
        method, retries included.
        """
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
        self._channel = self._connection.open()
        self._stub = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._lock = threading.Lock()
        self._closed = False

    @property
    def offer(self) -> Offer:
        """Parameter set, layout and model digest that are used; asked once, again after `refresh`."""
        return self._run(self._dialogue.offer())

    @property
    def items(self) -> Items:
        """Ids and titles of the items, verified; without the rest of the model where `from_history` needs none."""
        return self._run(self._dialogue.items())

    @property
    def fold_in(self) -> FoldIn:
        """From histories to user vectors, by the client's part of the model; see `model`."""
        return self._run(self._dialogue.fold_in())

    @property
    def model(self) -> ClientArtifact:
        """The client's part of the model, verified; fetched once, then read from `model_dir` by its digest."""
        return self.fold_in.model

    @property
    def last_query(self) -> QueryReport | None:
        """What the last query cost, in any thread; None before the first."""
        return self._dialogue.last_query

    @property
    def key_bytes(self) -> int:
        """Size of the evaluation keys that were registered; 0 before the first query, and for a keyless offer."""
        return self._dialogue.key_bytes

    @property
    def queries_left(self) -> int | None:
        """Queries that this client had left when the server was last asked for offers; None without a budget."""
        return self._dialogue.queries_left

    @property
    def linear(self) -> LinearClient:
        """Of a server with models on columns: what encodes rows for them, verified; see `he_inference.client.rows`."""
        return self._run(self._dialogue.linear())

    def card(self) -> model_pb2.ModelCard:
        """What the model is and what it cost, in the server's words; `model.manifest` says it with signatures."""
        return self._run(self._dialogue.card())

    def refresh(self) -> None:
        """Asks for offers and model anew at the next call; for a server whose model has changed."""
        self._dialogue.forget()

    def rotate_keys(self) -> None:
        """Makes a new secret key; the next query registers its evaluation keys. Releases are counted from 0 again."""
        self._run(self._dialogue.rotate())

    def score(self, vector: NDArray[np.floating]) -> Scores:
        """float32[items]: scores of all items for a user vector of this model, float[dimensions], any length.

        The error is at most `error` of the result. Raises `InputError` for a vector that does
        not fit, `StateError` when the server's model has changed, `QueryBudgetError` and `LimitError` when the server
        wants no more questions, `PeerLost` and `PeerError` when it cannot answer.
        """
        return self._run(self._dialogue.score(vector))

    def score_history(self, history: Sequence[str], *, skip_unknown: bool = False) -> Scores:
        """As `score`, for a history of item ids: folded in here, or by the server with `from_history`."""
        return self._run(self._dialogue.score_history(history, skip_unknown=skip_unknown))

    def recommend(
        self,
        history: Sequence[str],
        k: int = 10,
        *,
        exclude_seen: bool = True,
        skip_unknown: bool = False,
    ) -> list[Recommendation]:
        """The k best items for a history of item ids, best first; ties in the order of the catalogue.

        Raises `InputError` when k is not positive or, unless `skip_unknown`, when an id is not in the catalogue;
        otherwise as `score`.
        """
        talk = self._dialogue.recommend(history, k, exclude_seen=exclude_seen, skip_unknown=skip_unknown)
        return self._run(talk)

    def release(
        self,
        scores: Scores,
        k: int = 10,
        *,
        limit: int | None = None,
        exclude: Sequence[int] = (),
        proven: bool = False,
    ) -> ReleasedScores:
        """The k best of what `score` returned, fit to be shown to anyone; see `he_inference.client.release.release`."""
        return release(scores, k, self._dialogue.ring, limit=limit, exclude=exclude, proven=proven)

    def close(self) -> None:
        """Ends the connection; what is called later raises `StateError`."""
        self._closed = True
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._connection.peer}, {self._dialogue.ring!r})"

    def _run(self, talk: Conversation[Result]) -> Result:
        try:
            step = next(talk)
            while True:
                try:
                    answer = self._carry_out(step)
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

    def _carry_out(self, step: Step) -> Any:
        if isinstance(step, Work):
            return step.function()
        if isinstance(step, Pause):
            return time.sleep(step.seconds)
        if isinstance(step, Alone):
            with self._lock:
                return self._run(step.inner)
        try:
            return self._call(step)
        except grpc.RpcError as error:
            # gRPC's call object is also the exception that it raises
            code = getattr(error, "code", None)
            status: grpc.StatusCode = code() if callable(code) else grpc.StatusCode.UNKNOWN
            raise CallFailed(status, from_rpc(error, self._connection.peer)) from error

    def _call(self, step: Ask | Receive | Send) -> Any:
        if self._closed:
            raise StateError("got a call to a client that is closed, expected an open one")
        method: Any = getattr(self._stub, step.method)
        if isinstance(step, Ask):
            return method(step.request, timeout=step.timeout_s)
        if isinstance(step, Send):
            return method(iter(step.requests), timeout=step.timeout_s)
        call = method(step.request, timeout=step.timeout_s)
        try:
            for message in call:
                step.gathering.add(message)
        finally:
            # Nothing happens to a call that has ended; one that is given up must not go on.
            call.cancel()
        return step.gathering
