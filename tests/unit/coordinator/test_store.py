"""The store across crashes: what was committed is there, what was not has left nothing behind."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from coordinator.messages import Record
from coordinator.schema import plan_of
from coordinator.states import Cancelled, Done, Failed, Job, Phase, Proposed, Running, Starting, Waiting
from coordinator.store import MOST_EVENTS, MOST_LINES, Store
from veil.errors import StateError
from veil.jobs.reports import Failure, Outcome, Progress
from veil.jobs.signing import Approval
from veil.jobs.spec import JobSpec

MakeSpec = Callable[..., JobSpec]
APPROVALS = (Approval("alpha", b"a", b"pem"), Approval("beta", b"b", b"pem"))
PROGRESS = {"alpha": Progress("counts", 3, 5, 1, 2, 3, 2**62)}
FAILURE = Failure("PEER_LOST", "lost alpha", ("alpha",))
OUTCOME = Outcome(b"m" * 32, 2_999_999, "1e-06")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "jobs.sqlite"


def proposed(spec: JobSpec, number: int = 1) -> Proposed:
    return Proposed(plan=plan_of(f"{number:032x}", spec, 1_000))


def record(job: Job, line: str = "submitted", **more: object) -> Record:
    return Record(job.job_id, Phase.PROPOSED, line, **more)  # type: ignore[arg-type]


def write(store: Store, job: Job, spec: JobSpec) -> None:
    store.commit([job], [record(job)], 2_000, text=spec.text())


@pytest.mark.parametrize("stage", [Proposed, Waiting, Done, Failed, Cancelled])
def test_every_state_comes_back(path: Path, make_spec: MakeSpec, stage: type[Job]) -> None:
    spec = make_spec()
    common = {"plan": proposed(spec).plan, "approvals": APPROVALS, "progress": PROGRESS}
    ended = {"ended_ms": 5_000, "owed": frozenset({"beta"})}
    more: dict[type[Job], dict[str, object]] = {
        Done: {**ended, "outcome": OUTCOME},
        Failed: {**ended, "failure": FAILURE},
        Cancelled: {**ended, "failure": FAILURE},
    }
    job = stage(**common, **more.get(stage, {}))  # type: ignore[arg-type]
    store = Store(path)
    write(store, job, spec)
    store.close()
    store = Store(path)
    row = store.find(job.job_id)
    assert row is not None
    assert (row.job, row.text) == (job, spec.text())
    assert store.resume() == [job]
    found = store.find_digest(job.plan.digest)
    assert found is not None
    assert found.job == job
    store.close()


@pytest.mark.parametrize("stage", [Starting, Running])
def test_what_ran_comes_back_as_such(path: Path, make_spec: MakeSpec, stage: type[Starting | Running]) -> None:
    spec = make_spec()
    job = stage(plan=proposed(spec).plan, approvals=APPROVALS, started_ms=1_500)
    store = Store(path)
    write(store, job, spec)
    store.close()
    store = Store(path)
    (again,) = store.resume()
    assert type(again) is stage
    assert again.approvals == APPROVALS
    store.close()


def test_ended_jobs_that_everybody_heard_of_are_not_resumed(path: Path, make_spec: MakeSpec) -> None:
    store = Store(path)
    spec = make_spec()
    job = Failed(plan=proposed(spec).plan, ended_ms=1, owed=frozenset(), failure=FAILURE)
    write(store, job, spec)
    assert store.resume() == []
    assert [row.job for row in store.newest(10)] == [job]
    store.close()


def test_history(path: Path, make_spec: MakeSpec) -> None:
    store = Store(path)
    spec = make_spec()
    job = proposed(spec)
    records = [
        record(job),
        record(job, "further", party="alpha", progress=PROGRESS["alpha"]),
        record(job, "failed", failure=FAILURE),
        record(job, "done", outcome=OUTCOME),
    ]
    written = store.commit([job], records, 7, text=spec.text())
    assert [entry.sequence for entry in written] == [1, 2, 3, 4]
    assert store.history(job.job_id) == written
    assert [entry.record for entry in written] == records
    store.close()


def test_history_is_bounded(path: Path, make_spec: MakeSpec) -> None:
    store = Store(path)
    spec = make_spec()
    job = proposed(spec)
    progress = record(job, "further", party="alpha", progress=PROGRESS["alpha"])
    written = store.commit([job], [progress] * (MOST_EVENTS + 10), 7, text=spec.text())
    assert len(written) == MOST_EVENTS
    assert len(store.commit([job], [record(job, "later")] * (MOST_LINES + 10), 7)) == MOST_LINES - MOST_EVENTS
    (end,) = store.commit([job], [record(job, "later"), record(job, "failed", failure=FAILURE)], 8)
    assert end.record.failure == FAILURE
    assert end.sequence == MOST_LINES + 1
    store.close()


def test_a_step_is_written_whole_or_not_at_all(path: Path, make_spec: MakeSpec) -> None:
    store = Store(path)
    first, second = make_spec(), make_spec()
    stranger = Record("f" * 32, Phase.PROPOSED, "of a job that nobody registered")
    with pytest.raises(StateError, match="FOREIGN KEY"):
        store.commit([proposed(first)], [record(proposed(first)), stranger], 1, text=first.text())
    assert store.newest(10) == []
    write(store, proposed(second, 2), second)
    assert len(store.newest(10)) == 1
    store.close()


def test_two_jobs_of_one_digest_are_refused(path: Path, make_spec: MakeSpec) -> None:
    store = Store(path)
    spec = make_spec()
    write(store, proposed(spec, 1), spec)
    with pytest.raises(StateError, match="UNIQUE"):
        write(store, proposed(spec, 2), spec)
    store.close()


def crash(path: Path, text: str, body: str) -> None:
    """Runs `body` on a store in a process of its own, which then dies without a word."""
    code = f"""
    import os, signal, sys
    from pathlib import Path
    from coordinator.messages import Record
    from coordinator.schema import plan_of
    from coordinator.states import Phase, Proposed
    from coordinator.store import Store
    from veil.jobs.spec import parse
    text = sys.argv[2]
    store = Store(Path(sys.argv[1]))
    job = Proposed(plan=plan_of("0" * 32, parse(text), 1))
    record = Record(job.job_id, Phase.PROPOSED, "submitted")
    def die():
        os.kill(os.getpid(), signal.SIGKILL)
    {body}
    die()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(path), text], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL


def test_killed_after_a_commit(path: Path, make_spec: MakeSpec) -> None:
    spec = make_spec()
    crash(path, spec.text(), "store.commit([job], [record], 1, text=text)")
    store = Store(path)
    assert [row.job.plan.digest for row in store.newest(10)] == [proposed(spec).plan.digest]
    assert len(store.history("0" * 32)) == 1
    store.close()


def test_killed_within_a_commit(path: Path, make_spec: MakeSpec) -> None:
    spec = make_spec()
    # dies between the job's row and its line in the history
    crash(path, spec.text(), "store._append = lambda *_: die(); store.commit([job], [record], 1, text=text)")
    store = Store(path)
    assert store.newest(10) == []
    assert store.history("0" * 32) == []
    write(store, proposed(spec), spec)
    store.close()


def test_one_process_at_a_time(path: Path) -> None:
    store = Store(path)
    with pytest.raises(StateError, match="another coordinator"):
        Store(path)
    store.close()
    Store(path).close()


def test_another_schema_is_refused(path: Path) -> None:
    Store(path).close()
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StateError, match="schema 99"):
        Store(path)


def test_another_file_is_refused(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"not a database, but long enough to be looked at by SQLite " * 20)
    with pytest.raises(StateError, match="no usable store"):
        Store(path)


def test_a_database_of_somebody_else_is_refused(path: Path) -> None:
    path.parent.mkdir()
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE theirs (x)")
    database.close()
    with pytest.raises(StateError, match="schema 0"):
        Store(path)


def test_mode(path: Path) -> None:
    previous = os.umask(0)
    try:
        store = Store(path)
        assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}
        store.close()
    finally:
        os.umask(previous)
