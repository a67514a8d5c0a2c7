"""The worker's process, one for a job, and what it is told over the socket that it inherits.

Guarantee: it inherits no key, no address and no user name, neither in its environment nor in its arguments, and imports
nothing from the daemon's working directory.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from party.config import PartyConfig
from veil.identity.credentials import Credentials
from veil.jobs.predictions import PredictionsTrainer
from veil.jobs.spec import JobSpec

_END_TIMEOUT_S: Final = 10.0
# What a worker inherits of the environment: nothing that names keys, addresses or users.
_ENVIRONMENT: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VEIL_LOG")


def launch(
    worker_end: socket.socket,
    *,
    rank: int,
    parties: int,
    messages: socket.socket | None = None,
    module: str = "party.worker",
) -> subprocess.Popen[bytes]:
    """Starts the worker with its end of the socket, and of one for `messages` where another process carries them.

    module: which program it is, the worker or what carries its messages (`party.job.carrier`).
    """
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    # -P: whatever lies in the daemon's working directory is not imported in a process that holds rows.
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])
    descriptor = worker_end.fileno()
    command = [sys.executable, "-P", "-m", module, f"--fd={descriptor}"]
    descriptors = [descriptor]
    if messages is not None:
        descriptors.append(messages.fileno())
        command.append(f"--messages-fd={messages.fileno()}")
    return subprocess.Popen(
        [*command, f"--rank={rank}", f"--parties={parties}"],
        pass_fds=descriptors,
        stdin=subprocess.DEVNULL,
        env=environment,
    )


def end(worker: subprocess.Popen[bytes]) -> None:
    """Waits until it has ended, not long, then ends it."""
    try:
        worker.wait(_END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()


def told(
    config: PartyConfig,
    credentials: Credentials,
    spec: JobSpec,
    *,
    job_id: str,
    seed: bytes,
    rows: Path,
    columns: Path | None,
) -> dict[str, Any]:
    """What a worker is told first: its job, its seed, and where its rows lie."""
    document = {
        "job_text": spec.text(),
        "party": credentials.identity.name,
        "seed": seed.hex(),
        "rows": str(rows),
        "columns": str(columns or ""),
        "catalogue": str(config.catalogue or ""),
        "model": str(config.state / "models" / job_id),
        "authority_pem": credentials.authority_pem.decode("ascii"),
        "timeout_s": config.peer_timeout_s,
        "modules": {name: str(path) for name, path in config.modules.items()},
    }
    if config.predictions is not None and isinstance(spec.trainer, PredictionsTrainer):
        document["predictions"] = {
            "section": config.predictions.model_dump(mode="json"),
            "models": str(config.state / "models"),
            "out": str(config.state / "predictions" / f"{job_id}.csv"),
        }
    return document
