"""Canary queries: random vectors and histories of our own, asked as a client asks, compared with plaintext scores.

    python -m he_inference.canary --config scoring.toml [--address HOST:PORT] [--rounds N]

Guarantee: the secret key here protects nothing, since it encrypts random numbers only, and it is nobody else's; users'
queries are never seen. Each round asks each of the server's offers once, with a fresh random unit vector or a fresh
random history as the offer takes it (`he_inference.canary_question`), and states the largest error of a score, for
items scaled to a longest norm of 1 as the stated bound is, and how many of the ten best items by plaintext were found.
An answer out of bound, of the wrong shape or of another model counts as a failure, is logged, and ends nothing.
"""

from __future__ import annotations

import argparse
import logging
import secrets
import signal
import sys
import threading
import time
from pathlib import Path

import grpc
import numpy as np
from numpy.typing import NDArray

from he_inference import exchange
from he_inference.canary_question import Question, judged, question
from he_inference.exchange import Offer
from he_inference.layouts.catalogue import key_bytes, result_bytes
from he_inference.scheme import SecretKey
from he_inference.service import journal
from he_inference.service.canary_process import CanarySettings
from he_inference.service.config import ScoringConfig, load
from he_inference.service.metrics import OK, CanaryMetrics, outcome_of
from he_inference.service.published import PublishedModel, open_model
from veil.errors import ArtifactError, ConfigError, ProtocolMismatch, StateError, VeilError
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.wire.channel import open_channel
from veil.wire.limits import split_address
from veil.wire.status import translated
from veil.wire.v1 import inference_pb2, inference_pb2_grpc

_TIMEOUT_S = 120.0
_ROWS_AT_A_TIME = 1 << 16
_Floats = NDArray[np.float64]
_log = logging.getLogger("veil.he_inference.canary")


class Asker:
    """Asks one server, as a client with a certificate."""

    def __init__(self, address: str, credentials: Credentials, expect: Identity) -> None:
        if credentials.identity.role is not Role.CLIENT:
            raise ConfigError(f"got credentials of role {credentials.identity.role} for a canary, expected client")
        self._peer = expect.uri
        self._channel = open_channel(address, credentials, expect)
        self._stub = inference_pb2_grpc.InferenceServiceStub(self._channel)
        self._keys: dict[str, SecretKey] = {}
        self._registered: dict[bytes, bytes] = {}

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()

    def offers(self) -> list[Offer]:
        """What the server offers now."""
        with translated(self._peer):
            answer = self._stub.GetParameters(inference_pb2.GetParametersRequest(), timeout=_TIMEOUT_S)
        return exchange.offers_from_wire(answer, self._peer)

    def outputs(self, offer: Offer, entries: _Floats) -> _Floats:
        """What `Layout.scores` gives for the query of what `Layout.query_polynomials` takes."""
        parameters = offer.layout.parameters
        secret = self._keys.get(parameters.name)
        if secret is None:
            secret = self._keys[parameters.name] = SecretKey(parameters)
        query = secret.encrypt(offer.layout.query_polynomials(entries))
        try:
            results = self._ask(offer, secret, query)
        except StateError:
            # keys that the server has dropped, or lost with its disk
            self._registered.pop(offer.parameters_digest, None)
            results = self._ask(offer, secret, query)
        numbers, bits = secret.decrypt(results, offer.layout.coefficient_places())
        return offer.layout.scores(numbers, bits)

    def _ask(self, offer: Offer, secret: SecretKey, query: bytes) -> list[bytes]:
        layout = offer.layout
        request = inference_pb2.ScoreRequest(
            key_digest=self._register(offer, secret) if key_bytes(layout) else b"",
            query=query,
            offer_digest=offer.offer_digest,
            request_id=secrets.token_bytes(exchange.REQUEST_ID_BYTES),
        )
        results: list[bytes] = []
        with translated(self._peer):
            for part in self._stub.Score(request, timeout=_TIMEOUT_S):
                results.extend(part.results)
                if len(results) > layout.blocks or part.manifest_digest != offer.manifest_digest:
                    break
        if len(results) != layout.blocks or any(len(result) != result_bytes(layout) for result in results):
            raise ProtocolMismatch(
                f"{self._peer}: got {len(results)} results, expected {layout.blocks} of {result_bytes(layout)} bytes",
                culprits=(self._peer,),
            )
        return results

    def _register(self, offer: Offer, secret: SecretKey) -> bytes:
        known = self._registered.get(offer.parameters_digest)
        if known is None:
            keys = secret.evaluation_keys(offer.layout.galois_elements)
            pieces = (
                inference_pb2.RegisterKeysRequest(
                    parameters_digest=b"" if number else offer.parameters_digest, payload=piece
                )
                for number, piece in enumerate(exchange.chunks(keys))
            )
            with translated(self._peer):
                known = self._stub.RegisterKeys(pieces, timeout=_TIMEOUT_S).key_digest
            self._registered[offer.parameters_digest] = known
        return known


class Plaintext:
    """The model as it was published. directory, authority, signers: as for the server."""

    def __init__(
        self, directory: Path, authority_pem: bytes, signers: list[Identity], *, linear_part: bool = False
    ) -> None:
        self._source = (directory, authority_pem, signers)
        self._linear_part = linear_part
        self._model: PublishedModel | None = None

    def scores(self, offer: Offer, asked: Question) -> _Floats:
        """float64[items], of items scaled by `item_norm`, 0 of removed ones; raises `ArtifactError` when the directory
        holds another model than the server serves."""
        model = self._of(offer)
        vector = asked.entries
        if asked.history is not None:
            vector = model.recommender.user_vector(asked.history).astype(np.float64)
        rows = model.factors
        parts = [
            rows[start : start + _ROWS_AT_A_TIME].astype(np.float64) @ vector
            for start in range(0, len(rows), _ROWS_AT_A_TIME)
        ]
        scores: _Floats = np.concatenate(parts) / offer.item_norm
        scores[list(offer.removed)] = 0.0
        return scores

    def learned(self, offer: Offer) -> NDArray[np.int64]:
        """int64[n]: numbers of the items that say something about a user, all of them where none does; raises as
        `scores`. Of others a history has no direction, and the bound of its scores is as wide as they are."""
        model = self._of(offer).model
        found = np.empty(0, np.int64) if model is None else np.flatnonzero(model.norm_terms[:, 0] > 0)
        return found if len(found) else np.arange(offer.layout.items)

    def _of(self, offer: Offer) -> PublishedModel:
        if self._model is None or offer.manifest_digest != self._model.manifest_digest:
            self._model = open_model(*self._source, linear_part=self._linear_part)
            self._model.close()
        shape = (offer.layout.items, offer.layout.dimensions)
        if offer.manifest_digest != self._model.manifest_digest or self._model.factors.shape != shape:
            raise ArtifactError("got answers of another model than the one in the directory, expected the same")
        return self._model


def one_round(asker: Asker, plaintext: Plaintext, metrics: CanaryMetrics, log: journal.Journal) -> bool:
    """Asks each offer once; whether all answers were as they should be. Raises nothing that a server can cause."""
    try:
        offers = asker.offers()
    except VeilError as error:
        metrics.outcome(outcome_of(error))
        log.write("canary_failed", level=logging.ERROR, code=outcome_of(error))
        return False
    # not a list in a condition: every offer is asked, whatever the one before it said
    return all([_one_query(asker, plaintext, offer, metrics, log) for offer in offers])


def _one_query(asker: Asker, plaintext: Plaintext, offer: Offer, metrics: CanaryMetrics, log: journal.Journal) -> bool:
    layout = offer.layout
    kind, name = layout.kind, layout.parameters.name
    try:
        asked = question(offer, plaintext.learned(offer))
        expected = plaintext.scores(offer, asked)
        start = time.perf_counter()
        outputs = asker.outputs(offer, asked.entries)
        seconds = time.perf_counter() - start
        found = judged(offer, asked, outputs, expected)
    except VeilError as error:
        metrics.outcome(outcome_of(error))
        log.write("canary_failed", level=logging.ERROR, code=outcome_of(error), layout=kind, parameters=name)
        return False
    metrics.outcome(OK)
    metrics.measured(
        layout, error=found.error, bound=found.bound, recall=found.recall, seconds=seconds, held=found.held
    )
    log.write(
        "canary_answered" if found.held else "canary_failed",
        level=logging.INFO if found.held else logging.ERROR,
        score_error=found.error,
        top10_recall=found.recall,
        total_us=int(seconds * 1e6),
        layout=kind,
        parameters=name,
    )
    return found.held


def run(config: ScoringConfig, settings: CanarySettings, address: str, stop: threading.Event, rounds: int = 0) -> bool:
    """Asks every `settings.every_s` seconds until `stop` is set, or that many rounds; whether all were right."""
    credentials = Credentials.load(settings.credentials)
    expect = Credentials.load(config.credentials).identity
    signers = [Identity(expect.consortium, Role.PARTY, name) for name in config.require_signers]
    plaintext = Plaintext(config.model, credentials.authority_pem, signers, linear_part=config.linear_part)
    metrics, log = CanaryMetrics(), journal.Journal(_log)
    asker = Asker(address, credentials, expect)
    endpoint = metrics.serve(settings.metrics.listen) if settings.metrics.listen is not None else None
    right, done = True, 0
    try:
        while not stop.is_set():
            right &= one_round(asker, plaintext, metrics, log)
            done += 1
            if rounds and done >= rounds:
                break
            stop.wait(settings.every_s)
    finally:
        asker.close()
        if endpoint is not None:
            endpoint.close()
    return right


def reachable(address: str) -> str:
    """Where to reach a server on this machine that listens at `address`: loopback in place of every interface."""
    host, port = split_address(address)
    if port == 0:
        raise ConfigError("got port 0, which the system replaces by a free one", hint="give --address")
    every = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104
    return f"{every[host]}:{port}" if host in every else address


def _until_alone(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()


def main() -> int:
    """Entry point: 0 when every answer was right."""
    parser = argparse.ArgumentParser(prog="python -m he_inference.canary", description="Canary queries.")
    parser.add_argument("--config", type=Path, required=True, help="the server's TOML file, with a table [canary]")
    parser.add_argument("--address", help="where the server listens, host:port; default: as its file says")
    parser.add_argument("--rounds", type=int, default=0, help="end after so many rounds; 0: when told to")
    arguments = parser.parse_args()
    journal.install()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    if not sys.stdin.isatty() and not arguments.rounds:
        # whoever started us holds the other end: when it ends, so do we
        threading.Thread(target=_until_alone, args=(stop,), daemon=True).start()
    try:
        config = load(arguments.config)
        if config.canary is None:
            raise ConfigError("got no table [canary], expected one", hint="deploy/scoring.toml explains its keys")
        address = arguments.address or reachable(config.listen)
        return 0 if run(config, config.canary, address, stop, arguments.rounds) else 1
    except (VeilError, grpc.RpcError) as error:
        # this process is an operator's own tool: its last words may be a sentence
        sys.stderr.write(f"canary: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
