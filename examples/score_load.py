"""Load for a scoring server: many clients at a time, queries per second and latencies.

Run: python examples/score_load.py HOST:PORT CREDENTIALS_DIR [--clients 8] [--seconds 10] [--one-shot] [--params SET]

Every client has a connection and keys of its own, all under one certificate or token, so the server's limits for one
client hold for all of them together. Queries are encrypted before the clock starts and one answer in a hundred is
decrypted after it has stopped: what is measured is the server, as far as the cores of this machine allow.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np

from he_inference.client import TokenCredentials, load_credentials, scoring_server
from he_inference.client.connection import Connection
from he_inference.client.wishes import Wishes
from he_inference.exchange import Offer, chunks, offers_from_wire
from he_inference.scheme import SecretKey
from veil.wire.v1 import inference_pb2 as messages
from veil.wire.v1 import inference_pb2_grpc as stubs

_QUERIES = 8
_TIMEOUT_S = 60.0


@dataclass
class Client:
    """One client: its queries, and what became of them."""

    connection: Connection
    wishes: Wishes
    latencies_s: list[float] = field(default_factory=list)
    server_us: list[int] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    kept: list[tuple[int, list[bytes]]] = field(default_factory=list)

    def prepare(self, seed: int) -> None:
        """Connects, registers keys, encrypts queries."""
        self._channel = self.connection.open()
        self._stub = stubs.InferenceServiceStub(self._channel)
        asked = self._stub.GetParameters(messages.GetParametersRequest(), timeout=_TIMEOUT_S)
        self.offer: Offer = self.wishes.choose(offers_from_wire(asked, self.connection.peer), self.connection.peer)
        layout = self.offer.layout
        self._secret = SecretKey(layout.parameters)
        digest = b""
        if layout.galois_elements:
            keys = self._secret.evaluation_keys(layout.galois_elements)
            pieces = [
                messages.RegisterKeysRequest(
                    parameters_digest=b"" if number else self.offer.parameters_digest, payload=piece
                )
                for number, piece in enumerate(chunks(keys))
            ]
            digest = self._stub.RegisterKeys(iter(pieces), timeout=_TIMEOUT_S).key_digest
        vectors = np.random.default_rng(seed).normal(size=(_QUERIES, layout.dimensions))
        self._vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        self._requests = [
            messages.ScoreRequest(
                key_digest=digest,
                query=self._secret.encrypt(layout.query_polynomials(vector)),
                offer_digest=self.offer.offer_digest,
            )
            for vector in self._vectors
        ]

    def run(self, until: float) -> None:
        """Asks one query after the other until the clock says so."""
        number = 0
        while time.perf_counter() < until:
            which = number % _QUERIES
            request = self._requests[which]
            request.request_id = secrets.token_bytes(16)
            started = time.perf_counter()
            try:
                parts = list(self._stub.Score(request, timeout=_TIMEOUT_S))
            except grpc.RpcError as error:
                self.failures[error.code().name] += 1
                time.sleep(0.05)
            else:
                self.latencies_s.append(time.perf_counter() - started)
                self.server_us.append(parts[-1].compute_us)
                self.batches.append(parts[-1].batch_queries)
                if number % 100 == 0:
                    self.kept.append((which, [data for part in parts for data in part.results]))
            number += 1

    def check(self) -> int:
        """How many of the answers that were kept differ from another answer to the same vector, beyond the error."""
        layout = self.offer.layout
        first: dict[int, np.ndarray] = {}
        wrong = 0
        for which, results in self.kept:
            scores = layout.scores(*self._secret.decrypt(results, layout.coefficient_places()))
            same = first.setdefault(which, scores)
            # a score of unit vectors is at most 1: noise from wrong keys or a wrong index is far beyond
            bound = layout.parameters.score_error
            wrong += bool(np.abs(scores).max() > 1 + bound or np.abs(scores - same).max() > 2 * bound)
        return wrong

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()


def main(arguments: list[str]) -> None:
    """Prints queries per second and latencies."""
    parser = argparse.ArgumentParser(description="Load for a scoring server.")
    parser.add_argument("address")
    parser.add_argument("credentials", type=Path)
    parser.add_argument("--server-name", default="main")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--one-shot", action="store_true", help="take a keyless offer")
    parser.add_argument("--params", help="parameter set to take")
    chosen = parser.parse_args(arguments)
    credentials = load_credentials(chosen.credentials)
    connection = Connection(chosen.address, credentials, scoring_server(credentials, chosen.server_name))
    wishes = Wishes(one_shot=chosen.one_shot, sets=[chosen.params] if chosen.params else None)
    clients = [Client(connection, wishes) for _ in range(chosen.clients)]
    try:
        for number, client in enumerate(clients):
            client.prepare(number)
        started = time.perf_counter()
        threads = [threading.Thread(target=client.run, args=(started + chosen.seconds,)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        report(clients, time.perf_counter() - started, "token" if isinstance(credentials, TokenCredentials) else "TLS")
    finally:
        for client in clients:
            client.close()


def report(clients: list[Client], elapsed_s: float, how: str) -> None:
    """One line each for rate, latencies, failures and wrong answers."""
    layout = clients[0].offer.layout
    latencies = np.array([value for client in clients for value in client.latencies_s])
    failures: Counter[str] = sum((client.failures for client in clients), Counter())
    print(
        f"{len(clients)} clients ({how}), {layout.items} x {layout.dimensions}, {layout.parameters.name}, {layout.kind}"
    )
    if len(latencies):
        p50, p90, p99 = 1000 * np.quantile(latencies, (0.5, 0.9, 0.99))
        server_ms = np.median([value for client in clients for value in client.server_us]) / 1000
        together = np.mean([value for client in clients for value in client.batches])
        print(f"{len(latencies) / elapsed_s:.1f} queries/s over {elapsed_s:.1f} s ({len(latencies)} answered)")
        print(f"latency ms: p50 {p50:.1f}, p90 {p90:.1f}, p99 {p99:.1f}, worst {1000 * latencies.max():.1f}")
        print(f"server ms a batch: {server_ms:.2f} (median), {together:.1f} queries in a batch (mean)")
    print("failures:", ", ".join(f"{name} {count}" for name, count in sorted(failures.items())) or "none")
    checked = sum(len(client.kept) for client in clients)
    print(f"wrong answers: {sum(client.check() for client in clients)} of {checked} that were decrypted")


if __name__ == "__main__":
    main(sys.argv[1:])
