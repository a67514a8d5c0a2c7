"""A whole consortium on this machine: real processes, real certificates, real mutual TLS on 127.0.0.1.

For trials, the demo and the integration tests. Between organisations each program runs at its own site and the dealer
on a machine of its own (README, "Run it between three machines").
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from veil.errors import StateError
from veil.identity.names import Identity, Role
from veil.identity.trial import make_consortium

_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 10.0


@dataclass
class Process:
    """One program of the consortium. `log` holds everything that it has said."""

    name: str
    address: str
    config: Path
    log: Path
    popen: subprocess.Popen[bytes]

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self.popen.poll() is None

    def tail(self, lines: int = 15) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def kill(self) -> None:
        """Ends it at once, as a power cut would."""
        self.popen.kill()
        self.popen.wait()

    def stop(self) -> None:
        """Asks it to end, then insists."""
        if self.alive:
            self.popen.send_signal(signal.SIGTERM)
            try:
                self.popen.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.kill()


@dataclass
class PartySite:
    """What a party of the trial brings: its raw rows, how to read them, and its lifetime budget."""

    name: str
    source: Path
    read: Mapping[str, object] = field(default_factory=dict)
    align: bool = False
    epsilon: float = 100.0
    delta: float = 1e-5


class LocalConsortium:
    """Lays out `root`, makes the certificates, writes each program's TOML, starts and stops the programs."""

    def __init__(self, root: Path, parties: Sequence[str], *, consortium: str = "trial") -> None:
        self.root = root
        self.consortium = consortium
        self.parties = list(parties)
        self.processes: dict[str, Process] = {}
        self._folders = make_consortium(root / "certs", consortium, self.parties)
        self._ports: dict[str, int] = {}

    def credentials(self, role: Role, name: str = "main") -> Path:
        """Directory with the key and certificate of one member."""
        return self._folders[Identity(self.consortium, role, name)]

    def address(self, name: str) -> str:
        """host:port of a program, fixed when first asked for."""
        if name not in self._ports:
            self._ports[name] = _free_port()
        return f"127.0.0.1:{self._ports[name]}"

    def start_coordinator(self) -> Process:
        """Starts the coordinator."""
        config = {
            "listen": self.address("coordinator"),
            "credentials": str(self.credentials(Role.COORDINATOR)),
            "store": str(self.root / "coordinator" / "jobs.sqlite"),
        }
        return self._start("coordinator", "coordinator", config)

    def start_dealer(self) -> Process:
        """Starts the dealer."""
        section = {"listen": self.address("dealer"), "credentials": str(self.credentials(Role.DEALER))}
        config = {"dealer": section}
        return self._start("dealer", "dealer", config)

    def party_config(self, site: PartySite, catalogue: Path) -> dict[str, object]:
        """The configuration of one party, as it would stand in its TOML."""
        return {
            **self._party_basics(site.name, site.epsilon, site.delta),
            "catalogue": str(catalogue),
            "data": {
                "source": str(site.source),
                "pseudonym_key": str(self.root / f"party-{site.name}" / "pseudonym.key"),
                "read": dict(site.read),
                **({"align": True} if site.align else {}),
            },
        }

    def _party_basics(self, name: str, epsilon: float, delta: float) -> dict[str, object]:
        return {
            "listen": self.address(name),
            "advertise": self.address(name),
            "listen_direct": "127.0.0.1:0",
            "credentials": str(self.credentials(Role.PARTY, name)),
            "state": str(self.root / f"party-{name}"),
            "coordinator": {"address": self.address("coordinator")},
            "dealer": {"address": self.address("dealer")},
            "budget": {"epsilon": epsilon, "delta": delta},
            "approval": {"mode": "policy", "max_epsilon_per_job": epsilon},
        }

    def start_party(self, site: PartySite, catalogue: Path, changes: Mapping[str, object] | None = None) -> Process:
        """Starts a party's daemon; `changes` replace top-level keys of its configuration."""
        return self._start(site.name, "party", {**self.party_config(site, catalogue), **(changes or {})})

    def start_columns_party(
        self,
        name: str,
        columns: Mapping[str, object],
        *,
        epsilon: float = 100.0,
        delta: float = 1e-5,
        predictions: Mapping[str, object] | None = None,
        catalogue: Path | None = None,
    ) -> Process:
        """Starts the daemon of a party that gives columns to joint models; `columns` is that section of its file.

        predictions: the section of that name; without it none of the party's rows are scored. catalogue: for columns
        that add to a recommender.
        """
        config = {**self._party_basics(name, epsilon, delta), "columns": dict(columns)}
        if predictions is not None:
            config["predictions"] = dict(predictions)
        if catalogue is not None:
            config["catalogue"] = str(catalogue)
        return self._start(name, "party", config)

    def start_scoring(self, model: Path, **changes: object) -> Process:
        """Starts the scoring server on a published model."""
        config = {
            "listen": self.address("scoring"),
            "credentials": str(self.credentials(Role.SCORING)),
            "model": str(model),
            "state": str(self.root / "scoring"),
            "require_signers": self.parties,
        }
        return self._start("scoring", "he_inference", {**config, **changes})

    def stop(self) -> None:
        """Stops everything that still runs."""
        for process in reversed(list(self.processes.values())):
            process.stop()

    def __enter__(self) -> LocalConsortium:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self, name: str, module: str, config: Mapping[str, object]) -> Process:
        folder = self.root / "configs"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.toml"
        path.write_text(to_toml(config))
        log = self.root / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        # One thread of arithmetic each: the programs share this machine's cores.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "VEIL_LOG": os.environ.get("VEIL_LOG", "INFO")}
        with log.open("ab") as sink:
            offset = sink.tell()
            popen = subprocess.Popen(
                [sys.executable, "-m", module, "--config", str(path)],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                env=environment,
            )
        process = Process(name, self.address(name), path, log, popen)
        self.processes[name] = process
        _wait_until_listening(process, offset)
        return process


def to_toml(document: Mapping[str, object], prefix: str = "") -> str:
    """TOML of nested tables of strings, numbers, booleans and lists of these."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in document.items() if not isinstance(value, Mapping)]
    for key, value in document.items():
        if isinstance(value, Mapping):
            lines += ["", f"[{prefix}{key}]", to_toml(value, f"{prefix}{key}.")]
    return "\n".join(lines) + ("\n" if not prefix else "")


def _wait_until_listening(process: Process, offset: int) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        with process.log.open("rb") as file:
            file.seek(offset)
            if b" listens at " in file.read():
                return
        if not process.alive:
            raise StateError(f"{process.name} ended before it listened:\n{process.tail()}")
        time.sleep(0.05)
    process.kill()
    raise StateError(f"{process.name} did not listen within {_START_TIMEOUT_S:g} s:\n{process.tail()}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
