"""Programs that the ledger's tests run as processes of their own: `python ledger_workload.py KIND PATH NUMBER...`.

race PATH WHO TIMES      tries to record TIMES releases; prints each that the ledger permitted
killed PATH TRIALS SEED  TRIALS children, each recording in a loop until a SIGKILL at a random moment; prints what the
                         children reported as permitted, one line each
full PATH EXTRA          may let no file grow beyond its present size plus EXTRA bytes, and records until it fails

and, forking from one warmed process, each trial on a fresh copy of the same ledger, one JSON line each:

system PATH SEED         a SIGKILL before and after every system call of one `record`, and some instructions later
python PATH              a SIGKILL at every line, call and return of the ledger's own code within one `record`
create PATH              a SIGKILL before and after every system call that may change files, while a ledger is made
order PATH               no kill: the system calls of one `record` on the ledger's files, in order
"""

from __future__ import annotations

import json
import logging
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from veil.errors import BudgetError, StateError
from veil.jobs.spec import Release
from veil.privacy.ledger import Ledger

LIMIT, DELTA = 3.0, 1e-5
FREE_SIGMA = 2**50  # costs epsilon 0 at this delta, so that nearly all of a record's time is its transaction
BEFORE = 3  # releases that are on record when a trial starts
LEAST_TRIALS = 200
_READER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("SELECT count(*) FROM entry").fetchone()
print("reading", flush=True)
sys.stdin.read()
"""


def release(name: str, sigma: int = 750) -> Release:
    return Release(name=name, shape=(4, 2), sensitivity=100, sigma=sigma)


def race(path: Path, who: str, times: int) -> None:
    ledger = Ledger(path, epsilon_limit=LIMIT, delta=DELTA)
    for i in range(times):
        try:
            ledger.record(f"job-{who}", bytes(32), release(f"r-{i}"))
        except BudgetError:
            continue
        print(f"job-{who} r-{i}", flush=True)


def child(path: Path, trial: int, report: int) -> None:
    ledger = Ledger(path, epsilon_limit=1000.0, delta=DELTA)
    for i in range(1000):
        ledger.record(f"job-{trial}", bytes(32), release(f"r-{i}", FREE_SIGMA))
        os.write(report, f"job-{trial} r-{i}\n".encode())


def killed(path: Path, trials: int, seed: int) -> None:
    generator = random.Random(seed)
    reader, writer = os.pipe()
    for trial in range(trials):
        process = os.fork()
        if process == 0:
            child(path, trial, writer)
            os._exit(0)
        time.sleep(generator.uniform(0.0, 0.1))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    os.close(writer)
    with os.fdopen(reader) as lines:
        sys.stdout.write(lines.read())


def full(path: Path, extra: int) -> None:
    ledger = Ledger(path, epsilon_limit=1000.0, delta=DELTA)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size = path.stat().st_size + extra
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    for i in range(1000):
        try:
            ledger.record("job-full", bytes(32), release(f"r-{i}", FREE_SIGMA))
        except StateError as error:
            print(f"refused {error}", flush=True)
            return
        print(f"job-full r-{i}", flush=True)


class Trials:
    """Trials on copies of one ledger with `BEFORE` releases; `run` says what one kill left behind."""

    def __init__(self, path: Path) -> None:
        self.base, self.place = path, path.parent / "trial"
        # Opened, read and counted once: what children do is warm, and their system calls are always the same.
        ledger = Ledger(path, epsilon_limit=1000.0, delta=DELTA)
        for i in range(BEFORE):
            ledger.record("before", bytes(32), release(f"r-{i}"))
        Ledger.existing(path).check([release("next")])
        self.whole = ledger.spent()
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.reader, False)

    def fresh(self) -> Path:
        """A copy in a folder that holds nothing else, and nothing reported yet."""
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()
        self.reported()
        return Path(shutil.copy(self.base, self.place / "ledger.db"))

    def record(self, path: Path) -> Callable[[], None]:
        """What a child does: two releases on record in one commit, then the report that they may open."""
        ledger = Ledger(path, epsilon_limit=1000.0, delta=DELTA)

        def work() -> None:
            ledger.record("job", bytes(32), release("opened"), release("beside"))
            os.write(self.writer, b"permitted")

        return work

    def reported(self) -> bool:
        try:
            return os.read(self.reader, 64) == b"permitted"
        except BlockingIOError:
            return False

    def look(self, path: Path, where: str) -> None:
        """Prints what is on record after a kill, and whether the ledger still takes and refuses what it should."""
        reported = self.reported()
        found = Ledger.existing(path)
        recorded = [entry.release.name for entry in found.entries()]
        spent = found.spent()
        try:
            found.record("job", bytes(32), release("opened"), release("beside"))
            again = "taken"
        except StateError:
            again = "refused"
        found.record("job", bytes(32), release("later"))
        after = [entry.release.name for entry in Ledger.existing(path).entries()]
        trial = {"where": where, "permitted": reported, "recorded": recorded, "again": again, "after": after}
        print(json.dumps({**trial, "spent": spent, "spent_before": self.whole}), flush=True)


def system(path: Path, seed: int) -> None:
    from system_calls import Stopped

    generator = random.Random(seed)
    trials = Trials(path)

    def trial(boundary: int, instructions: int) -> bool:
        copy = trials.fresh()
        with Stopped(trials.record(copy)) as traced:
            reached = all(traced.to_boundary() for _ in range(boundary))
            traced.step(instructions)
        trials.look(copy, f"boundary {boundary} + {instructions}")
        return reached

    boundary = 0
    while trial(boundary, 0):
        boundary += 1
    # The last boundary is the one that was not reached. Further trials: between two of them.
    for _ in range(max(50, LEAST_TRIALS - boundary)):
        trial(generator.randrange(boundary), generator.randrange(1, 1500))


def python(path: Path) -> None:
    trials = Trials(path)

    def trial(event: int) -> bool:
        copy = trials.fresh()
        work = trials.record(copy)
        process = os.fork()
        if process == 0:
            seen = 0

            def hook(frame: FrameType, kind: str, argument: object) -> object:
                nonlocal seen
                if "ledger" not in frame.f_code.co_filename:
                    return None
                if seen == event:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen += 1
                return hook

            sys.settrace(hook)
            work()
            os._exit(0)
        _, status = os.waitpid(process, 0)
        trials.look(copy, f"event {event}")
        return os.WIFSIGNALED(status)

    event = 0
    while trial(event):
        event += 1


def create(path: Path) -> None:
    from system_calls import Stopped

    place = path.parent / "made"

    def make() -> None:
        Ledger(place / "ledger.db", epsilon_limit=5.0, delta=DELTA)

    boundary = 0
    reached = True
    while reached:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        with Stopped(make) as traced:
            reached = all(traced.to_change() for _ in range(boundary))
        there = (place / "ledger.db").exists()
        ledger = Ledger(place / "ledger.db", epsilon_limit=5.0, delta=DELTA)
        ledger.record("job", bytes(32), release("opened"))
        limits = [change.epsilon_limit for change in ledger.limit_changes()]
        print(json.dumps({"where": f"boundary {boundary}", "there": there, "limits": limits}), flush=True)
        boundary += 1


def order(path: Path) -> None:
    from system_calls import SYNCS, WRITES, Stopped

    trials = Trials(path)
    copy = trials.fresh()
    record = trials.record(copy)
    # While another process has the ledger open, closing it syncs nothing: the commit itself has to.
    reading = [sys.executable, "-c", _READER, str(copy)]
    with (
        subprocess.Popen(reading, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader,
        Stopped(record) as traced,
    ):
        if reader.stdout is None or reader.stdout.readline() != b"reading\n":
            raise RuntimeError("the reader did not start")
        while traced.to_boundary():
            call = traced.call()
            if call is not None and call[0] in WRITES | SYNCS:
                kind = "write" if call[0] in WRITES else "sync"
                print(json.dumps([kind, traced.file(call[1][0])]), flush=True)
        reader.communicate(b"end")


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    kind, where, *rest = sys.argv[1:]
    if kind == "race":
        race(Path(where), rest[0], int(rest[1]))
    elif kind == "killed":
        killed(Path(where), int(rest[0]), int(rest[1]))
    elif kind == "system":
        system(Path(where), int(rest[0]))
    elif kind == "python":
        python(Path(where))
    elif kind == "create":
        create(Path(where))
    elif kind == "order":
        order(Path(where))
    else:
        full(Path(where), int(rest[0]))
