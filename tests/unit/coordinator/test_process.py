"""`python -m coordinator` as a process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from cli.job_client import Desk, get_job, submit_job
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.jobs.spec import JobSpec
from veil.wire.v1 import job_pb2


def start(config: Path) -> tuple[subprocess.Popen[str], str]:
    environment = {**os.environ, "VEIL_LOG": "INFO"}
    process = subprocess.Popen(
        [sys.executable, "-m", "coordinator", "--config", str(config)],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert process.stderr is not None
    for line in process.stderr:
        found = re.search(r"listening on (\S+)$", line.strip())
        if found:
            return process, found[1]
    raise AssertionError(f"ended with {process.wait()} before it listened")


def test_killed_and_started_again(
    consortium: dict[Identity, Path],
    credentials: Callable[..., Credentials],
    make_spec: Callable[..., JobSpec],
    party_at: Callable,
    tmp_path: Path,
) -> None:
    folder = consortium[Identity("trial", Role.COORDINATOR, "main")]
    config = tmp_path / "coordinator.toml"
    config.write_text(
        f'listen = "127.0.0.1:0"\ncredentials = "{folder}"\nstore = "jobs.sqlite"\n'
        "[deadlines]\nheartbeat_interval_s = 0.5\n"
    )
    operator = credentials("main", Role.OPERATOR)
    process, address = start(config)
    try:
        desk = Desk(address, operator)
        alpha, beta = (party_at(address, name).join() for name in ("alpha", "beta"))
        job = submit_job(desk, make_spec("alpha", "beta"))
        alpha.consent()
        beta.consent()
        alpha.hear("start")
        process.send_signal(signal.SIGKILL)
        process.wait(20)
        process.stderr.close()
        process, address = start(config)
        desk = Desk(address, operator)
        record = get_job(desk, job.job_id)
        assert record.phase == job_pb2.JOB_PHASE_FAILED
        assert "restarted" in record.failure.sentence
        assert party_at(address, "alpha").join().hear("stop").stop.job_id == job.job_id
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_a_wrong_config_is_one_sentence(tmp_path: Path) -> None:
    config = tmp_path / "coordinator.toml"
    config.write_text("listen = 3\n")
    done = subprocess.run(
        [sys.executable, "-m", "coordinator", "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "listen" in done.stderr
    assert "[CONFIG]" in done.stderr
