"""The party's one stream to the coordinator: dials out, introduces itself, stays, and comes back when it breaks.

Guarantee: reports go up in the order in which they were made; a command is handled in the order in which it came; the
stream carries nothing that depends on rows.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator

import grpc

from veil import __version__
from veil.errors import VeilError, WireError
from veil.identity.credentials import Credentials
from veil.identity.names import Identity
from veil.jobs.convert import JOIN_PROTOCOL_VERSION
from veil.wire.channel import open_channel
from veil.wire.status import from_rpc
from veil.wire.v1 import coordinator_pb2, coordinator_pb2_grpc

_LOG = logging.getLogger("veil.party.link")
_FIRST_RETRY_S = 0.5
_LAST_RETRY_S = 15.0
_MOST_QUEUED = 10_000


class CoordinatorLink:
    """Keeps the stream up in a thread of its own. `handle` is called with each command, one at a time."""

    def __init__(
        self,
        address: str,
        expect: Identity,
        credentials: Credentials,
        mesh_address: str,
        handle: Callable[[coordinator_pb2.JoinResponse], None],
    ) -> None:
        self._address = address
        self._expect = expect
        self._credentials = credentials
        self._mesh_address = mesh_address
        self._handle = handle
        self._outgoing: queue.Queue[coordinator_pb2.JoinRequest] = queue.Queue(_MOST_QUEUED)
        self._stopping = threading.Event()
        self._joined = threading.Event()
        self._call: grpc.Call | None = None
        self._thread = threading.Thread(target=self._run, name="coordinator-link", daemon=True)

    @property
    def joined(self) -> bool:
        """Whether the coordinator has welcomed this party on the present stream."""
        return self._joined.is_set()

    def start(self) -> None:
        """Starts dialling."""
        self._thread.start()

    def report(self, request: coordinator_pb2.JoinRequest) -> None:
        """Queues a report; reports made while the stream is down go up when it is back."""
        try:
            self._outgoing.put_nowait(request)
        except queue.Full:
            _LOG.error("dropped a report: %d are queued already", _MOST_QUEUED)

    def stop(self) -> None:
        """Ends the stream and the thread."""
        self._stopping.set()
        if self._call is not None:
            self._call.cancel()  # type: ignore[no-untyped-call]
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def _run(self) -> None:
        wait_s = _FIRST_RETRY_S
        while not self._stopping.is_set():
            try:
                self._stay()
                wait_s = _FIRST_RETRY_S
            except grpc.RpcError as error:
                if not self._stopping.is_set():
                    _LOG.warning("coordinator at %s: %s", self._address, from_rpc(error, str(self._expect)))
            except VeilError as error:
                _LOG.warning("coordinator at %s: %s", self._address, error)
            if self._joined.is_set():
                wait_s = _FIRST_RETRY_S
            self._joined.clear()
            self._stopping.wait(wait_s)
            wait_s = min(2 * wait_s, _LAST_RETRY_S)

    def _stay(self) -> None:
        with open_channel(self._address, self._credentials, self._expect) as channel:
            stub = coordinator_pb2_grpc.CoordinatorServiceStub(channel)
            ended = threading.Event()
            heartbeat_s = [5.0]
            stream = stub.Join(self._requests(ended, heartbeat_s))
            self._call = stream
            try:
                for response in stream:
                    if response.WhichOneof("command") == "welcome":
                        interval_ms = response.welcome.heartbeat_interval_ms
                        if not 100 <= interval_ms <= 600_000:
                            raise WireError(f"got a heartbeat interval of {interval_ms} ms, expected 100 to 600000")
                        heartbeat_s[0] = interval_ms / 1000
                        self._joined.set()
                        _LOG.info("joined the coordinator at %s", self._address)
                    else:
                        self._handle(response)
            finally:
                ended.set()
                stream.cancel()  # type: ignore[no-untyped-call]

    def _requests(self, ended: threading.Event, heartbeat_s: list[float]) -> Iterator[coordinator_pb2.JoinRequest]:
        yield coordinator_pb2.JoinRequest(
            hello=coordinator_pb2.Hello(
                protocol_version=JOIN_PROTOCOL_VERSION, software_version=__version__, mesh_address=self._mesh_address
            )
        )
        while not ended.is_set() and not self._stopping.is_set():
            try:
                # half the interval: one late heartbeat is not yet a missing one
                yield self._outgoing.get(timeout=heartbeat_s[0] / 2)
            except queue.Empty:
                yield coordinator_pb2.JoinRequest(heartbeat=coordinator_pb2.Heartbeat())
