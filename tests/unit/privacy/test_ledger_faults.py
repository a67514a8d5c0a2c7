"""SIGKILL at every boundary of the ledger's work: what was permitted is on record, and the ledger goes on.

A killed process leaves to the file system what its system calls did, so the trials may run in memory: nothing here
depends on the disk. That the bytes are on the disk before `record` returns is checked by the order of its system calls.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.privacy import system_calls
from veil.privacy.accountant import epsilon
from veil.privacy.ledger import Ledger

WORKLOAD = Path(__file__).with_name("ledger_workload.py")
DELTA = 1e-5
BEFORE = ["r-0", "r-1", "r-2"]
AFTER = [*BEFORE, "opened", "beside"]

_REFUSED = system_calls.refused()
traced = pytest.mark.skipif(bool(_REFUSED), reason=_REFUSED)


@pytest.fixture
def folder() -> Iterator[Path]:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        yield Path(name)


def run(kind: str, folder: Path, *arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, str(WORKLOAD), kind, str(folder / "ledger.db"), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        timeout=280,
        check=True,
    )
    return done.stdout.splitlines()


def check(trials: list[dict[str, Any]]) -> None:
    """What holds after every kill, wherever it was."""
    for trial in trials:
        recorded = trial["recorded"]
        # Nothing that was on record before is lost, and both releases are added or none, whole.
        assert recorded in (BEFORE, AFTER), trial
        # Never under-counted: what may have opened is on record and counted.
        if trial["permitted"]:
            assert recorded == AFTER and trial["spent"] > trial["spent_before"], trial
        assert trial["spent"] >= trial["spent_before"], trial
        # It goes on: what is on record opens no second time, what is not may be recorded now.
        assert trial["again"] == ("refused" if recorded == AFTER else "taken"), trial
        assert trial["after"] == [*AFTER, "later"], trial
    # From the first boundary, where nothing has happened, to the end, where all has.
    assert trials[0]["recorded"] == BEFORE
    assert any(trial["permitted"] for trial in trials)
    assert any(trial["recorded"] == AFTER and not trial["permitted"] for trial in trials)


@traced
def test_killed_at_every_system_call_of_a_record(folder: Path) -> None:
    """Before and after each one, then 50 times or more some instructions later; 200 trials at least."""
    trials = [json.loads(line) for line in run("system", folder, "1")]
    assert len(trials) >= 200
    assert sum(" + 0" in trial["where"] for trial in trials) >= 100
    check(trials)


def test_killed_at_every_line_of_the_ledgers_code(folder: Path) -> None:
    trials = [json.loads(line) for line in run("python", folder)]
    assert len(trials) >= 50
    check(trials)


@traced
def test_killed_while_a_ledger_is_made(folder: Path) -> None:
    """There is a whole ledger or none: the next start makes or continues it, under one limit."""
    trials = [json.loads(line) for line in run("create", folder)]
    assert len(trials) >= 50
    assert all(trial["limits"] == [5.0] for trial in trials)
    assert not trials[0]["there"] and trials[-1]["there"]


@traced
def test_all_is_on_disk_before_a_record_returns(tmp_path: Path) -> None:
    """What was written is synced before the release is reported as permitted, also when others have the file open."""
    calls = [tuple(json.loads(line)) for line in run("order", tmp_path)]
    assert calls[-1][0] == "write" and calls[-1][1].startswith("pipe:")
    # The memory-mapped index beside them is made anew from the log.
    last = {name: kind for kind, name in calls[:-1] if name != "ledger.db-shm"}
    assert ("write", "ledger.db-wal") in calls
    assert set(last.values()) == {"sync"}, last


def test_kills_from_outside_at_random_moments(folder: Path) -> None:
    """40 processes that record in a loop, one after the other on one ledger: all that was permitted is on record."""
    path = folder / "ledger.db"
    reported = run("killed", folder, "40", "1")
    ledger = Ledger(path, epsilon_limit=1000.0, delta=DELTA)
    entries = ledger.entries()
    recorded = [f"{e.job_id} {e.release.name}" for e in entries]
    assert len(reported) >= 10
    assert set(reported) <= set(recorded)
    # At most one a trial was recorded without a chance to report it: over-counted, the safe way.
    assert len(recorded) <= len(reported) + 40
    assert ledger.spent() == epsilon([entry.release for entry in entries], DELTA)
