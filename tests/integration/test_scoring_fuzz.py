"""Hostile bytes at a real scoring server: every call is answered with a status of our own, and the server lives.

VEIL_FUZZ_INPUTS chooses how many (default 2,000; 100,000 take some minutes), VEIL_FUZZ_SEED which. What is sent is not
made by our client: raw bytes of requests, changed field by field or byte by byte, in any number of pieces.
"""

from __future__ import annotations

import os
import resource
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from he_inference.service.config import Load
from he_inference.service.limits import LimitSettings
from he_inference.service.server import ScoringServer, start
from tests.integration.scoring_site import ANNA, SERVER, Raw, Site, unit_vector
from veil.wire.channel import open_channel
from veil.wire.v1 import inference_pb2 as messages

pytestmark = pytest.mark.integration

INPUTS = int(os.environ.get("VEIL_FUZZ_INPUTS", "2000"))
SEED = int(os.environ.get("VEIL_FUZZ_SEED", "0"))
THREADS = 6
SERVICE = "/veil.wire.v1.InferenceService/"
# What a call may end with: answered, refused for what it says, or for how often it comes. Nothing else.
EXPECTED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


@pytest.fixture(scope="module")
def server(site: Site) -> Iterator[ScoringServer]:
    limits = LimitSettings(
        per_client_rate_s=1e6,
        per_client_burst=1_000_000,
        overall_rate_s=1e6,
        overall_burst=1_000_000,
        lookup_rate_s=1e6,
        lookup_burst=1_000_000,
        stream_rate_s=1e6,
        stream_burst=1_000_000,
    )
    config = site.config(site.folder, offers=("fast", "keyless"), load=Load(threads=1), limits=limits)
    with start(config) as running:
        yield running


class Forger:
    """Requests that are nearly right."""

    def __init__(self, seed: int, clients: list[Raw]) -> None:
        self.draw = np.random.default_rng(seed)
        self.clients = clients
        self.queries = [client.query(unit_vector(1)) for client in clients]

    def bytes_of(self, good: bytes) -> bytes:
        """Changed, cut, grown, or random bytes in its place."""
        draw, data = self.draw, bytearray(good)
        kind = draw.integers(0, 7)
        if kind == 0 or not data:
            return draw.bytes(int(draw.integers(0, 200)))
        if kind == 1:
            return bytes(data[: draw.integers(0, len(data))])
        if kind == 2:
            return bytes(data) + draw.bytes(int(draw.integers(1, 64)))
        if kind == 3:
            return draw.bytes(len(data))
        if kind == 4:
            start = int(draw.integers(0, len(data)))
            data[start : start + 8] = b"\xff" * len(data[start : start + 8])
            return bytes(data)
        if kind == 5:
            return bytes(data)
        for _ in range(int(draw.integers(1, 5))):
            data[draw.integers(0, len(data))] = int(draw.integers(0, 256))
        return bytes(data)

    def score(self) -> bytes:
        number = int(self.draw.integers(0, len(self.clients)))
        client = self.clients[number]
        fields = {
            "key_digest": client.digest,
            "query": self.queries[number],
            "offer_digest": client.offer.offer_digest,
            "request_id": bytes(16),
        }
        for name in self.draw.choice(list(fields), size=int(self.draw.integers(1, 3)), replace=False):
            fields[name] = self.bytes_of(fields[name])
        raw = messages.ScoreRequest(**fields).SerializeToString()
        return self.bytes_of(raw) if self.draw.random() < 0.2 else raw

    def keys(self) -> list[bytes]:
        client = self.clients[0]
        pieces = []
        for number in range(int(self.draw.integers(0, 4))):
            digest = client.offer.parameters_digest if number == 0 else b""
            request = messages.RegisterKeysRequest(
                parameters_digest=self.bytes_of(digest) if self.draw.random() < 0.3 else digest,
                payload=self.bytes_of(client.keys[: int(self.draw.integers(1, len(client.keys) + 1))]),
            )
            raw = request.SerializeToString()
            pieces.append(self.bytes_of(raw) if self.draw.random() < 0.1 else raw)
        return pieces


def ended(call: Callable[[], object]) -> grpc.StatusCode:
    try:
        call()
    except grpc.RpcError as error:
        return error.code()  # type: ignore[attr-defined, no-any-return]
    return grpc.StatusCode.OK


def memory_of(pid: int) -> int:
    status = Path(f"/proc/{pid}/statm")
    return int(status.read_text().split()[1]) * resource.getpagesize() if status.exists() else 0


def test_hostile_bytes_are_answered_and_nothing_else_happens(site: Site, server: ScoringServer) -> None:
    found: Counter[grpc.StatusCode] = Counter()
    lock = threading.Lock()
    with open_channel(server.address, site.credentials(ANNA), SERVER) as channel:
        clients = [Raw(channel, site.model, offer=number) for number in range(2)]
        for client in clients:
            client.right()
        pids = server.pool.pids
        before = memory_of(pids[0])
        score = channel.unary_stream(SERVICE + "Score")
        register = channel.stream_unary(SERVICE + "RegisterKeys")
        file = channel.unary_stream(SERVICE + "GetClientModel")
        parameters = channel.unary_unary(SERVICE + "GetParameters")

        def attack(seed: int) -> None:
            forger = Forger(seed, clients)
            own: Counter[grpc.StatusCode] = Counter()
            for number in range(INPUTS // THREADS):
                kind = number % 20
                if kind < 14:
                    request = forger.score()
                    own[ended(lambda request=request: list(score(request, timeout=60)))] += 1
                elif kind < 18:
                    pieces = forger.keys()
                    own[ended(lambda pieces=pieces: register(iter(pieces), timeout=60))] += 1
                else:
                    method, data = (file, parameters)[kind - 18], forger.bytes_of(b"\x0a\x0dmanifest.json")
                    streams = kind == 18
                    own[
                        ended(
                            lambda method=method, data=data, streams=streams: (
                                list(method(data, timeout=60)) if streams else method(data, timeout=60)
                            )
                        )
                    ] += 1
            with lock:
                found.update(own)

        threads = [threading.Thread(target=attack, args=(SEED + seed,)) for seed in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for client in clients:
            client.register()
            client.right()
    assert set(found) <= EXPECTED, found
    assert found.total() == INPUTS // THREADS * THREADS
    assert found[grpc.StatusCode.OK] and found[grpc.StatusCode.INVALID_ARGUMENT] > INPUTS // 10
    assert server.pool.pids == pids and server.pool.replaced == 0
    assert memory_of(pids[0]) < before + 512 * 1024 * 1024
