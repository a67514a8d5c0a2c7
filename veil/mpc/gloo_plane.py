"""Messages between parties over gloo (torch.distributed), in place of gRPC, for a network that nobody else can reach.

Off by default. What it gives up against the mesh (`veil.mpc.grpc_mesh`), also said in the log at every start:
(1) no encryption: parties agree on the keys of their masks in messages (`veil.mpc.keys`), so whoever reads the network
    takes the masks off and has each party's own numbers, as its sums over users before noise;
(2) no authentication: whoever reaches the port that gloo opens, or sits between, can pose as a party or change numbers;
(3) no reconnection: a connection that breaks ends the job;
(4) gloo is not made for hostile bytes: one message that is longer than expected ends the process (`std::terminate`), so
    it must not run in a process that has more to lose than one job;
(5) gloo takes any free port on the given host: a firewall between the parties must let all of them through.
PyPI's wheels of torch have no gloo over TLS (GLOO_DEVICE_TRANSPORT=TCP_TLS is refused as unsupported there).

What it keeps: addresses are exchanged over a transport that is already up, the mesh of the job, whose peers have shown
certificates and signed the same digest; and while that transport lives on, a peer that it loses is lost here too.
Messages arrive whole and in order, of at most `MAX_MESSAGE_BYTES`, checked before memory is taken; nothing is pickled.

    message = length u64 | first bytes        one gloo message of tag 0, of 8 to 8 + HEAD_BYTES bytes, little-endian
              other bytes                     one of tag 1, where there are more than HEAD_BYTES
    length 2^64 - 1 is a goodbye, which the other side answers with its own.

Only tensors of bytes are sent, point to point; no collective is used, and none of the objects that torch pickles.
"""

from __future__ import annotations

import logging
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import numpy as np
import torch

from veil.errors import InputError, PeerLost, ProtocolMismatch, StateError, VeilError
from veil.mpc.gloo_meeting import meet
from veil.mpc.link import Inbox, unread
from veil.mpc.transport import MAX_MESSAGE_BYTES, QUEUE_LIMIT_BYTES, Meter, Payload, PeerSilent, Transport

HEAD_BYTES = 64 * 2**10
"""What a message's first part holds; sent before the receiver knows how long the message is."""
GIVES_UP = (
    "no encryption, no authentication of peers, no reconnection: whoever can read this network learns the parties' own "
    "numbers, whoever can write to it can change results or end jobs; only for a network of the parties alone"
)
_LENGTH = struct.Struct("<Q")
_GOODBYE = 2**64 - 1
_HEAD, _REST, _NOTHING = range(3)
# Receives that stand ready: gloo sends nothing before the receiver has said where to put it.
_READY = 8
# So much is sent before somebody looks whether gloo still needs the memory.
_REAP_BYTES, _REAP_MESSAGES = 2**20, 16
_UNREAD_S = 300.0
_LINGER_S = 10.0
_AFTERMATH_S = 0.3
# gloo's waits end by data or by the connection's end; its own time-out would end every pair of the process.
_FOREVER = timedelta(days=30)
_log = logging.getLogger("veil.mpc")


class _Sent(NamedTuple):
    """A message that gloo may still be reading."""

    size_bytes: int
    works: list[Any]
    memory: torch.Tensor


class _Pair:
    """One peer: its messages, and what is under way to it."""

    def __init__(self, name: str) -> None:
        self.inbox = Inbox(name)
        self.lock = threading.Condition()
        self.sent: deque[_Sent] = deque()
        self.sent_bytes = 0
        self.said_goodbye = False
        self.reader: threading.Thread | None = None
        self.reaper: threading.Thread | None = None


class GlooPlane:
    """One party's connections of one job; `GlooPlane.connect` makes it."""

    def __init__(self, group: Any, rank: int, names: Sequence[str]) -> None:
        self.rank, self.world_size = rank, len(names)
        self.meter = Meter()
        self._names = tuple(names)
        self._group = group
        self._closed = False
        self._pairs = {peer: _Pair(name) for peer, name in enumerate(self._names) if peer != rank}
        for peer, pair in self._pairs.items():
            pair.reader = threading.Thread(target=self._read, args=(peer,), name=f"gloo-read-{peer}", daemon=True)
            pair.reaper = threading.Thread(target=self._reap, args=(peer,), name=f"gloo-sent-{peer}", daemon=True)
            pair.reader.start()
            pair.reaper.start()

    def __repr__(self) -> str:
        return f"GlooPlane(rank={self.rank}, world_size={self.world_size})"

    @classmethod
    def connect(cls, meeting: Transport, names: Sequence[str], host: str, timeout_s: float = 60.0) -> GlooPlane:
        """Connects to all peers; returns when every pair is up.

        meeting: how addresses are exchanged; nothing else may use it meanwhile. host: own address or name that peers
        can reach, on which gloo opens a port. Raises `ConfigError` for a host that this machine does not have, and
        `PeerLost` or `ProtocolMismatch` for peers.
        """
        _log.warning("data plane gloo: %s", GIVES_UP)
        return cls(meet(meeting, names, host, timeout_s), meeting.rank, names)

    def watch(self, meeting: Transport) -> None:
        """Loses a peer when `meeting`, through which it was met, loses it; in threads of their own, from now on."""

        def until_lost(peer: int) -> None:
            while not self._closed:
                try:
                    meeting.recv(peer, 1.0)
                except PeerSilent:
                    continue
                except VeilError as error:
                    if not self._closed:
                        time.sleep(_AFTERMATH_S)  # who leaves in order says so here first
                        self._lose(peer, error)
                    return

        for peer in self._pairs:
            threading.Thread(target=until_lost, args=(peer,), name=f"gloo-watch-{peer}", daemon=True).start()

    def send(self, peer: int, *parts: Payload) -> None:
        size_bytes = sum(len(part) for part in parts)
        if size_bytes > MAX_MESSAGE_BYTES:
            raise InputError(f"got a message of {size_bytes} bytes, expected at most {MAX_MESSAGE_BYTES}")
        self._put(peer, size_bytes, parts)
        self.meter.sent(peer, size_bytes)

    def recv(self, peer: int, timeout_s: float) -> Payload:
        try:
            message = self._pair(peer).inbox.get(timeout_s)
        except PeerSilent:
            raise
        except PeerLost as error:
            raise self._root_cause(peer, error) from None
        self.meter.received(peer, len(message))
        return message

    def listen(self, peer: int, arrived: Callable[[bool], None]) -> None:
        self._pair(peer).inbox.listen(arrived)

    def close(self) -> None:
        """Sends what is queued and says goodbye; waits for the peers' a while, then ends every connection."""
        if self._closed:
            return
        self._closed = True
        until = time.monotonic() + _LINGER_S
        for peer, pair in self._pairs.items():
            self._say_goodbye(peer)
            with pair.lock:
                pair.lock.notify_all()
        for pair in self._pairs.values():
            for thread in (pair.reader, pair.reaper):
                if thread is not None and thread is not threading.current_thread():
                    thread.join(max(0.0, until - time.monotonic()))
        self._break_off()
        for pair in self._pairs.values():
            pair.inbox.end(PeerLost("the connections were closed on this side"))

    # Sending ------------------------------------------------------------------------------------------------------

    def _put(self, peer: int, length: int, parts: Sequence[Payload]) -> None:
        pair = self._pair(peer)
        memory = torch.empty(_LENGTH.size + sum(map(len, parts)), dtype=torch.uint8)
        view, at = memory.numpy().data, _LENGTH.size
        _LENGTH.pack_into(view, 0, length)
        for part in parts:
            view[at : at + len(part)] = memoryview(part).cast("B")
            at += len(part)
        with pair.lock:
            room = pair.lock.wait_for(lambda: pair.sent_bytes < QUEUE_LIMIT_BYTES or self._ended(pair), _UNREAD_S)
            if self._ended(pair):
                raise self._root_cause(peer, self._ending(pair))
            if not room:
                raise unread(self._names[peer], pair.sent_bytes, _UNREAD_S)
            cut = _LENGTH.size + HEAD_BYTES
            try:
                # Within the lock: heads and rests are in the same order.
                works = [self._group.send([memory[:cut]], peer, _HEAD)]
                if at > cut:
                    works.append(self._group.send([memory[cut:]], peer, _REST))
            except RuntimeError:
                raise self._root_cause(peer, self._broken(peer)) from None
            pair.sent.append(_Sent(at, works, memory))
            pair.sent_bytes += at
            if pair.sent_bytes >= _REAP_BYTES or len(pair.sent) >= _REAP_MESSAGES:
                pair.lock.notify_all()

    def _reap(self, peer: int) -> None:
        """Forgets what gloo has handed to the kernel, so that memory is bounded and a full queue moves on."""
        pair = self._pairs[peer]
        while True:
            with pair.lock:
                # a full queue and an end are told; a few small messages may wait
                pair.lock.wait_for(
                    lambda: (
                        pair.said_goodbye
                        or self._ended(pair)
                        or pair.sent_bytes >= _REAP_BYTES
                        or len(pair.sent) >= _REAP_MESSAGES
                    )
                )
                if not pair.sent and (pair.said_goodbye or self._ended(pair)):
                    return
                sent = pair.sent[0]
            try:
                for work in sent.works:
                    work.wait(_FOREVER)
            except RuntimeError:
                self._broken(peer)
                return
            with pair.lock:
                pair.sent.popleft()
                pair.sent_bytes -= sent.size_bytes
                pair.lock.notify_all()

    def _say_goodbye(self, peer: int) -> None:
        pair = self._pairs[peer]
        with pair.lock:
            if pair.said_goodbye:
                return
            pair.said_goodbye = True
            memory = torch.from_numpy(np.frombuffer(_LENGTH.pack(_GOODBYE), dtype=np.uint8).copy())
            try:
                pair.sent.append(_Sent(_LENGTH.size, [self._group.send([memory], peer, _HEAD)], memory))
                pair.sent_bytes += _LENGTH.size
            except RuntimeError:
                pass  # the peer has gone; the reader says so
            pair.lock.notify_all()

    # Receiving ----------------------------------------------------------------------------------------------------

    def _read(self, peer: int) -> None:
        """The peer's messages into its inbox, until it says goodbye or the connection ends."""
        pair = self._pairs[peer]
        try:
            slots = [torch.empty(_LENGTH.size + HEAD_BYTES, dtype=torch.uint8) for _ in range(_READY)]
            ready = deque((slot, self._group.recv([slot], peer, _HEAD)) for slot in slots)
            while True:
                slot, work = ready.popleft()
                work.wait(_FOREVER)
                view = slot.numpy().data
                (length,) = _LENGTH.unpack_from(view)
                if length == _GOODBYE:
                    gone = PeerLost(f"{self._names[peer]} has closed its connection", culprits=(self._names[peer],))
                    pair.inbox.end(gone, orderly=True)
                    self._say_goodbye(peer)
                    return
                if length > MAX_MESSAGE_BYTES:
                    raise ProtocolMismatch(
                        f"got a message of {length} bytes from {self._names[peer]}, expected at most "
                        f"{MAX_MESSAGE_BYTES}",
                        culprits=(self._names[peer],),
                    )
                message = self._message(peer, length, view[_LENGTH.size :])
                ready.append((slot, self._group.recv([slot], peer, _HEAD)))
                if not pair.inbox.put(message):
                    return
        except RuntimeError:
            self._broken(peer)
        except VeilError as error:
            self._lose(peer, error)

    def _message(self, peer: int, length: int, head: memoryview) -> Payload:
        if length <= HEAD_BYTES:
            return bytes(head[:length])
        # memory that is not set to zero first
        message = torch.empty(length, dtype=torch.uint8)
        self._group.recv([message[HEAD_BYTES:]], peer, _REST).wait(_FOREVER)
        view = message.numpy().data
        view[:HEAD_BYTES] = head
        return view

    # Ends ---------------------------------------------------------------------------------------------------------

    def _pair(self, peer: int) -> _Pair:
        pair = self._pairs.get(peer)
        if pair is None:
            raise StateError(f"got rank {peer}, expected a connected peer")
        return pair

    def _ended(self, pair: _Pair) -> bool:
        return pair.said_goodbye or pair.inbox.ended is not None

    def _ending(self, pair: _Pair) -> PeerLost:
        ended = pair.inbox.ended
        if ended is not None and isinstance(ended.error, PeerLost):
            return ended.error
        return PeerLost("the connections were closed on this side")

    def _broken(self, peer: int) -> PeerLost:
        """The connection is of no use any more; gloo's own words hold addresses and are not passed on."""
        name = self._names[peer]
        self._lose(peer, PeerLost(f"the connection with {name} broke", culprits=(name,)))
        return self._ending(self._pairs[peer])

    def _lose(self, peer: int, error: VeilError) -> None:
        pair = self._pairs[peer]
        pair.inbox.end(error)
        with pair.lock:
            pair.lock.notify_all()

    def _root_cause(self, peer: int, error: PeerLost) -> VeilError:
        """When one party fails, the others leave one after another: blames whoever broke off or ended first."""
        ended = self._pairs[peer].inbox.ended
        if ended is None or self._closed:
            return error
        if ended.orderly:
            time.sleep(_AFTERMATH_S)  # a peer that left because of another may be heard of before that other
        endings = [pair.inbox.ended for pair in self._pairs.values()]
        return min((ending for ending in endings if ending is not None), key=lambda ending: ending[:2]).error

    def _break_off(self) -> None:
        """Ends what still waits in gloo, which has no other way: a receive that runs out of time ends every pair."""
        threads = [thread for pair in self._pairs.values() for thread in (pair.reader, pair.reaper)]
        if not any(thread is not None and thread.is_alive() for thread in threads):
            return
        for peer in self._pairs:
            try:
                self._group.recv([torch.empty(1, dtype=torch.uint8)], peer, _NOTHING).wait(timedelta(milliseconds=1))
            except RuntimeError:
                continue  # as meant, or the pair has ended before
