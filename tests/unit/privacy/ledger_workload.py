"""Programs that the ledger's tests run as processes of their own: `python ledger_workload.py KIND PATH NUMBER...`.

race PATH WHO TIMES      tries to record TIMES releases; prints each that the ledger permitted
killed PATH TRIALS SEED  TIMES children, each recording in a loop until a SIGKILL at a random moment; prints what the
                         children reported as permitted, one line each
full PATH EXTRA          may let no file grow beyond its present size plus EXTRA bytes, and records until it fails
"""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

from veil.errors import BudgetError, StateError
from veil.jobs.spec import Release
from veil.privacy.ledger import Ledger

LIMIT, DELTA = 3.0, 1e-5
FREE_SIGMA = 2**50  # costs epsilon 0 at this delta, so that nearly all of a record's time is its transaction


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


if __name__ == "__main__":
    kind, where, *rest = sys.argv[1:]
    if kind == "race":
        race(Path(where), rest[0], int(rest[1]))
    elif kind == "killed":
        killed(Path(where), int(rest[0]), int(rest[1]))
    else:
        full(Path(where), int(rest[0]))
