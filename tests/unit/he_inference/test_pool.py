"""Worker processes: right answers, hostile bytes, deaths, lateness and overload."""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from he_inference import frames
from he_inference.packing import SessionLayout
from he_inference.parameters import SESSION_4096
from he_inference.pool import Overloaded, WorkerPool
from he_inference.scheme import CkksSession
from veil.errors import CiphertextError, PeerLost, StateError

LAYOUT = SessionLayout(SESSION_4096, 50, 8)
ROWS = np.random.default_rng(0).normal(size=(50, 8))
ROWS = ROWS / np.linalg.norm(ROWS, axis=1, keepdims=True)
VECTOR = ROWS[3]


@pytest.fixture(scope="module")
def session() -> CkksSession:
    return CkksSession(SESSION_4096)


@pytest.fixture(scope="module")
def keys(session: CkksSession) -> bytes:
    return session.evaluation_keys(LAYOUT.galois_elements)


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(LAYOUT, ROWS, workers=1, queue_limit=1, timeout_s=20.0) as running:
        yield running


def check(pool: WorkerPool, session: CkksSession, keys: bytes, name: str = "anna") -> None:
    """One query, answered rightly."""
    scores = pool.score(name, session.encrypt(LAYOUT.pack_query(VECTOR)), lambda: keys)
    found = LAYOUT.unpack([session.decrypt(data) for data in scores.ciphertexts])
    assert np.abs(found - ROWS @ VECTOR).max() < SESSION_4096.score_error
    assert scores.compute_us > 0


def until_replaced(pool: WorkerPool, gone: int) -> None:
    limit = time.monotonic() + 60
    while gone in pool.pids or not pool.pids:
        assert time.monotonic() < limit
        time.sleep(0.01)


def test_a_query_is_answered_with_keys_from_memory_or_on_demand(
    pool: WorkerPool, session: CkksSession, keys: bytes
) -> None:
    pool.register("anna", keys)
    scores = pool.score("anna", session.encrypt(LAYOUT.pack_query(VECTOR)), lambda: pytest.fail("held already"))
    assert len(scores.ciphertexts) == LAYOUT.blocks
    check(pool, session, keys, name="not seen before")


def test_keys_that_cannot_be_had_are_the_callers_error(pool: WorkerPool, session: CkksSession, keys: bytes) -> None:
    def none() -> bytes:
        raise StateError("unknown keys")

    with pytest.raises(StateError, match="unknown keys"):
        pool.score("nobody", session.encrypt(LAYOUT.pack_query(VECTOR)), none)
    check(pool, session, keys)


def test_hostile_bytes_are_answered_and_the_worker_goes_on(pool: WorkerPool, session: CkksSession, keys: bytes) -> None:
    """Flipped bits reach SEAL (its files carry no checksum); whatever it does, the next query is answered."""
    query = session.encrypt(LAYOUT.pack_query(VECTOR))
    generator = np.random.default_rng(5)
    outcomes = {"refused": 0, "scored": 0, "worker lost": 0}
    for number in range(120):
        target = query if number % 2 else keys
        forged = bytearray(target)
        span = len(target) if number % 3 else 300
        for position in generator.integers(16, span, 1 + number % 4):
            forged[position] ^= 1 << int(generator.integers(0, 8))
        try:
            if number % 2:
                pool.score("anna", bytes(forged), lambda: keys)
            else:
                pool.register("eve", bytes(forged))
            outcomes["scored"] += 1
        except CiphertextError:
            outcomes["refused"] += 1
        except PeerLost:
            outcomes["worker lost"] += 1
    assert outcomes["refused"] > 20
    check(pool, session, keys)


@pytest.mark.parametrize("data", [b"", b"\0", b"x" * 5000, b"\x5e\xa1\x10\x04\x03\x02\0\0" + b"\xff" * 8])
def test_bytes_that_are_nothing_are_refused(pool: WorkerPool, keys: bytes, data: bytes) -> None:
    with pytest.raises(CiphertextError):
        pool.score("anna", data, lambda: keys)
    with pytest.raises(CiphertextError):
        pool.register("anna", data)


def test_a_worker_that_is_killed_fails_its_request_only(pool: WorkerPool, session: CkksSession, keys: bytes) -> None:
    (pid,) = pool.pids
    os.kill(pid, signal.SIGSTOP)  # so that it is in the middle of the request for certain
    killer = threading.Timer(0.3, os.kill, (pid, signal.SIGKILL))
    killer.start()
    with pytest.raises(PeerLost, match="replaced"):
        check(pool, session, keys)
    killer.join()
    check(pool, session, keys)
    assert pid not in pool.pids


def test_a_worker_that_is_late_is_replaced(session: CkksSession, keys: bytes) -> None:
    with WorkerPool(LAYOUT, ROWS, workers=1, timeout_s=5.0) as pool:
        (pid,) = pool.pids
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(PeerLost, match="in time"):
            pool.score("anna", session.encrypt(LAYOUT.pack_query(VECTOR)), lambda: keys)
        until_replaced(pool, pid)
        check(pool, session, keys)


def test_more_than_may_wait_are_refused(session: CkksSession, keys: bytes) -> None:
    query = session.encrypt(LAYOUT.pack_query(VECTOR))
    with WorkerPool(LAYOUT, ROWS, workers=1, queue_limit=1, timeout_s=30.0) as pool:
        (pid,) = pool.pids
        os.kill(pid, signal.SIGSTOP)
        threads = [threading.Thread(target=pool.score, args=("anna", query, lambda: keys)) for _ in range(2)]
        for thread in threads:
            thread.start()
        limit = time.monotonic() + 10
        while pool._waiting < 1:
            assert time.monotonic() < limit
            time.sleep(0.01)
        with pytest.raises(Overloaded, match="1 requests wait"):
            pool.score("anna", query, lambda: keys)
        os.kill(pid, signal.SIGCONT)
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
        check(pool, session, keys)


def test_a_hurried_caller_costs_no_worker_its_life(session: CkksSession, keys: bytes) -> None:
    with WorkerPool(LAYOUT, ROWS, workers=1, queue_limit=4, timeout_s=30.0) as pool:
        before = pool.pids
        pool.score("anna", session.encrypt(LAYOUT.pack_query(VECTOR)), lambda: keys, timeout_s=0.0)
        assert pool.pids == before


def test_closing_ends_every_process(keys: bytes) -> None:
    pool = WorkerPool(LAYOUT, ROWS, workers=2).start()
    pids = pool.pids
    pool.close()
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    with pytest.raises(StateError):
        pool.register("anna", keys)


def test_frames_are_bounded_and_hold_json_only() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        frames.send(ours, {"kind": "x"}, [b"", b"abc"])
        assert frames.receive(theirs) == ({"kind": "x"}, [b"", b"abc"])
        for bad in (
            struct.pack(">I", 0),
            struct.pack(">I", 1 << 31),
            struct.pack(">IQ", 1, 1 << 60),
            struct.pack(">IQQ", 2, 2, 1 << 40),
            struct.pack(">IQ", 1, 2) + b"no",
            struct.pack(">IQ", 1, 2) + b"[]",
        ):
            ours.sendall(bad)
            with pytest.raises(frames.FrameError):
                frames.receive(theirs)
        with pytest.raises(frames.FrameError, match="in time"):
            frames.receive(theirs, deadline=time.monotonic() + 0.05)
        ours.close()
        with pytest.raises(frames.FrameError, match="closed"):
            frames.receive(theirs, deadline=time.monotonic() + 1)
