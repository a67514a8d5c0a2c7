"""The party daemon's side of the dealer: registers for a job, fetches corrections, bounds everything that comes.

Torch is not imported here: a daemon that only passes corrections on stays small.
"""

from __future__ import annotations

import logging
import threading

import grpc

from veil.errors import ProtocolMismatch, StateError
from veil.identity.credentials import Credentials
from veil.identity.names import Identity
from veil.mpc.link import PIECE_BYTES
from veil.mpc.transport import MAX_MESSAGE_BYTES
from veil.wire.channel import open_channel
from veil.wire.status import translated
from veil.wire.v1 import dealer_pb2, dealer_pb2_grpc

SEED_BYTES = 32
_log = logging.getLogger("veil.mpc")


class DealerClient:
    """One job's session with the dealer over mutual TLS; safe to use from several threads."""

    def __init__(
        self,
        address: str,
        credentials: Credentials,
        expect: Identity,
        *,
        job_id: str,
        job_text: str,
        job_digest: bytes,
        correct_timeout_s: float = 300.0,
    ) -> None:
        self._name = expect.name
        self._channel = open_channel(address, credentials, expect)
        self._stub = dealer_pb2_grpc.DealerServiceStub(self._channel)
        self._job_id = job_id
        self._text = job_text
        self._digest = job_digest
        self._timeout_s = correct_timeout_s
        self._lock = threading.Lock()
        self.bytes_received = 0
        self.items = 0

    def __repr__(self) -> str:
        return f"DealerClient(dealer={self._name!r}, job_id={self._job_id!r})"

    def open(self) -> bytes:
        """Registers this party for the job; its seed, 32 secret bytes. Can be done once for each job."""
        request = dealer_pb2.OpenSessionRequest(job_id=self._job_id, job_text=self._text, job_digest=self._digest)
        with translated(self._name):
            seed = self._stub.OpenSession(request).seed
        if len(seed) != SEED_BYTES:
            raise self._wrong(f"a seed of {len(seed)} bytes", f"{SEED_BYTES}")
        return bytes(seed)

    def correct(self, request: dealer_pb2.CorrectRequest) -> bytes:
        """The correction of one item, little-endian int64. The job of the request is set to this client's."""
        request.job_id = self._job_id
        pieces: list[bytes] = []
        size_bytes, ended = 0, False
        with translated(self._name):
            for response in self._stub.Correct(request, timeout=self._timeout_s):
                if ended or len(response.payload) > PIECE_BYTES:
                    raise self._wrong("data beyond the end or a piece above 1 MiB", "neither")
                pieces.append(response.payload)
                size_bytes += len(response.payload)
                if size_bytes > MAX_MESSAGE_BYTES:
                    raise self._wrong(f"more than {MAX_MESSAGE_BYTES} bytes", "at most that many")
                ended = response.last
        if not ended:
            raise self._wrong("a correction without its end", "a whole one")
        with self._lock:
            self.bytes_received += size_bytes
            self.items += 1
        return b"".join(pieces)

    def close(self) -> None:
        """Lets the dealer forget the job and closes the channel; a dealer that has gone is no error here."""
        try:
            self._stub.CloseSession(dealer_pb2.CloseSessionRequest(job_id=self._job_id))
        except (grpc.RpcError, ValueError, StateError) as error:
            _log.info("dealer session of job %s not closed: %s", self._job_id, type(error).__name__)
        self._channel.close()

    def _wrong(self, got: str, expected: str) -> ProtocolMismatch:
        return ProtocolMismatch(f"got {got} from {self._name}, expected {expected}", culprits=(self._name,))
