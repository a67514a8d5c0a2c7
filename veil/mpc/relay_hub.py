"""The daemon's end of the relay (`veil.mpc.relay`): joins a worker to the mesh, to its daemon and to the dealer.

Guarantee: a worker that floods, dies or sends what cannot be read ends its own job and nothing else; of each peer at
most `WINDOW_MESSAGES` and, beyond one message, `WINDOW_BYTES` are with the worker and not consumed.
"""

from __future__ import annotations

import json
import logging
import queue
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from google.protobuf.message import DecodeError

from veil.errors import PeerLost, StateError, VeilError, WireError
from veil.mpc.faults import to_document
from veil.mpc.relay_frames import (
    ANSWER,
    CONSUMED,
    CORRECT,
    CORRECTION,
    ENDED,
    ID,
    MESSAGE,
    REQUEST,
    ROOM,
    SMALL_BYTES,
    WINDOW_BYTES,
    WINDOW_MESSAGES,
    RelayFrames,
)
from veil.mpc.transport import ListeningTransport, Payload, PeerSilent
from veil.wire.v1 import dealer_pb2

_log = logging.getLogger("veil.mpc")

Handler = Callable[[str, dict[str, Any]], dict[str, Any]]
Correct = Callable[[dealer_pb2.CorrectRequest], bytes]


class _Window:
    """What the worker has not consumed of one peer, and who may write to the worker for that peer."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.held: Payload | None = None
        self.ended = False
        self._counting = threading.Lock()
        self._messages = self._bytes = 0

    def open(self) -> bool:
        return self._messages < WINDOW_MESSAGES and (self._bytes < WINDOW_BYTES or not self._messages)

    def count(self, messages: int, size_bytes: int) -> None:
        with self._counting:
            self._messages = max(0, self._messages + messages)
            self._bytes = max(0, self._bytes + size_bytes)


class RelayHub:
    """The daemon's end: joins a worker to the mesh, answers its control requests, passes corrections on.

    `handler(kind, body) -> body` answers control requests and may raise a `VeilError`; it runs in a thread of its own,
    one request at a time. `correct` asks the dealer. When the worker goes, the transport is closed, so peers notice.
    """

    def __init__(
        self,
        source: socket.socket,
        transport: ListeningTransport,
        handler: Handler,
        correct: Correct | None = None,
        *,
        on_worker_gone: Callable[[], None] | None = None,
    ) -> None:
        self._frames = RelayFrames(source)
        self._transport = transport
        self._handler = handler
        self._correct = correct
        self._on_worker_gone = on_worker_gone
        self._ended = threading.Event()
        self._peers = [peer for peer in range(transport.world_size) if peer != transport.rank]
        self._windows = {peer: _Window() for peer in self._peers}
        self._control = ThreadPoolExecutor(1, thread_name_prefix="relay-control")
        self._corrections = ThreadPoolExecutor(1, thread_name_prefix="relay-corrections")

    def start(self) -> None:
        """Starts to relay."""
        for peer in self._peers:
            threading.Thread(target=self._forward, args=(peer,), name=f"relay-from-{peer}", daemon=True).start()
            self._transport.listen(peer, lambda ended, peer=peer: self._arrived(peer, ended))  # type: ignore[misc]
            self._windows[peer].wake.put(None)
        threading.Thread(target=self._read, name="relay-hub", daemon=True).start()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether the worker has gone within `timeout_s`."""
        return self._ended.wait(timeout_s)

    def close(self) -> None:
        """Ends the worker's connection; its pending operations fail at once."""
        self._frames.close()

    # Mesh -> worker -------------------------------------------------------------------------------------------------

    def _arrived(self, peer: int, ended: bool) -> None:
        """In the thread that brings a message: passes a small one on at once, leaves the rest to the peer's thread."""
        window = self._windows[peer]
        if not ended and window.lock.acquire(blocking=False):
            try:
                if self._forward_at_once(peer, window):
                    return
            finally:
                window.lock.release()
        window.wake.put(None)

    def _forward_at_once(self, peer: int, window: _Window) -> bool:
        if window.held is not None or window.ended or not window.open():
            return False
        try:
            message = self._transport.recv(peer, 0.0)
            if len(message) <= SMALL_BYTES:
                window.count(1, len(message))
                if self._frames.write_at_once(MESSAGE, peer, message):
                    return True
                window.count(-1, -len(message))
            window.held = message
        except PeerSilent:
            return True  # the peer's thread was faster
        except VeilError:
            pass  # the peer's thread meets it again
        return False

    def _forward(self, peer: int) -> None:
        """The peer's thread: whatever would have to wait for the worker to read."""
        window = self._windows[peer]
        while not self._ended.is_set() and not window.ended:
            window.wake.get()
            with window.lock:
                try:
                    while window.open() and not self._ended.is_set():
                        message = window.held if window.held is not None else self._transport.recv(peer, 0.0)
                        window.held = None
                        window.count(1, len(message))
                        self._frames.write(MESSAGE, peer, message)
                except PeerSilent:
                    continue
                except VeilError as error:
                    window.ended = True
                    self._tell_ended(peer, error)

    def _consumed(self, peer: int, payload: memoryview) -> None:
        messages, size_bytes = CONSUMED.unpack(payload)
        self._windows[peer].count(-messages, -size_bytes)
        self._windows[peer].wake.put(None)

    def _tell_ended(self, peer: int, error: VeilError) -> None:
        try:
            self._frames.write(ENDED, peer, json.dumps(to_document(error)).encode())
        except PeerLost:
            pass  # the worker has gone; _read has noticed

    def _read(self) -> None:
        """Worker -> mesh, daemon and dealer."""
        try:
            while (frame := self._frames.read()) is not None:
                kind, peer, payload = frame
                if kind == MESSAGE:
                    self._send(peer, payload)
                elif kind == ROOM:
                    self._consumed(peer, payload)
                elif kind == REQUEST:
                    self._control.submit(self._answer, payload)
                elif kind == CORRECT:
                    self._corrections.submit(self._pass_on, payload)
        except (WireError, KeyError, struct.error) as error:
            _log.error("relay: the worker sent a frame that cannot be used: %s", type(error).__name__)
        self._ended.set()
        for window in self._windows.values():
            window.wake.put(None)
        self._frames.close()
        self._control.shutdown(wait=False, cancel_futures=True)
        self._corrections.shutdown(wait=False, cancel_futures=True)
        self._transport.close()
        if self._on_worker_gone is not None:
            self._on_worker_gone()

    def _send(self, peer: int, payload: memoryview) -> None:
        try:
            self._transport.send(peer, payload)
        except VeilError as error:
            self._tell_ended(peer, error)

    def _answer(self, payload: memoryview) -> None:
        try:
            document = json.loads(bytes(payload))
            number, kind, body = int(document["id"]), str(document["kind"]), dict(document["body"])
        except (ValueError, KeyError, TypeError):
            _log.error("relay: got a control request that cannot be read")
            return

        def act() -> tuple[int, list[bytes]]:
            answer = {"id": number, "body": self._handler(kind, body)}
            return ANSWER, [json.dumps(answer, allow_nan=False).encode()]

        self._reply(number, act)

    def _pass_on(self, payload: memoryview) -> None:
        number = ID.unpack_from(payload)[0]

        def act() -> tuple[int, list[bytes]]:
            if self._correct is None:
                raise StateError("got a request for a correction, expected none at this party")
            try:
                request = dealer_pb2.CorrectRequest.FromString(bytes(payload[ID.size :]))
            except DecodeError:
                raise WireError("got a request for a correction that cannot be read") from None
            return CORRECTION, [ID.pack(number), self._correct(request)]

        self._reply(number, act)

    def _reply(self, number: int, act: Callable[[], tuple[int, list[bytes]]]) -> None:
        try:
            kind, parts = act()
        except VeilError as error:
            kind, parts = ANSWER, [_refusal(number, error)]
        except Exception:  # noqa: BLE001 - whatever breaks in the daemon, the worker must get an answer
            _log.exception("relay: a request of the worker failed")
            kind, parts = ANSWER, [_refusal(number, StateError("the daemon failed to answer", hint="see its log"))]
        try:
            self._frames.write(kind, 0, *parts)
        except PeerLost:
            pass  # the worker has gone; _read has noticed


def _refusal(number: int, error: VeilError) -> bytes:
    return json.dumps({"id": number, "error": to_document(error)}).encode()
