"""Processes that play the parties: CrypTen's state is global, so each party needs a process of its own.

Five processes serve all groups. `loopback` joins them by socket pairs, corrections computed on the spot. `grpc` runs
the whole way: worker - relay - daemon - mesh and dealer, mutual TLS on 127.0.0.1.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import multiprocessing
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import torch

NAMES = ("alpha", "beta", "gamma", "delta", "epsilon")
SIZES = (2, 3, 5)
CONSORTIUM = "trial"


@dataclass(frozen=True)
class Group:
    """What a party needs to know to take part."""

    backend: str
    size: int
    job_text: str
    addresses: dict[str, str] = field(default_factory=dict)
    dealer: str = ""
    task: str = "tests.unit.mpc.parties:everything"


def job_text(size: int, releases: list[dict[str, Any]] | None = None, *, nonce: str = "0" * 32) -> str:
    from veil.jobs.spec import JobSpec, parse

    release = {"name": "counts", "shape": [7, 3], "sensitivity": 1000, "sigma": 5000, "mechanism": "rounded-gaussian"}
    document = {
        "schema": "veil.job/1",
        "name": "test",
        "nonce": nonce,
        "consortium": CONSORTIUM,
        "parties": list(NAMES[:size]),
        "dealer": "main",
        "catalogue": {"digest": "sha256:" + "0" * 64, "items": 10, "features": 0},
        "privacy": {
            "unit": "user",
            "neighbouring": "add-or-remove-one-user",
            "epsilon": 1.0,
            "delta": 1e-6,
            "noise": {"source": "dealer"},
        },
        "trainer": {
            "kind": "subspace",
            "dimensions": 4,
            "content_dimensions": 0,
            "rounds": 1,
            "clip": 1.0,
            "popularity_power": 0.5,
            "options": {},
        },
        "releases": releases or [release],
        "versions": {},
    }
    text = JobSpec.model_validate(document).text()
    assert parse(text).parties == NAMES[:size]
    return text


def processes() -> ForkServerContext:
    """Where parties' processes come from: copies of one that has imported CrypTen and done nothing else yet, since each
    import takes seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.unit.mpc.operations", "veil.mpc.session", "veil.mpc.grpc_mesh"])
    return context


def own_sum(rank: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(rank).integers(-(2**40), 2**40, shape))


def test_seeds(size: int) -> list[bytes]:
    return [hashlib.sha256(bytes([rank])).digest() for rank in range(size)]


class Party:
    """One party of one group: transport, provider, and what must be closed afterwards."""

    def __init__(self, rank: int, group: Group, sockets: dict[int, socket.socket], servicer: Any, directory: Path):
        from veil.jobs.spec import digest, parse
        from veil.mpc.loopback import SocketTransport
        from veil.mpc.provider import DealerProvider

        self.rank, self.size, self.backend = rank, group.size, group.backend
        self.spec = parse(group.job_text)
        self.digest = digest(group.job_text)
        self._close: list[Callable[[], None]] = []
        self.transport: Any
        if group.backend == "loopback":
            self.transport = SocketTransport(rank, sockets)
            self._close.append(self.transport.close)
            self.provider = DealerProvider(rank, test_seeds(group.size)[rank], _local_corrections(group.size))
        else:
            self._connect(group, servicer, directory)

    def _connect(self, group: Group, servicer: Any, directory: Path) -> None:
        from veil.identity.credentials import Credentials
        from veil.identity.names import Identity, Role
        from veil.mpc.dealer_client import DealerClient
        from veil.mpc.grpc_mesh import GrpcMesh
        from veil.mpc.provider import DealerProvider
        from veil.mpc.relay import RelayHub, RelayTransport

        credentials = Credentials.load(directory / f"party-{NAMES[self.rank]}")
        job_id = f"job-{group.size}-{self.spec.nonce}"
        roster = {name: group.addresses[name] for name in self.spec.parties}
        mesh = GrpcMesh(job_id, self.digest, NAMES[self.rank], roster, credentials, servicer)
        mesh.connect(30)
        dealer = DealerClient(
            group.dealer,
            credentials,
            Identity(CONSORTIUM, Role.DEALER, "main"),
            job_id=job_id,
            job_text=group.job_text,
            job_digest=self.digest,
        )
        seed = dealer.open()
        inside, outside = socket.socketpair()
        hub = RelayHub(outside, mesh.transport(), lambda kind, body: {"seed": seed.hex()}, dealer.correct)
        hub.start()
        self.transport = RelayTransport(inside, self.rank, self.size)
        seed = bytes.fromhex(self.transport.request("seed", {})["seed"])
        self.provider = DealerProvider(self.rank, seed, self.transport.correct)
        self._close += [self.transport.close, lambda: hub.wait(10) and None, mesh.close]
        if self.rank == 0:
            self._close.append(dealer.close)

    def communicator(self) -> Any:
        from veil.mpc.communicator import TensorCommunicator

        return TensorCommunicator(self.transport, self.spec.parties, timeout_s=15)

    def close(self) -> None:
        for close in self._close:
            close()


def _local_corrections(size: int) -> Callable[[Any], bytes]:
    """Corrections from everybody's seeds, as the dealer makes them; noise from a known key."""
    from veil.jobs.spec import parse
    from veil.mpc.items import Item, from_wire
    from veil.mpc.triples import correction, item_key
    from veil.privacy.noise import keyed_source, rounded_gaussian

    spec = parse(job_text(size))

    def correct(request: Any) -> bytes:
        item, noise = from_wire(request), None
        if item.kind == "noise":
            release = spec.release(item.release)
            item = Item("noise", (release.shape,), release=item.release)
            noise = torch.from_numpy(
                rounded_gaussian(release.size, release.sigma, keyed_source(b"k" * 32, b"test"))
            ).reshape(release.shape)
        keys = [item_key(seed, request.index, item) for seed in test_seeds(size)]
        return correction(item, keys, noise).numpy().tobytes()

    return correct


def everything(party: Party) -> dict[str, Any]:
    """All checks of one group in one go; results for the parent to judge."""
    from tests.unit.mpc import operations
    from veil.mpc.session import Session

    communicator = party.communicator()
    result: dict[str, Any] = {}
    with Session(communicator, party.provider, job_digest=party.digest, openings=operations.openings()) as session:
        with operations.no_torch_randomness():
            result["errors"] = operations.run(session, party.size, party.rank)
        result["opened"] = [opening.name for opening in session.openings]
        result["stats"] = communicator.get_communication_stats()
    releases = party.spec.releases
    order: list[str] = []
    with Session(communicator, party.provider, job_digest=party.digest, releases=releases) as session:
        release = releases[0]
        noise = party.provider.noise_share(release)
        before = communicator.get_communication_stats()["bytes"]

        def permit(asked: Any) -> None:
            order.append(f"{asked.name}:{communicator.get_communication_stats()['bytes'] - before}")

        opened = session.open_noised_sum(release, own_sum(party.rank, release.shape), noise, permit)
        result["noised"] = opened.numpy()
        result["noise_share"] = noise.numpy()
        result["permits"] = order
        result["log"] = [(o.name, o.shape, o.mechanism, o.digest) for o in session.openings]
        result["refusals"] = refusals(session, party)
        result["public"] = [
            session.broadcast_public(b"abc" if party.rank == 1 else None, 1),
            session.broadcast_public(torch.ones(2, 3) * 0.5 if party.rank == 0 else None, 0).numpy(),
            session.all_gather_bytes(bytes([party.rank]) * party.rank),
        ]
    result["outside"] = outside()
    result["refused_permit"] = refused_permit(party)
    return result


def refusals(session: Any, party: Party) -> dict[str, str]:
    """What a session must not do, and which error it raises; nothing here communicates."""
    import crypten
    import crypten.mpc.provider

    from veil.mpc.session import Session

    release = party.spec.releases[0]
    shape = release.shape
    zeros = torch.zeros(shape, dtype=torch.int64)
    x = session.share(torch.ones(shape) if party.rank == 0 else None, 0, shape)
    b = x.to(crypten.mpc.ptype.arithmetic)

    def use_provider(name: str) -> None:
        with crypten.cfg.temp_override({"mpc.provider": name}):
            _ = x * x

    def use_replicated() -> None:
        with crypten.cfg.temp_override({"mpc.protocol": "replicated"}):
            _ = x * x

    attempts: dict[str, Callable[[], object]] = {
        "plain text": lambda: x.get_plain_text(),
        "reveal": lambda: b.reveal(),
        "share reveal": lambda: x._tensor.reveal(),
        "batch": lambda: type(x._tensor).reveal_batch([x._tensor]),
        "unlisted": lambda: session.open("secret", x),
        "again": lambda: session.open_noised_sum(release, zeros, zeros, print),
        "other sigma": lambda: session.open_noised_sum(release.model_copy(update={"sigma": 1}), zeros, zeros, print),
        "wrong dtype": lambda: session.open_noised_sum(release, torch.ones(shape), zeros, print),
        "first party": lambda: use_provider("TFP"),
        "third party": lambda: use_provider("TTP"),
        "homomorphic": lambda: use_provider("HE"),
        "first party class": lambda: crypten.mpc.provider.TrustedFirstParty(),
        "providers by name": lambda: getattr(crypten.mpc, "__SUPPORTED_PROVIDERS")["TFP"],
        "replicated": use_replicated,
        "init": lambda: crypten.init(),
        "second session": lambda: Session(party.communicator(), party.provider, job_digest=party.digest).__enter__(),
    }
    shown = repr(x) + repr(x._tensor)
    assert shown == "MPCTensor(shape=(7, 3))ArithmeticSharedTensor(shape=(7, 3))"
    return {name: _error_of(attempt) for name, attempt in attempts.items()}


def outside() -> dict[str, str]:
    """CrypTen after a session: no communicator, no randomness."""
    import crypten

    return {
        "share": _error_of(lambda: crypten.cryptensor(torch.ones(2), src=0)),
        "communicator": _error_of(lambda: crypten.communicator.get()),
        "draw": _error_of(lambda: crypten.common.rng.generate_random_ring_element((2,))),
    }


def refused_permit(party: Party) -> dict[str, Any]:
    """The last party's ledger says no: what the others see, and what has been sent by then."""
    from veil.errors import BudgetError, PeerLost
    from veil.mpc.session import Session

    release = party.spec.releases[0]
    communicator = party.communicator()

    def permit(_: Any) -> None:
        if party.rank == party.size - 1:
            raise BudgetError("the budget is gone")

    zeros = torch.zeros(release.shape, dtype=torch.int64)
    sent = 0
    session = Session(communicator, party.provider, job_digest=party.digest, releases=party.spec.releases)
    try:
        with session:
            sent = -communicator.get_communication_stats()["messages"]
            session.open_noised_sum(release, zeros, zeros, permit)
    except BudgetError as error:
        party.transport.close()
        return {"error": error.code, "messages": communicator.get_communication_stats()["messages"] + sent}
    except PeerLost as error:
        messages = communicator.get_communication_stats()["messages"] + sent
        if party.backend == "loopback" and party.size > 2:
            # Unlike the mesh, sockets do not tell who left first: stay until everybody has met the one who did.
            time.sleep(2)
        return {"error": error.code, "culprits": error.culprits, "messages": messages, "opened": session.openings}
    return {"error": "none"}


def _error_of(attempt: Callable[[], object]) -> str:
    try:
        attempt()
    except Exception as error:  # noqa: BLE001 - the parent checks which
        return type(error).__name__
    return "none"


def serve(rank: int, sockets: dict[int, dict[int, socket.socket]], directory: str, pipe: Connection) -> None:
    """A process's main loop: one group after another."""
    torch.set_num_threads(1)
    logging.getLogger("veil").setLevel(logging.ERROR)
    from veil.identity.credentials import Credentials
    from veil.mpc.grpc_mesh import MeshServicer
    from veil.wire.channel import serve as listen

    servicer = MeshServicer()
    credentials = Credentials.load(Path(directory) / f"party-{NAMES[rank]}")
    with listen("127.0.0.1:0", credentials, [servicer.service()]) as server:
        pipe.send(f"127.0.0.1:{server.port}")
        while (group := pipe.recv()) is not None:
            try:
                party = Party(rank, group, sockets.get(group.size, {}), servicer, Path(directory))
                try:
                    module, function = group.task.split(":")
                    pipe.send(getattr(importlib.import_module(module), function)(party))
                finally:
                    party.close()
            except BaseException:  # noqa: BLE001 - the parent shows it
                pipe.send(traceback.format_exc())


class Pool:
    """The five processes."""

    def __init__(self, directory: Path, sizes: tuple[int, ...] = SIZES) -> None:
        from veil.mpc.loopback import socket_pairs

        context = processes()
        ends = {size: socket_pairs(size) for size in sizes}
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(max(sizes)):
            here, there = context.Pipe()
            own = {size: pairs[rank] for size, pairs in ends.items() if rank < size}
            process = context.Process(target=serve, args=(rank, own, str(directory), there), daemon=True)
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)
        for pairs in ends.values():
            for end in pairs:
                for source in end.values():
                    source.close()
        self.addresses = {NAMES[rank]: self._receive(rank) for rank in range(max(sizes))}

    def _receive(self, rank: int) -> Any:
        assert self._pipes[rank].poll(120), f"rank {rank} does not answer"
        return self._pipes[rank].recv()

    def run(self, group: Group) -> list[dict[str, Any]]:
        for rank in range(group.size):
            self._pipes[rank].send(group)
        results = [self._receive(rank) for rank in range(group.size)]
        failed = [result for result in results if isinstance(result, str)]
        assert not failed, "\n".join(failed)
        return results

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join(20)
            if process.is_alive():
                process.kill()
                process.join()
