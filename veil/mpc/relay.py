"""Between a job's worker process and its daemon: one inherited socket pair is all the worker has of a network.

    frame = length u32 | kind u8 | peer u8 | payload                       little-endian, length of the payload

kinds: a message from or to a peer; room for one more message of a peer; the end of a peer; a control request and its
answer (JSON); a request for a correction and its answer. The daemon forwards at most `_WINDOW` messages of a peer that
the worker has not consumed, so a flooding peer is held back by the mesh and never delays another peer or a control
answer. Either process notices at once when the other dies: the socket ends. No pickle; every length is bounded.
"""

from __future__ import annotations

import json
import logging
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from google.protobuf.message import DecodeError

from veil.errors import PeerLost, StateError, VeilError, WireError
from veil.mpc.faults import from_document, to_document
from veil.mpc.link import Inbox
from veil.mpc.loopback import read_exactly
from veil.mpc.transport import MAX_MESSAGE_BYTES, Meter, Transport
from veil.wire.v1 import dealer_pb2

_FRAME = struct.Struct("<IBB")
_ID = struct.Struct("<I")
_MESSAGE, _ROOM, _ENDED, _REQUEST, _ANSWER, _CORRECT, _CORRECTION = range(1, 8)
_WINDOW = 4
_FOREVER_S = 30 * 24 * 3600.0
MAX_CONTROL_BYTES = 2**20
_LIMITS = {_MESSAGE: MAX_MESSAGE_BYTES, _CORRECTION: MAX_MESSAGE_BYTES}
_log = logging.getLogger("veil.mpc")

Handler = Callable[[str, dict[str, Any]], dict[str, Any]]
Correct = Callable[[dealer_pb2.CorrectRequest], bytes]


class _Frames:
    """Frames over one socket, written whole and read whole."""

    def __init__(self, source: socket.socket) -> None:
        self._socket = source
        self._lock = threading.Lock()

    def write(self, kind: int, peer: int, *payload: bytes | memoryview) -> None:
        """Raises `PeerLost` when the other process has gone."""
        size_bytes = sum(len(part) for part in payload)
        if size_bytes > _LIMITS.get(kind, MAX_CONTROL_BYTES):
            raise WireError(
                f"got a frame of {size_bytes} bytes, expected at most {_LIMITS.get(kind, MAX_CONTROL_BYTES)}"
            )
        try:
            with self._lock:
                self._socket.sendall(_FRAME.pack(size_bytes, kind, peer))
                for part in payload:
                    self._socket.sendall(part)
        except OSError:
            raise PeerLost("the other process of this party has gone") from None

    def read(self) -> tuple[int, int, bytes] | None:
        """The next frame; None when the socket has ended. Raises `WireError` for one beyond its bound."""
        try:
            head = read_exactly(self._socket, _FRAME.size)
            if not head:
                return None
            size_bytes, kind, peer = _FRAME.unpack(head)
            if size_bytes > _LIMITS.get(kind, MAX_CONTROL_BYTES):
                raise WireError(f"got a frame of {size_bytes} bytes of kind {kind}, expected fewer")
            return kind, peer, bytes(read_exactly(self._socket, size_bytes)) if size_bytes else b""
        except OSError:
            return None

    def close(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the other side was faster
        self._socket.close()


class _Answer:
    """A place for one answer."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._value: Any = None
        self._error: VeilError | None = None

    def set(self, value: Any = None, error: VeilError | None = None) -> None:
        self._value, self._error = value, error
        self._ready.set()

    def wait(self, timeout_s: float) -> Any:
        if not self._ready.wait(timeout_s):
            raise PeerLost(f"got no answer of the daemon in {timeout_s:g} s, expected one")
        if self._error is not None:
            raise self._error
        return self._value


class RelayTransport:
    """The worker's end: a `Transport`, control requests and corrections."""

    def __init__(self, source: socket.socket, rank: int, world_size: int) -> None:
        self.rank = rank
        self.world_size = world_size
        self.meter = Meter()
        self._frames = _Frames(source)
        self._inboxes = {
            # The window bounds what arrives, so that this never makes the reader wait.
            peer: Inbox(f"rank-{peer}", limit_bytes=_WINDOW * MAX_MESSAGE_BYTES)
            for peer in range(world_size)
            if peer != rank
        }
        self._answers: dict[int, _Answer] = {}
        self._next_id = 0
        self._lock = threading.Lock()
        self._gone = False
        self._reader = threading.Thread(target=self._read, name="relay-worker", daemon=True)
        self._reader.start()

    def send(self, peer: int, payload: bytes | memoryview) -> None:
        self._frames.write(_MESSAGE, peer, payload)
        self.meter.sent(peer, len(payload))

    def recv(self, peer: int, timeout_s: float) -> bytes:
        message = self._inboxes[peer].get(timeout_s)
        self._frames.write(_ROOM, peer)
        self.meter.received(peer, len(message))
        return message

    def request(self, kind: str, body: dict[str, Any], timeout_s: float = 60.0) -> dict[str, Any]:
        """Asks the daemon; its answer, or the `VeilError` that its handler raised."""
        number, answer = self._expect()
        document = json.dumps({"id": number, "kind": kind, "body": body}, allow_nan=False).encode()
        self._frames.write(_REQUEST, 0, document)
        result: dict[str, Any] = answer.wait(timeout_s)
        return result

    def correct(self, request: dealer_pb2.CorrectRequest, timeout_s: float = 330.0) -> bytes:
        """A correction of the dealer, through the daemon; what `DealerProvider` takes as `correct`."""
        number, answer = self._expect()
        self._frames.write(_CORRECT, 0, _ID.pack(number), request.SerializeToString())
        data: bytes = answer.wait(timeout_s)
        return data

    def close(self) -> None:
        self._frames.close()

    def _expect(self) -> tuple[int, _Answer]:
        answer = _Answer()
        with self._lock:
            if self._gone:
                raise PeerLost("the daemon has gone")
            self._next_id += 1
            self._answers[self._next_id] = answer
            return self._next_id, answer

    def _answered(self, number: int, value: Any = None, error: VeilError | None = None) -> None:
        with self._lock:
            answer = self._answers.pop(number, None)
        if answer is not None:
            answer.set(value, error)

    def _read(self) -> None:
        reason: VeilError = PeerLost("the daemon has gone")
        try:
            while (frame := self._frames.read()) is not None:
                kind, peer, payload = frame
                if kind == _MESSAGE:
                    self._inboxes[peer].put(payload)
                elif kind == _ENDED:
                    self._inboxes[peer].end(from_document(json.loads(payload)))
                elif kind == _CORRECTION:
                    self._answered(_ID.unpack_from(payload)[0], payload[_ID.size :])
                elif kind == _ANSWER:
                    document = json.loads(payload)
                    error = from_document(document["error"]) if "error" in document else None
                    self._answered(document["id"], document.get("body"), error)
        except (WireError, ValueError, KeyError, TypeError, struct.error) as error:
            reason = WireError(f"got a frame of the daemon that cannot be read: {type(error).__name__}")
        for inbox in self._inboxes.values():
            inbox.end(reason)
        with self._lock:
            self._gone = True
            waiting, self._answers = self._answers, {}
        for answer in waiting.values():
            answer.set(error=reason)


class RelayHub:
    """The daemon's end: joins a worker to the mesh, answers its control requests, passes corrections on.

    `handler(kind, body) -> body` answers control requests and may raise a `VeilError`; it runs in a thread of its own,
    one request at a time. `correct` asks the dealer. When the worker goes, the transport is closed, so peers notice.
    """

    def __init__(
        self,
        source: socket.socket,
        transport: Transport,
        handler: Handler,
        correct: Correct | None = None,
        *,
        on_worker_gone: Callable[[], None] | None = None,
    ) -> None:
        self._frames = _Frames(source)
        self._transport = transport
        self._handler = handler
        self._correct = correct
        self._on_worker_gone = on_worker_gone
        self._ended = threading.Event()
        self._peers = [peer for peer in range(transport.world_size) if peer != transport.rank]
        self._room = {peer: threading.Semaphore(_WINDOW) for peer in self._peers}
        self._control = ThreadPoolExecutor(1, thread_name_prefix="relay-control")
        self._corrections = ThreadPoolExecutor(1, thread_name_prefix="relay-corrections")

    def start(self) -> None:
        """Starts the hub's threads."""
        for peer in self._peers:
            threading.Thread(target=self._forward, args=(peer,), name=f"relay-from-{peer}", daemon=True).start()
        threading.Thread(target=self._read, name="relay-hub", daemon=True).start()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether the worker has gone within `timeout_s`."""
        return self._ended.wait(timeout_s)

    def close(self) -> None:
        """Ends the worker's connection; its pending operations fail at once."""
        self._frames.close()

    def _forward(self, peer: int) -> None:
        """Mesh -> worker, at most `_WINDOW` messages ahead."""
        try:
            while True:
                self._room[peer].acquire()
                if self._ended.is_set():
                    return
                self._frames.write(_MESSAGE, peer, self._transport.recv(peer, _FOREVER_S))
        except VeilError as error:
            self._tell_ended(peer, error)

    def _tell_ended(self, peer: int, error: VeilError) -> None:
        try:
            self._frames.write(_ENDED, peer, json.dumps(to_document(error)).encode())
        except PeerLost:
            pass  # the worker has gone; _read has noticed

    def _read(self) -> None:
        """Worker -> mesh, daemon and dealer."""
        try:
            while (frame := self._frames.read()) is not None:
                kind, peer, payload = frame
                if kind == _MESSAGE:
                    self._send(peer, payload)
                elif kind == _ROOM:
                    self._room[peer].release()
                elif kind == _REQUEST:
                    self._control.submit(self._answer, payload)
                elif kind == _CORRECT:
                    self._corrections.submit(self._pass_on, payload)
        except (WireError, KeyError) as error:
            _log.error("relay: the worker sent a frame that cannot be used: %s", type(error).__name__)
        self._ended.set()
        for room in self._room.values():
            room.release()
        self._frames.close()
        self._control.shutdown(wait=False, cancel_futures=True)
        self._corrections.shutdown(wait=False, cancel_futures=True)
        self._transport.close()
        if self._on_worker_gone is not None:
            self._on_worker_gone()

    def _send(self, peer: int, payload: bytes) -> None:
        try:
            self._transport.send(peer, payload)
        except VeilError as error:
            self._tell_ended(peer, error)

    def _answer(self, payload: bytes) -> None:
        try:
            document = json.loads(payload)
            number, kind, body = int(document["id"]), str(document["kind"]), dict(document["body"])
        except (ValueError, KeyError, TypeError):
            _log.error("relay: got a control request that cannot be read")
            return

        def act() -> tuple[int, list[bytes]]:
            answer = {"id": number, "body": self._handler(kind, body)}
            return _ANSWER, [json.dumps(answer, allow_nan=False).encode()]

        self._reply(number, act)

    def _pass_on(self, payload: bytes) -> None:
        number = _ID.unpack_from(payload)[0]

        def act() -> tuple[int, list[bytes]]:
            if self._correct is None:
                raise StateError("got a request for a correction, expected none at this party")
            try:
                request = dealer_pb2.CorrectRequest.FromString(payload[_ID.size :])
            except DecodeError:
                raise WireError("got a request for a correction that cannot be read") from None
            return _CORRECTION, [_ID.pack(number), self._correct(request)]

        self._reply(number, act)

    def _reply(self, number: int, act: Callable[[], tuple[int, list[bytes]]]) -> None:
        try:
            kind, parts = act()
        except VeilError as error:
            kind, parts = _ANSWER, [_refusal(number, error)]
        except Exception:  # noqa: BLE001 - whatever breaks in the daemon, the worker must get an answer
            _log.exception("relay: a request of the worker failed")
            kind, parts = _ANSWER, [_refusal(number, StateError("the daemon failed to answer", hint="see its log"))]
        try:
            self._frames.write(kind, 0, *parts)
        except PeerLost:
            pass  # the worker has gone; _read has noticed


def _refusal(number: int, error: VeilError) -> bytes:
    return json.dumps({"id": number, "error": to_document(error)}).encode()
