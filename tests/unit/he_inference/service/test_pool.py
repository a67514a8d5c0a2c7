"""The queue and the compute process behind it: real processes, real keys; killed, stopped, flooded, exchanged."""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from he_inference import messages
from he_inference.layouts.catalogue import layout_of
from he_inference.parameters import FAST, KEYLESS
from he_inference.service import frames
from he_inference.service.pool import WorkerPool
from he_inference.service.process import IndexFile, Process
from he_inference.service.setting import Setting
from he_inference.service.tickets import Late, Scores, most_together
from tests.unit.he_inference.serving import Asker, make_index, unit_rows, until
from veil.errors import CiphertextError, ConfigError, LimitError, PeerLost, StateError

ITEMS, DIMENSIONS = 50, 8
SESSION = layout_of("session", FAST, ITEMS, DIMENSIONS)
ONE_SHOT = layout_of("keyless", KEYLESS, ITEMS, DIMENSIONS, 4)
ROWS = unit_rows(ITEMS, DIMENSIONS)
ONE_THREAD = Setting(threads=1)


class Counted:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.hits: list[bool] = []
        self.restarts = 0

    def queue_is(self, queries: int) -> None:
        assert queries >= 0

    def batch_was(self, queries: int) -> None:
        self.batches.append(queries)

    def keys_found(self, hit: bool) -> None:
        self.hits.append(hit)

    def worker_restarted(self) -> None:
        self.restarts += 1


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[IndexFile]]:
    folder = tmp_path_factory.mktemp("index")
    made = [make_index(folder / "s", SESSION, ROWS), make_index(folder / "k", ONE_SHOT, ROWS)]
    yield made
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def shared(files: list[IndexFile]) -> Iterator[WorkerPool]:
    with WorkerPool(setting=ONE_THREAD, timeout_s=20.0) as running:
        running.serve(files)
        yield running


@pytest.fixture(scope="module")
def session(shared: WorkerPool, files: list[IndexFile]) -> Asker:
    return Asker(shared, files[0], ROWS)


@pytest.fixture(scope="module")
def one_shot(shared: WorkerPool, files: list[IndexFile]) -> Asker:
    return Asker(shared, files[1], ROWS)


@pytest.fixture
def pool(files: list[IndexFile]) -> Iterator[WorkerPool]:
    """A pool of its own, for tests that hurt it."""
    with WorkerPool(setting=ONE_THREAD, queue_limit=6, timeout_s=6.0, observer=Counted()) as running:
        running.serve(files)
        yield running


def moved(asker: Asker, pool: WorkerPool) -> Asker:
    """The same client, of another pool."""
    return Asker(pool, asker.index, asker.rows)


def counted(pool: WorkerPool) -> Counted:
    assert isinstance(pool._observer, Counted)
    return pool._observer


def test_queries_of_both_layouts_are_answered(session: Asker, one_shot: Asker) -> None:
    for asker in (session, one_shot):
        scores = asker.ask()
        assert len(scores.results) == asker.index.layout.blocks and scores.batch_queries == 1
        assert {len(result) for result in scores.results} == {
            messages.result_bytes(asker.index.layout.parameters, asker.index.layout.used_coefficients)
        }
        assert scores.compute_us > 0


def test_keys_are_held_or_asked_for(session: Asker) -> None:
    session.pool.register(session.index, "held", session.keys)
    session.pool.score(session.index, "held", session.query(1), lambda: pytest.fail("held already"))
    session.ask(name="not seen before")


def test_keys_that_cannot_be_had_are_the_callers_error(session: Asker) -> None:
    def none() -> bytes:
        raise StateError("unknown keys")

    with pytest.raises(StateError, match="unknown keys"):
        session.pool.score(session.index, "nobody", session.query(1), none)
    session.ask()


def test_a_process_that_has_lost_keys_is_sent_them_again(session: Asker) -> None:
    """The book of what it holds is a guess; the process has the last word."""
    session.pool._process._known["believed to be held"] = None  # type: ignore[union-attr]
    session.ask(name="believed to be held")


def test_what_is_no_residue_is_refused_and_nothing_else_happens(session: Asker, one_shot: Asker) -> None:
    before = session.pool.pids
    for asker in (session, one_shot):
        with pytest.raises(CiphertextError, match="beyond its modulus"):
            asker.pool.score(asker.index, asker.name, b"\xff" * len(asker.query(0)), lambda asker=asker: asker.keys)
    with pytest.raises(CiphertextError):
        session.pool.register(session.index, "eve", b"\xff" * len(session.keys))
    for wrong in (b"", b"x", session.keys[:-1], session.keys + b"\0"):
        with pytest.raises(CiphertextError, match="bytes"):
            session.pool.register(session.index, "eve", wrong)
        with pytest.raises(CiphertextError, match="bytes"):
            session.pool.score(session.index, session.name, wrong, lambda: session.keys)
    session.ask()
    assert session.pool.pids == before, "the process lives"


def test_random_residues_are_computed_with_like_any_others(session: Asker) -> None:
    generator = np.random.default_rng(7)
    primes = np.array(FAST.data_primes)[:, None]
    for _ in range(20):
        words = (generator.random((1, len(primes), FAST.degree)) * primes).astype(np.uint32)
        hostile = messages.write_query(FAST, generator.bytes(32), words)
        assert (
            len(session.pool.score(session.index, session.name, hostile, lambda: session.keys).results)
            == SESSION.blocks
        )


def test_queries_that_wait_are_computed_together_with_the_same_answers(pool: WorkerPool, session: Asker) -> None:
    asker = moved(session, pool)
    asker.ask(1)
    query = asker.query(2)
    alone = pool.score(asker.index, asker.name, query, lambda: asker.keys)
    (pid,) = pool.pids
    os.kill(pid, signal.SIGSTOP)
    found: list[Scores] = []
    bad: list[Exception] = []

    def one(data: bytes) -> None:
        try:
            found.append(pool.score(asker.index, asker.name, data, lambda: asker.keys))
        except CiphertextError as error:
            bad.append(error)

    threads = [threading.Thread(target=one, args=(data,)) for data in [query] * 4 + [b"\xff" * len(query)]]
    for thread in threads:
        thread.start()
    until(lambda: pool.waiting + pool._running == 5)
    os.kill(pid, signal.SIGCONT)
    for thread in threads:
        thread.join(30)
    assert len(found) == 4 and len(bad) == 1, "one that is no query spoils no other"
    assert {tuple(scores.results) for scores in found} == {tuple(alone.results)}
    assert max(scores.batch_queries for scores in found) >= 2
    assert sum(counted(pool).batches) == 2 + 5


def test_queries_for_different_indexes_share_no_batch(pool: WorkerPool, session: Asker, one_shot: Asker) -> None:
    askers = [moved(session, pool), moved(one_shot, pool)]
    (pid,) = pool.pids
    os.kill(pid, signal.SIGSTOP)
    threads = [threading.Thread(target=askers[number % 2].ask) for number in range(6)]
    for thread in threads:
        thread.start()
    until(lambda: pool.waiting + pool._running == 6)
    os.kill(pid, signal.SIGCONT)
    for thread in threads:
        thread.join(30)
    assert sum(counted(pool).batches) == 6 and max(counted(pool).batches) <= 3


def test_a_process_that_is_killed_costs_no_query(pool: WorkerPool, session: Asker) -> None:
    asker = moved(session, pool)
    (pid,) = pool.pids
    os.kill(pid, signal.SIGSTOP)  # so that it is in the middle of the batch for certain
    killer = threading.Timer(0.3, os.kill, (pid, signal.SIGKILL))
    killer.start()
    found = asker.ask_together([1, 2, 3, 4])
    killer.join()
    assert all(isinstance(one, Scores) for one in found), found
    assert pid not in pool.pids and pool.replaced == counted(pool).restarts == 1


def test_a_process_that_is_late_is_replaced(pool: WorkerPool, session: Asker) -> None:
    asker = moved(session, pool)
    (pid,) = pool.pids
    os.kill(pid, signal.SIGSTOP)
    asker.ask()
    assert pid not in pool.pids and pool.replaced == 1


def test_a_query_that_costs_two_processes_fails_alone(pool: WorkerPool, session: Asker) -> None:
    asker = moved(session, pool)
    killed: list[int] = []

    def keys() -> bytes:
        # Asked for when the query's turn has come, by each process anew.
        killed.extend(pool.pids)
        os.kill(killed[-1], signal.SIGKILL)
        return asker.keys

    with pytest.raises(PeerLost, match="twice"):
        pool.score(asker.index, "killer", asker.query(1), keys)
    assert len(set(killed)) == 2 and pool.replaced == 2
    asker.ask()


def test_more_than_may_wait_are_told_when_to_come_again(pool: WorkerPool, session: Asker) -> None:
    asker = moved(session, pool)
    (pid,) = pool.pids
    os.kill(pid, signal.SIGSTOP)
    threads = [threading.Thread(target=asker.ask) for _ in range(7)]
    threads[0].start()
    until(lambda: pool._running == 1)
    for thread in threads[1:]:
        thread.start()
    until(lambda: pool.waiting == 6)
    for refused in (asker.ask, pool.check_room):
        with pytest.raises(LimitError, match="6 requests wait") as error:
            refused()
        assert error.value.retry_after_s is not None and 0 < error.value.retry_after_s < 60
    os.kill(pid, signal.SIGCONT)
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    pool.check_room()


def test_a_query_that_nobody_waits_for_is_not_computed(pool: WorkerPool, session: Asker) -> None:
    asker = moved(session, pool)
    (pid,) = pool.pids
    os.kill(pid, signal.SIGSTOP)
    running = threading.Thread(target=asker.ask)
    running.start()
    until(lambda: pool._running == 1)
    with pytest.raises(Late):
        pool.score(asker.index, asker.name, asker.query(1), lambda: asker.keys, timeout_s=0.1)
    ticket = pool.ticket(asker.index, asker.name, asker.query(1), lambda: asker.keys, None)
    threading.Timer(0.1, ticket.cancel).start()
    with pytest.raises(Late):
        pool.scores(ticket)
    assert pool.waiting == 0
    os.kill(pid, signal.SIGCONT)
    running.join(30)
    assert pool.drain(5.0)
    assert counted(pool).batches == [1] and pool.pids == [pid]


def test_other_indexes_take_over_without_a_query_that_fails(
    pool: WorkerPool, session: Asker, files: list[IndexFile], tmp_path: Path
) -> None:
    old = moved(session, pool)
    other = unit_rows(ITEMS, DIMENSIONS, seed=1)
    new_file = make_index(tmp_path / "n", SESSION, other, b"n" * 32)
    stop = threading.Event()
    answered: list[Scores] = []

    def keep_asking() -> None:
        while not stop.is_set():
            answered.append(old.ask())

    thread = threading.Thread(target=keep_asking)
    thread.start()
    until(lambda: len(answered) > 3)
    before = pool.pids
    pool.serve([new_file, *files])
    new = Asker(pool, new_file, other)
    new.ask()
    so_far = len(answered)
    until(lambda: len(answered) > so_far + 3)
    stop.set()
    thread.join(30)
    assert not set(before) & set(pool.pids) and len(pool.pids) == 1
    pool.serve([new_file])
    new.ask()
    with pytest.raises(StateError, match="gone"):
        old.ask()
    new_file.close()


def test_an_index_that_cannot_be_served_leaves_the_present_ones(
    pool: WorkerPool, session: Asker, files: list[IndexFile], tmp_path: Path
) -> None:
    damaged = make_index(tmp_path / "d", SESSION, ROWS)
    damaged.close()
    content = bytearray((tmp_path / "d").read_bytes())
    content[-5] ^= 1
    (tmp_path / "d").write_bytes(content)
    damaged = IndexFile.open(tmp_path / "d")
    before = pool.pids
    with pytest.raises(StateError, match="damaged"):
        pool.serve([damaged, *files])
    damaged.close()
    assert pool.pids == before
    moved(session, pool).ask()


@pytest.mark.parametrize("reason", [KeyboardInterrupt, ConfigError("no device")])
def test_a_start_that_does_not_come_about_leaves_no_process(
    reason: type[BaseException] | BaseException, files: list[IndexFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[int] = []

    def interrupted(self: Process) -> None:
        started.append(self.pid)
        raise reason

    monkeypatch.setattr(Process, "start", interrupted)
    with WorkerPool(setting=ONE_THREAD) as pool, pytest.raises((KeyboardInterrupt, ConfigError)):
        pool.serve(files)
    with pytest.raises(ProcessLookupError):
        os.kill(started[0], 0)


def test_closing_ends_the_process_and_what_waits(files: list[IndexFile], session: Asker) -> None:
    pool = WorkerPool(setting=ONE_THREAD)
    pool.serve(files[:1])
    asker = moved(session, pool)
    (pid,) = pool.pids
    os.kill(pid, signal.SIGSTOP)
    found: list[Scores | Exception] = []
    thread = threading.Thread(target=lambda: found.extend(asker.ask_together([1, 2, 3])))
    thread.start()
    until(lambda: pool.waiting + pool._running == 3)
    pool.close()
    thread.join(30)
    assert len(found) == 3 and all(isinstance(one, StateError) for one in found)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    for late in (lambda: pool.register(asker.index, asker.name, asker.keys), lambda: pool.serve(files)):
        with pytest.raises(StateError):
            late()


def test_the_process_inherits_nothing_that_it_does_not_need(
    files: list[IndexFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VEIL_SECRET", "word")
    with WorkerPool(setting=ONE_THREAD) as pool:
        pool.serve(files)
        (pid,) = pool.pids
        folder = Path(f"/proc/{pid}")
        if not folder.exists():
            pytest.skip("no /proc on this system")
        assert b"VEIL_SECRET" not in (folder / "environ").read_bytes()
        limits = {line[:26].strip(): line[26:].split() for line in (folder / "limits").read_text().splitlines()}
        assert limits["Max core file size"][:2] == ["0", "0"]
        assert limits["Max address space"][0] != "unlimited" and limits["Max file size"][0] != "unlimited"
        opened = [os.readlink(one) for one in (folder / "fd").iterdir()]
        sockets = [name for name in opened if name.startswith("socket:")]
        assert len(sockets) == 1, opened


def test_batches_are_bounded_by_memory_for_large_queries() -> None:
    assert most_together(SESSION) == 32
    assert 1 <= most_together(layout_of("keyless", KEYLESS, 1_000_000, 250, 1)) < 32
    assert most_together(layout_of("session", FAST, 4_000_000, 1024)) >= 1


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
