"""Whom secure computation is measured against: each peer in an environment of its own, made when it is first asked for.

A peer is a script in tools/peers/ of the checkout. It reads the same input files as Veil's parties, runs alone, and
prints one JSON document; what it found is compared with plaintext here, by the same code as Veil's own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from veil.errors import ConfigError, StateError

_CHECKOUT = Path(__file__).resolve().parents[1]
TOOLS = _CHECKOUT / "tools" / "peers"
ENVIRONMENTS = Path("out/peers")
_INSTALL_LIMIT_S = 1800.0
_RUN_LIMIT_S = 900.0
_TAIL_LINES = 8


@dataclass(frozen=True)
class Peer:
    """One peer. environment: its list of versions, tools/peers/ENVIRONMENT.txt. parties: with how many it can run, and
    is asked to. steps: fewer than the case has where it is slow."""

    name: str
    environment: str
    script: str
    case: str
    parties: tuple[int, ...]
    extra: Mapping[str, Any] = field(default_factory=dict)
    steps: int | None = None
    warmup: int | None = None


PEERS = (
    Peer("crypten_stock", "crypten", "crypten_step.py", "step", (2, 3)),
    Peer("spu_semi2k", "spu", "spu_step.py", "step", (2, 3), {"protocol": "SEMI2K"}),
    Peer("spu_aby3", "spu", "spu_step.py", "step", (3,), {"protocol": "ABY3"}),
    # A second or more a step.
    Peer("spu_cheetah", "spu", "spu_step.py", "step", (2,), {"protocol": "CHEETAH"}, steps=8, warmup=1),
    Peer("flower_secagg", "flower", "flower_sum.py", "sum", (3,)),
    Peer("nvflare_ckks", "nvflare", "nvflare_sum.py", "sum", (3,)),
)


def peers_of(case: str, parties: int) -> tuple[Peer, ...]:
    """Who runs that case with so many parties."""
    return tuple(peer for peer in PEERS if peer.case == case and parties in peer.parties)


def prepare(peer: Peer, environments: Path = ENVIRONMENTS) -> Path:
    """The python of the peer's environment, made if it is not there or its list has changed.

    Raises `StateError` when it cannot be made, `ConfigError` outside of a checkout.
    """
    setup = TOOLS / "setup.sh"
    if not setup.is_file():
        raise ConfigError(f"got no {setup}, expected a checkout of Veil", hint="peers cannot be had from a wheel")
    folder = environments / peer.environment
    command = ["bash", str(setup), peer.environment, str(folder)]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=_INSTALL_LIMIT_S)
    if done.returncode:
        raise StateError(f"the environment of {peer.name} could not be made:\n{_tail(done.stderr)}")
    # Not resolved: the link is what makes a python that of its environment.
    return folder.absolute() / "bin" / "python"


def run(
    peer: Peer, python: Path, folder: Path, parties: int, options: Mapping[str, Any], limit_s: float = _RUN_LIMIT_S
) -> dict[str, Any]:
    """What the peer found: `ms` or `seconds`, `bytes_per_party`, `weights` or `max_abs_error`, and its settings.

    folder: holds the inputs. Raises `StateError` when it fails or takes longer than limit_s.
    """
    request = {**options, **peer.extra, "parties": parties, "folder": str(folder), "limit_s": limit_s / 2}
    if peer.steps is not None:
        request["steps"] = min(peer.steps, int(request["steps"]))
    if peer.warmup is not None:
        request["warmup"] = min(peer.warmup, int(request["warmup"]))
    asked = folder / f"request-{peer.name}.json"
    asked.write_text(json.dumps(request))
    # One thread of arithmetic a party, as for Veil's own; a group of its own, so that nothing of it is left behind.
    process = subprocess.Popen(
        [str(python), str(TOOLS / peer.script), str(asked)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        start_new_session=True,
    )
    try:
        said, complained = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        raise StateError(f"{peer.name} has not finished in {limit_s:g} s") from None
    finally:
        _end_group(process)
    if process.returncode:
        raise StateError(f"{peer.name} failed:\n{_tail(complained)}")
    return {**_document(peer, said), **({"steps": request["steps"]} if "steps" in request else {})}


def _document(peer: Peer, said: str) -> dict[str, Any]:
    """The last line: libraries print above it."""
    lines = [line for line in said.splitlines() if line.startswith("{")]
    try:
        found: dict[str, Any] = json.loads(lines[-1])
    except (IndexError, ValueError):
        raise StateError(f"got no JSON document from {peer.name}, expected one:\n{_tail(said)}") from None
    return found


def _end_group(process: subprocess.Popen[str]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # all have ended
    process.communicate()


def _tail(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-_TAIL_LINES:])
