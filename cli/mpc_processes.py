"""The parties of a benchmark as processes on this machine, and a dealer beside them: real mutual TLS on 127.0.0.1."""

from __future__ import annotations

import json
import os
import secrets
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from cli.local import LocalConsortium
from veil.errors import PeerLost, StateError, WireError
from veil.identity.names import Role

NAMES = tuple(f"party-{number}" for number in range(16))
_MOST_LINE_BYTES = 64 * 2**20
_TAIL_LINES = 12
_STOP_TIMEOUT_S = 15.0


def run_parties(
    program: str,
    parties: int,
    triples: str,
    folder: Path,
    options: Mapping[str, float],
    limit_s: float,
    *,
    worker: bool = False,
    plane: str = "grpc",
) -> list[dict[str, Any]]:
    """What `program` ("module:function") found at each party, in rank order.

    folder: where its inputs lie. worker: whether the program runs in a worker behind a relay, as jobs do. plane:
    "grpc" for the mesh, "gloo" for messages in the clear beside it. Raises `PeerLost` naming a party that failed or did
    not answer within limit_s.
    """
    names = NAMES[:parties]
    with tempfile.TemporaryDirectory(prefix="veil-bench-") as root, LocalConsortium(Path(root), names) as consortium:
        dealer = ""
        if triples == "dealer":
            consortium.start_dealer()
            dealer = consortium.address("dealer")
        asked = {
            "program": program,
            "job_text": job_text(consortium.consortium, names),
            "dealer": dealer,
            "triples": triples,
            "folder": str(folder),
            "options": dict(options),
            "worker": worker,
            "plane": plane,
        }
        seated: list[_Party] = []
        grace_s = 0.0  # when one has failed, the others only wait for it
        try:
            for name in names:
                credentials = str(consortium.credentials(Role.PARTY, name))
                seated.append(_Party(name, {**asked, "credentials": credentials}, Path(root) / f"{name}.log"))
            until = time.monotonic() + limit_s
            roster = {party.name: str(party.answer("address", until)) for party in seated}
            for party in seated:
                party.tell(roster)
            found = [dict(party.answer("found", until)) for party in seated]
            grace_s = _STOP_TIMEOUT_S
            return found
        finally:
            for party in seated:
                party.stop(grace_s)


class _Party:
    """One process and the lines to and from it; `log` gets whatever else it says."""

    def __init__(self, name: str, asked: Mapping[str, Any], log: Path) -> None:
        self.name = name
        self._log = log
        # One thread of arithmetic each: the parties share this machine's cores.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        with log.open("wb") as sink:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cli.mpc_party"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=sink,
                env=environment,
            )
        self._buffer = b""
        self.tell(asked)

    def tell(self, document: Mapping[str, Any]) -> None:
        stdin = _pipe(self._process.stdin)
        try:
            stdin.write(json.dumps(document).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            raise PeerLost(f"{self.name} has ended", culprits=(self.name,)) from None

    def answer(self, key: str, until_s: float) -> Any:
        """The value under `key` of its next line."""
        document = json.loads(self._line(until_s))
        if "error" in document:
            raise PeerLost(f"{self.name} failed: {document['error']}", culprits=(self.name,))
        if key not in document:
            raise WireError(f"got another line from {self.name}, expected one with {key!r}")
        return document[key]

    def _line(self, until_s: float) -> bytes:
        stdout = _pipe(self._process.stdout).fileno()
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([stdout], [], [], max(0.0, until_s - time.monotonic()))
            if not ready:
                raise PeerLost(f"got no answer of {self.name} in time", culprits=(self.name,))
            data = os.read(stdout, 2**20)
            if not data:
                said = self._log.read_text(errors="replace").strip().splitlines()[-_TAIL_LINES:]
                raise PeerLost(f"{self.name} ended without an answer:\n" + "\n".join(said), culprits=(self.name,))
            self._buffer += data
            if len(self._buffer) > _MOST_LINE_BYTES:
                raise WireError(f"got more than {_MOST_LINE_BYTES} bytes from {self.name}, expected a line")
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def stop(self, grace_s: float) -> None:
        """Waits for its end, then insists."""
        for pipe in (self._process.stdin, self._process.stdout):
            _pipe(pipe).close()
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        raise StateError("got a process without a pipe, expected one that was started with pipes")
    return pipe


def job_text(consortium: str, parties: tuple[str, ...]) -> str:
    """A job that lists no more than a program needs to register with the dealer."""
    from veil.jobs.spec import Catalogue, JobSpec, Noise, Privacy, Release, SubspaceTrainer

    return JobSpec(
        name="bench",
        nonce=secrets.token_hex(16),
        consortium=consortium,
        parties=parties,
        dealer="main",
        catalogue=Catalogue(digest="sha256:" + "0" * 64, items=1, features=0),
        privacy=Privacy(epsilon=1.0, delta=1e-6, noise=Noise(source="dealer")),
        trainer=SubspaceTrainer(
            dimensions=1, content_dimensions=0, rounds=0, clip=1.0, popularity_power=0.0, options={}
        ),
        releases=(Release(name="bench", shape=(1,), sensitivity=1, sigma=1),),
        versions={},
    ).text()
