"""One party of a benchmark as a process of its own: mutual TLS to its peers and to the dealer, then one program.

`python -m cli.mpc_party` reads one JSON line (what to do), writes one (its address), reads one (the others' addresses),
and writes one (what the program found). `cli.mpc_processes` is its other end. The program runs in this process, or as a
job does: in a worker that holds no key and reaches its peers through this one.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veil.errors import InputError, StateError, VeilError
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role

if TYPE_CHECKING:
    from veil.mpc.transport import ListeningTransport, Transport
    from veil.wire.v1 import dealer_pb2

    Correct = Callable[[dealer_pb2.CorrectRequest], bytes]

_CONNECT_S = 60.0
# A benchmark's slowest single wait: HE triples for a whole step.
_WAIT_S = 300.0


def program(name: str) -> Callable[[Any], dict[str, Any]]:
    """The function "module:function" of this code base."""
    module, _, function = name.partition(":")
    if module.split(".")[0] not in ("veil", "cli") or not function.isidentifier():
        raise InputError(f"got program {name[:80]!r}, expected veil.MODULE:FUNCTION or cli.MODULE:FUNCTION")
    found: Callable[[Any], dict[str, Any]] = getattr(importlib.import_module(module), function)
    return found


def run(asked: dict[str, Any], address: Callable[[str], dict[str, str]]) -> dict[str, Any]:
    """What the program found. address: tells others where this party listens, and gives the roster."""
    from veil.jobs.spec import digest, parse
    from veil.mpc.dealer_client import DealerClient
    from veil.mpc.grpc_mesh import GrpcMesh
    from veil.mpc.mesh_servicer import MeshServicer
    from veil.wire.channel import serve

    credentials = Credentials.load(Path(asked["credentials"]))
    name, text = credentials.identity.name, asked["job_text"]
    spec, job_digest = parse(text), digest(text)
    with ExitStack() as stack:
        servicer = MeshServicer()
        server = stack.enter_context(serve("127.0.0.1:0", credentials, [servicer.service()]))
        if asked["plane"] == "direct":
            stack.callback(servicer.listen_direct("127.0.0.1:0", credentials).close)
        roster = address(f"127.0.0.1:{server.port}")
        seed, correct = None, None
        if asked["dealer"]:
            expect = Identity(spec.consortium, Role.DEALER, spec.dealer)
            dealer = DealerClient(
                asked["dealer"], credentials, expect, job_id=spec.nonce, job_text=text, job_digest=job_digest
            )
            seed = dealer.open()
            if spec.rank(name) == 0:
                correct = dealer.correct
                stack.callback(dealer.close)
        mesh = GrpcMesh(spec.nonce, job_digest, name, roster, credentials, servicer)
        mesh.connect(_CONNECT_S)
        stack.callback(mesh.close)
        transport: ListeningTransport = mesh.transport()
        if asked["plane"] == "gloo":
            from veil.mpc.gloo_plane import GlooPlane

            transport = plane = GlooPlane.connect(transport, spec.parties, "127.0.0.1", _CONNECT_S)
            stack.callback(plane.close)
            plane.watch(mesh.transport())
        if asked["worker"]:
            return _in_worker(asked, seed, transport, correct)
        return seated(asked, seed, transport, correct)


def seated(asked: dict[str, Any], seed: bytes | None, transport: Transport, correct: Correct | None) -> dict[str, Any]:
    """What the program found over this transport."""
    import torch

    from veil.jobs.spec import digest, parse
    from veil.mpc.communicator import TensorCommunicator
    from veil.mpc.seat import Seat

    torch.set_num_threads(1)
    text = asked["job_text"]
    act = program(asked["program"])
    communicator = TensorCommunicator(transport, parse(text).parties, _WAIT_S)
    # Everybody has registered with the dealer before rank 0 asks for anything.
    communicator.barrier()
    folder, options = Path(asked["folder"]), asked["options"]
    return act(Seat(communicator, text, digest(text), seed, correct, asked["triples"], folder, options))


def _in_worker(
    asked: dict[str, Any], seed: bytes | None, transport: ListeningTransport, correct: Correct | None
) -> dict[str, Any]:
    """The program in a process of its own behind a relay, as a party's daemon runs a job."""
    from veil.mpc.relay import RelayHub

    found: dict[str, Any] = {}

    def answer(kind: str, body: dict[str, Any]) -> dict[str, Any]:
        if kind == "init":
            return {"asked": asked, "seed": seed.hex() if seed is not None else None}
        found.update(body)
        return {}

    own_end, worker_end = socket.socketpair()
    with worker_end:
        descriptor = worker_end.fileno()
        command = [sys.executable, "-m", "cli.mpc_party", "--worker", str(descriptor)]
        place = [str(transport.rank), str(transport.world_size)]
        worker = subprocess.Popen([*command, *place], pass_fds=[descriptor], stdin=subprocess.DEVNULL)
    hub = RelayHub(own_end, transport, answer, correct)
    hub.start()
    hub.wait()
    if worker.wait() or not found:
        raise StateError(f"the worker ended with status {worker.returncode} before it reported")
    return found


def work(descriptor: int, rank: int, parties: int) -> None:
    """The worker's end of `_in_worker`."""
    from veil.mpc.relay import RelayTransport

    daemon = RelayTransport(socket.socket(fileno=descriptor), rank, parties)
    try:
        given = daemon.request("init", {})
        seed = bytes.fromhex(given["seed"]) if given["seed"] else None
        correct = daemon.correct if seed is not None and rank == 0 else None
        daemon.request("found", seated(given["asked"], seed, daemon, correct))
    finally:
        daemon.close()


def main() -> int:
    """Exit status 1 when the program failed; the reason is in the last line then."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.argv[1:2] == ["--worker"]:
        descriptor, rank, parties = map(int, sys.argv[2:])
        work(descriptor, rank, parties)
        return 0
    # Whatever a library prints must not get between the lines.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def say(document: dict[str, Any]) -> None:
        answers.write(json.dumps(document) + "\n")
        answers.flush()

    def address(own: str) -> dict[str, str]:
        say({"address": own})
        roster: dict[str, str] = json.loads(sys.stdin.readline())
        return roster

    try:
        say({"found": run(json.loads(sys.stdin.readline()), address)})
    except VeilError as error:
        say({"error": f"{type(error).__name__}: {error}"})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
