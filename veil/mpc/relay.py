"""Between a job's worker process and its daemon: one inherited socket pair is all the worker has of a network.

Frames (`veil.mpc.relay_frames`) are a message from or to a peer; room for more messages of a peer; the end of a peer; a
control request and its answer (JSON); a request for a correction and its answer. The daemon forwards at most
`WINDOW_MESSAGES` and, beyond one message, `WINDOW_BYTES` of a peer that the worker has not consumed, so a flooding peer
is held back by the mesh and never delays another peer or a control answer. Either process notices when the other dies:
the socket ends. No pickle; every length is bounded.

The worker has no thread of its own for reading: whoever waits reads, for everybody who waits. The daemon writes a
small message to the worker in the thread that took it from the network, unless it would have to wait there.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

from veil.errors import PeerLost, VeilError, WireError
from veil.mpc.faults import from_document
from veil.mpc.link import Inbox, silent
from veil.mpc.relay_frames import (
    ANSWER,
    CONSUMED,
    CORRECT,
    CORRECTION,
    ENDED,
    ID,
    MAX_CONTROL_BYTES,
    MESSAGE,
    REQUEST,
    ROOM,
    WINDOW_BYTES,
    WINDOW_MESSAGES,
    RelayFrame,
    RelayFrames,
)
from veil.mpc.relay_hub import RelayHub
from veil.mpc.transport import MAX_MESSAGE_BYTES, Meter, Payload
from veil.wire.v1 import dealer_pb2

__all__ = ["MAX_CONTROL_BYTES", "WINDOW_BYTES", "WINDOW_MESSAGES", "RelayHub", "RelayTransport"]


class _Answer:
    """A place for one answer."""

    def __init__(self) -> None:
        self.here = False
        self._value: Any = None
        self._error: VeilError | None = None

    def set(self, value: Any = None, error: VeilError | None = None) -> None:
        self._value, self._error = value, error
        self.here = True

    def take(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._value


class RelayTransport:
    """The worker's end: a `Transport`, control requests and corrections. For any number of threads."""

    def __init__(self, source: socket.socket, rank: int, world_size: int) -> None:
        self.rank = rank
        self.world_size = world_size
        self.meter = Meter()
        self._frames = RelayFrames(source, self._read_while_blocked)
        # The window bounds what arrives, so that an inbox never makes the reader wait.
        limit_bytes = WINDOW_BYTES + MAX_MESSAGE_BYTES
        self._inboxes = {
            peer: Inbox(f"rank-{peer}", limit_bytes=limit_bytes) for peer in range(world_size) if peer != rank
        }
        self._consumed = {peer: [0, 0] for peer in self._inboxes}
        self._answers: dict[int, _Answer] = {}
        self._next_id = 0
        self._gone = False
        self._reading = False
        self._turn = threading.Condition(threading.Lock())

    def send(self, peer: int, *parts: Payload) -> None:
        self._frames.write(MESSAGE, peer, *parts)
        self.meter.sent(peer, sum(map(len, parts)))

    def recv(self, peer: int, timeout_s: float) -> Payload:
        inbox = self._inboxes[peer]
        if not self._wait(inbox.ready, timeout_s):
            raise silent(f"rank-{peer}", timeout_s)
        message = inbox.get(0.0)
        size_bytes = len(message)
        self.meter.received(peer, size_bytes)
        consumed = self._consumed[peer]
        consumed[0] += 1
        consumed[1] += size_bytes
        # not for each message: the daemon would have to wake for it
        if 2 * consumed[0] >= WINDOW_MESSAGES or 2 * consumed[1] >= WINDOW_BYTES:
            self._frames.write(ROOM, peer, CONSUMED.pack(*consumed))
            consumed[:] = 0, 0
        return message

    def request(self, kind: str, body: dict[str, Any], timeout_s: float = 60.0) -> dict[str, Any]:
        """Asks the daemon; its answer, or the `VeilError` that its handler raised."""
        return self.ask(kind, body)(timeout_s)

    def ask(self, kind: str, body: dict[str, Any]) -> Callable[[float], dict[str, Any]]:
        """As `request`, without waiting: what it returns waits, for so many seconds at most, also again."""
        number, answer = self._expect()
        document = json.dumps({"id": number, "kind": kind, "body": body}, allow_nan=False).encode()
        self._frames.write(REQUEST, 0, document)

        def answered(timeout_s: float) -> dict[str, Any]:
            result: dict[str, Any] = self._answer(answer, timeout_s)
            return result

        return answered

    def correct(self, request: dealer_pb2.CorrectRequest, timeout_s: float = 330.0) -> bytes:
        """A correction of the dealer, through the daemon; what `DealerProvider` takes as `correct`."""
        number, answer = self._expect()
        self._frames.write(CORRECT, 0, ID.pack(number), request.SerializeToString())
        return bytes(self._answer(answer, timeout_s))

    def close(self) -> None:
        self._frames.close()

    def _expect(self) -> tuple[int, _Answer]:
        answer = _Answer()
        with self._turn:
            if self._gone:
                raise PeerLost("the daemon has gone")
            self._next_id += 1
            self._answers[self._next_id] = answer
            return self._next_id, answer

    def _answer(self, answer: _Answer, timeout_s: float) -> Any:
        if not self._wait(lambda: answer.here, timeout_s):
            raise PeerLost(f"got no answer of the daemon in {timeout_s:g} s, expected one")
        return answer.take()

    # Reading ------------------------------------------------------------------------------------------------------

    def _wait(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        """Whether it is `ready` within `timeout_s`; reads frames, or waits for the thread that does."""
        until: float | None = None
        while not ready():
            now = time.monotonic()
            until = now + timeout_s if until is None else until
            if now > until:
                return False
            with self._turn:
                if ready():
                    return True
                if self._reading:
                    self._turn.wait(until - now)
                    continue
                self._reading = True
            self._read(until - now)
        return True

    def _read_while_blocked(self) -> None:
        """A write waits for the daemon, which may itself be waiting for this side to read."""
        with self._turn:
            if self._reading:
                return
            self._reading = True
        self._read(0.0)

    def _read(self, timeout_s: float) -> None:
        """One frame, with `_reading` set."""
        try:
            frame = self._frames.read(timeout_s)
            if frame is None:
                self._lost(PeerLost("the daemon has gone"))
            else:
                self._dispatch(frame)
        except TimeoutError:
            pass  # the caller looks at the time
        except (WireError, ValueError, KeyError, TypeError, struct.error) as error:
            self._lost(WireError(f"got a frame of the daemon that cannot be read: {type(error).__name__}"))
        finally:
            with self._turn:
                self._reading = False
                self._turn.notify_all()

    def _dispatch(self, frame: RelayFrame) -> None:
        kind, peer, payload = frame
        if kind == MESSAGE:
            self._inboxes[peer].put(payload)
        elif kind == ENDED:
            self._inboxes[peer].end(from_document(json.loads(bytes(payload))))
        elif kind == CORRECTION:
            self._answered(ID.unpack_from(payload)[0], payload[ID.size :])
        elif kind == ANSWER:
            document = json.loads(bytes(payload))
            error = from_document(document["error"]) if "error" in document else None
            self._answered(document["id"], document.get("body"), error)

    def _answered(self, number: int, value: Any = None, error: VeilError | None = None) -> None:
        with self._turn:
            answer = self._answers.pop(number, None)
        if answer is not None:
            answer.set(value, error)

    def _lost(self, reason: VeilError) -> None:
        for inbox in self._inboxes.values():
            inbox.end(reason)
        with self._turn:
            self._gone = True
            waiting, self._answers = self._answers, {}
        for answer in waiting.values():
            answer.set(error=reason)
