"""DealerService: hands out correlated randomness, learns job texts and shapes, never a share or an opening.

A thin gRPC shell over `dealer.sessions`; identities come from certificates, errors become statuses in
`veil.wire.channel`.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import grpc

from dealer.sessions import Limits, Sessions, payload_bytes
from veil.errors import StateError
from veil.identity.names import Identity, Role
from veil.mpc.engine import wire as engine_wire
from veil.mpc.items import from_wire
from veil.privacy.noise import ByteSource, system_source
from veil.wire.channel import CHUNK_BYTES, Service, caller
from veil.wire.v1 import dealer_pb2, dealer_pb2_grpc

SERVICE_NAME = "veil.wire.v1.DealerService"
_log = logging.getLogger("veil.dealer")


class DealerServicer(dealer_pb2_grpc.DealerServiceServicer):
    """`concurrent` corrections are computed at a time, which bounds memory together with the limit on elements.

    `entropy` and `noise_source` are for tests that need to know the draws; a dealer in use takes the defaults.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        limits: Limits | None = None,
        concurrent: int = 2,
        clock: Callable[[], float] = time.monotonic,
        entropy: Callable[[int], bytes] = os.urandom,
        noise_source: Callable[[], ByteSource] = system_source,
    ) -> None:
        self.sessions = Sessions(
            identity, limits=limits or Limits(), clock=clock, entropy=entropy, noise_source=noise_source
        )
        self._slots = threading.BoundedSemaphore(concurrent)
        self._sending: set[tuple[str, str]] = set()
        self._lock = threading.RLock()  # an abandoned stream may be collected while it is held

    def service(self) -> Service:
        """What `veil.wire.channel.serve` takes."""
        return Service(
            name=SERVICE_NAME,
            add=lambda server: dealer_pb2_grpc.add_DealerServiceServicer_to_server(self, server),
            roles=frozenset({Role.PARTY}),
        )

    def OpenSession(
        self, request: dealer_pb2.OpenSessionRequest, context: grpc.ServicerContext
    ) -> dealer_pb2.OpenSessionResponse:
        """Registers the caller and hands it its seed, once."""
        party = caller(context)
        seed = self.sessions.open(party, request.job_id, request.job_text, request.job_digest)
        _log.info("job %s: %s registered", request.job_id, party.name)
        return dealer_pb2.OpenSessionResponse(seed=seed)

    def Correct(
        self, request: dealer_pb2.CorrectRequest, context: grpc.ServicerContext
    ) -> Iterator[dealer_pb2.CorrectResponse]:
        """The correction of one item, or of many of the engine one after another, in pieces of at most 1 MiB.

        One at a time for a job until it is sent: who asks and does not read holds one thread and one answer, no more.
        """
        party = caller(context)
        with self._alone(party, request.job_id):
            yield from self._corrections(party, request)

    @contextmanager
    def _alone(self, party: Identity, job_id: str) -> Iterator[None]:
        stream = (party.name, job_id)
        with self._lock:
            if stream in self._sending:
                raise StateError("got a request before the last one was answered and read, expected one at a time")
            self._sending.add(stream)
        try:
            yield
        finally:
            with self._lock:
                self._sending.remove(stream)

    def _corrections(self, party: Identity, request: dealer_pb2.CorrectRequest) -> Iterator[dealer_pb2.CorrectResponse]:
        if request.WhichOneof("item") == "engine_items":
            yield from self._provide(party, request)
            return
        item = from_wire(request)
        with self._slots:
            data = payload_bytes(self.sessions.correct(party, request.job_id, request.index, item))
        _log.debug("job %s: item %d %s, %d bytes", request.job_id, request.index, item.kind, len(data))
        yield from _pieces(data)

    def _provide(self, party: Identity, request: dealer_pb2.CorrectRequest) -> Iterator[dealer_pb2.CorrectResponse]:
        items = engine_wire.from_wire(request.engine_items)
        made = self.sessions.provide(party, request.job_id, request.index, items)
        # Closed even when a correction cannot be copied: the job stays busy until the iterator ends.
        with self._slots, closing(made) as corrections:
            data = b"".join(payload_bytes(tensor) for tensor in corrections)
        _log.debug("job %s: %d items from %d, %d bytes", request.job_id, len(items), request.index, len(data))
        yield from _pieces(memoryview(data))

    def CloseSession(
        self, request: dealer_pb2.CloseSessionRequest, context: grpc.ServicerContext
    ) -> dealer_pb2.CloseSessionResponse:
        """Forgets a job."""
        party = caller(context)
        self.sessions.close(party, request.job_id)
        _log.info("job %s: closed by %s", request.job_id, party.name)
        return dealer_pb2.CloseSessionResponse()


def _pieces(data: memoryview) -> Iterator[dealer_pb2.CorrectResponse]:
    for start in range(0, max(len(data), 1), CHUNK_BYTES):
        piece = bytes(data[start : start + CHUNK_BYTES])
        yield dealer_pb2.CorrectResponse(payload=piece, last=start + CHUNK_BYTES >= len(data))
