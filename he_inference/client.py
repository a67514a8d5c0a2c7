"""Recommendations from a scoring server that never learns what the user likes.

    with ScoringClient("scores.example.org:7440", credentials, expect, key_dir) as client:
        for item in client.recommend(history=["1193", "661"], k=10):
            print(item.title, item.score)

Guarantee: history, user vector, scores and the secret key stay in this process; the server receives a ciphertext and
evaluation keys. The server's identity is verified by TLS, its model by the signatures of the parties, its parameters
against the sets known here. Every error is a `VeilError`.

Scores decrypt with noise that depends on the secret key: do not send them, or anything computed from them at full
precision, back to the server or its operator (docs/threat-model.md).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from he_inference import exchange, seal_file
from he_inference.client_model import fetch
from he_inference.exchange import Terms
from he_inference.keys import KeyRing
from he_inference.scheme import CkksSession
from veil.errors import InputError, ProtocolMismatch, StateError
from veil.identity.credentials import Credentials
from veil.identity.names import Identity
from veil.recsys.artifact import ClientArtifact
from veil.wire.channel import open_channel
from veil.wire.status import translated
from veil.wire.v1 import inference_pb2, inference_pb2_grpc, model_pb2


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One item, with the score that the model gives it for this history."""

    item_id: str
    title: str
    score: float


@dataclass(frozen=True, slots=True)
class QueryReport:
    """What one query cost: bytes on the wire, seconds from call to scores, and the server's own arithmetic."""

    query_bytes: int
    response_bytes: int
    total_s: float
    server_s: float


class ScoringClient:
    """A connection to one scoring server. Threads may share it."""

    def __init__(
        self,
        address: str,
        credentials: Credentials,
        expect: Identity,
        key_dir: Path,
        *,
        passphrase: bytes | None = None,
        model_dir: Path | None = None,
        require_signers: Sequence[Identity] | None = None,
        timeout_s: float = 60.0,
    ) -> None:
        """Connects on the first call.

        address: "host:port". expect: identity of the server, role scoring. key_dir: mode 0700, made when absent; keys
        in it are encrypted when there is a `passphrase`. model_dir: where the client's part of models is kept (default:
        `key_dir`/models). require_signers: parties that must have signed the model beside those that its manifest
        names. timeout_s: of each call.
        """
        self._keys = KeyRing(key_dir, passphrase)
        self._models = model_dir or key_dir / "models"
        self._credentials = credentials
        self._signers = require_signers
        self._peer = expect.uri
        self._timeout_s = timeout_s
        self._channel = open_channel(address, credentials, expect)
        self._stub = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._lock = threading.RLock()
        self._terms: Terms | None = None
        self._session: CkksSession | None = None
        self._artifact: ClientArtifact | None = None
        self._numbers: dict[str, int] = {}
        self._key_digest: bytes | None = None
        self._key_bytes = 0
        self._last: QueryReport | None = None

    @property
    def terms(self) -> Terms:
        """Parameter set, layout and model digest of the server; asked once, again after `refresh`."""
        with self._lock:
            if self._terms is None:
                with translated(self._peer):
                    message = self._stub.GetParameters(inference_pb2.GetParametersRequest(), timeout=self._timeout_s)
                self._terms = exchange.terms_from_wire(message, self._peer)
            return self._terms

    @property
    def model(self) -> ClientArtifact:
        """The client's part of the model, verified; fetched once, then read from `model_dir` by its digest."""
        with self._lock:
            terms = self.terms
            if self._artifact is None:
                self._artifact = fetch(
                    self._stub,
                    terms,
                    self._models,
                    self._credentials.authority_pem,
                    peer=self._peer,
                    require_signers=self._signers,
                    timeout_s=self._timeout_s,
                )
                self._numbers = {item: number for number, item in enumerate(self._artifact.ids)}
            return self._artifact

    @property
    def last_query(self) -> QueryReport | None:
        """What the last query cost, in any thread; None before the first."""
        return self._last

    @property
    def key_bytes(self) -> int:
        """Size of the evaluation keys that were registered; 0 before the first query."""
        return self._key_bytes

    def card(self) -> model_pb2.ModelCard:
        """What the model is and what it cost, in the server's words; `model.manifest` says it with signatures."""
        with translated(self._peer):
            return self._stub.GetModelCard(inference_pb2.GetModelCardRequest(), timeout=self._timeout_s).card

    def refresh(self) -> None:
        """Asks for parameters and model anew at the next call; for a server whose model has changed."""
        with self._lock:
            self._terms = self._artifact = self._session = self._key_digest = None

    def rotate_keys(self) -> None:
        """Makes a new secret key; the next query registers its evaluation keys."""
        with self._lock:
            self._keys.rotate(self.terms.layout.parameters)
            self._session = self._key_digest = None

    def score(self, vector: NDArray[np.floating]) -> NDArray[np.float32]:
        """float32[items]: scores of all items for a user vector of this model, float[dimensions], any length.

        The error is at most `terms.score_error` times the vector's norm. Raises `InputError` for a vector that does
        not fit, `StateError` when the server's model has changed, `PeerLost` and `PeerError` when it cannot answer.
        """
        started = time.perf_counter()
        terms = self.terms
        unit, norm = _unit(vector)
        packed = terms.layout.pack_query(unit)
        session, digest = self._registered()
        query = session.encrypt(packed)
        try:
            ciphertexts, server_us = self._ask(terms, digest, query)
        except StateError:
            # The server does not know the keys (any more): once more with keys that it has just been sent.
            with self._lock:
                self._key_digest = None
            session, digest = self._registered()
            ciphertexts, server_us = self._ask(terms, digest, query)
        scores = terms.layout.unpack([session.decrypt(ciphertext) for ciphertext in ciphertexts])
        self._last = QueryReport(len(query), sum(map(len, ciphertexts)), time.perf_counter() - started, server_us / 1e6)
        return np.asarray(scores * (norm * terms.item_norm), dtype=np.float32)

    def recommend(
        self,
        history: Sequence[str],
        k: int = 10,
        *,
        exclude_seen: bool = True,
        skip_unknown: bool = False,
    ) -> list[Recommendation]:
        """The k best items for a history of item ids, best first; ties in the order of the catalogue.

        Raises `InputError` when k is not positive or, unless `skip_unknown`, when an id is not in the catalogue.
        """
        if k < 1:
            raise InputError(f"got k = {k}, expected at least 1")
        try:
            return self._recommend(history, k, exclude_seen, skip_unknown)
        except StateError:
            # A new model on the server: its own fold-in makes the vector that its items go with.
            self.refresh()
            return self._recommend(history, k, exclude_seen, skip_unknown)

    def _recommend(
        self, history: Sequence[str], k: int, exclude_seen: bool, skip_unknown: bool
    ) -> list[Recommendation]:
        model = self.model
        numbers = self.item_numbers(history, skip_unknown=skip_unknown)
        scores = self.score(model.fold_in.user_vector(numbers))
        if exclude_seen:
            scores[numbers] = -np.inf
        order = np.argsort(-scores, kind="stable")[:k]
        return [
            Recommendation(model.ids[number], model.titles[number], float(scores[number]))
            for number in order
            if np.isfinite(scores[number])
        ]

    def item_numbers(self, history: Sequence[str], *, skip_unknown: bool = False) -> NDArray[np.int64]:
        """int64[n]: numbers of the items of a history. Raises `InputError` for ids that the catalogue does not have."""
        if isinstance(history, str):
            raise InputError("got one text as a history, expected a list of item ids")
        _ = self.model
        unknown = [place for place, item in enumerate(history, 1) if item not in self._numbers]
        if unknown and not skip_unknown:
            places = ", ".join(map(str, unknown[:10])) + (", …" if len(unknown) > 10 else "")
            raise InputError(
                f"got {len(unknown)} item ids that the catalogue does not have (entries {places} of the history)",
                hint="ids are those of items.jsonl in the published model; or skip unknown ones",
            )
        return np.array([self._numbers[item] for item in history if item in self._numbers], dtype=np.int64)

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"ScoringClient({self._peer}, {self._keys!r})"

    def _registered(self) -> tuple[CkksSession, bytes]:
        """The secret key, and the digest under which the server knows its evaluation keys."""
        with self._lock:
            terms = self.terms
            chosen = terms.layout.parameters
            if self._session is None:
                self._session = self._keys.session(chosen)
            if self._key_digest is None:
                keys = self._keys.evaluation_keys(chosen, terms.layout.galois_elements)
                with translated(self._peer):
                    answer = self._stub.RegisterKeys(_pieces(terms, keys), timeout=self._timeout_s)
                if answer.key_digest != exchange.key_digest(terms.parameters_digest, keys):
                    raise ProtocolMismatch(f"{self._peer} stored other keys than it was sent", culprits=(self._peer,))
                self._key_digest, self._key_bytes = answer.key_digest, len(keys)
            return self._session, self._key_digest

    def _ask(self, terms: Terms, key_digest: bytes, query: bytes) -> tuple[list[bytes], int]:
        """The ciphertexts of all blocks, and the server's own microseconds."""
        ciphertexts: list[bytes] = []
        compute_us = 0
        limit = terms.layout.parameters.max_response_bytes
        request = inference_pb2.ScoreRequest(key_digest=key_digest, query=query)
        with translated(self._peer):
            for message in self._stub.Score(request, timeout=self._timeout_s):
                if message.manifest_digest != terms.manifest_digest:
                    raise StateError(
                        "got scores of another model than the one that was fetched", hint="call refresh() and ask again"
                    )
                fits = message.first_block == len(ciphertexts) and message.ciphertexts
                if not fits or len(ciphertexts) + len(message.ciphertexts) > terms.layout.blocks:
                    raise ProtocolMismatch(f"{self._peer} sent blocks out of order or too many", culprits=(self._peer,))
                for ciphertext in message.ciphertexts:
                    seal_file.check(ciphertext, "a response", limit_bytes=limit)
                ciphertexts.extend(message.ciphertexts)
                compute_us = message.compute_us
        return ciphertexts, compute_us


def _unit(vector: NDArray[np.floating]) -> tuple[NDArray[np.float64], float]:
    """A vector of norm 1 (or 0) and the norm that was taken out."""
    values = np.asarray(vector, dtype=np.float64)
    if not np.all(np.isfinite(values)):
        raise InputError("got a user vector with NaN or infinity, expected finite numbers")
    norm = float(np.linalg.norm(values))
    return (values / norm if norm > 0 else values), norm


def _pieces(terms: Terms, keys: bytes) -> Iterator[inference_pb2.RegisterKeysRequest]:
    for number, piece in enumerate(exchange.chunks(keys)):
        digest = terms.parameters_digest if number == 0 else b""
        yield inference_pb2.RegisterKeysRequest(parameters_digest=digest, payload=piece)
