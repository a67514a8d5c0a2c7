"""A job's exchange over networks as they are: round trips of 10 and 40 ms, 100 Mbit/s, loss, and a cut within.

Twice: behind a proxy in user space, on every machine; and in a network namespace whose loopback `tc netem` slows down,
where the kernel has that queueing discipline. Figures are printed (`pytest -s`), never asserted.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.mpc.network import Proxy
from veil.identity.credentials import Credentials
from veil.identity.trial import make_consortium
from veil.mpc.communicator import TensorCommunicator
from veil.mpc.grpc_mesh import GrpcMesh, MeshServicer
from veil.wire.channel import serve

NAMES = ("alpha", "beta", "gamma")
FAST_BYTES_S = 100e6 / 8
NETWORKS = [(0.010, None, 0.0), (0.040, None, 0.0), (0.040, FAST_BYTES_S, 0.0), (0.040, FAST_BYTES_S, 0.5)]
ROUNDS = 20
LARGE = 2**18  # 2 MiB


def exchange(communicator: TensorCommunicator, cut: Callable[[], None]) -> dict[str, Any]:
    """What a job does: many small rounds, some large ones, one of them with a connection cut under it."""
    small = torch.arange(1024) + communicator.rank
    large = torch.arange(LARGE) * (communicator.rank + 1)
    world = communicator.world_size
    communicator.barrier()
    seconds = {}
    started = time.monotonic()
    with communicator.phase("small"):
        for _ in range(ROUNDS):
            assert communicator.all_reduce(small)[1].item() == world + sum(range(world))
    seconds["round"] = (time.monotonic() - started) / ROUNDS
    started = time.monotonic()
    with communicator.phase("large"):
        for _ in range(3):
            assert communicator.all_reduce(large)[-1].item() == (LARGE - 1) * sum(range(1, world + 1))
    seconds["large"] = (time.monotonic() - started) / 3
    started = time.monotonic()
    with communicator.phase("cut"):
        cut()
        for _ in range(3):
            assert communicator.all_reduce(large)[-1].item() == (LARGE - 1) * sum(range(1, world + 1))
    seconds["cut"] = (time.monotonic() - started) / 3
    communicator.barrier()
    return {"seconds": seconds, "report": communicator.report().document()}


def run(folders: list[Path], network: Callable[[str], str], cut: Callable[[], None]) -> list[dict[str, Any]]:
    """All parties in threads of one process; `network` gives the address under which a party is reached."""
    credentials = [Credentials.load(folder) for folder in folders]
    servicers = [MeshServicer() for _ in NAMES]
    servers = [
        serve("127.0.0.1:0", own, [servicer.service()]) for own, servicer in zip(credentials, servicers, strict=True)
    ]
    roster = {name: network(f"127.0.0.1:{server.port}") for name, server in zip(NAMES, servers, strict=True)}
    meshes = [
        GrpcMesh("job", bytes(32), name, roster, credentials[rank], servicers[rank]) for rank, name in enumerate(NAMES)
    ]

    def act(rank: int) -> dict[str, Any]:
        meshes[rank].connect(30)
        communicator = TensorCommunicator(meshes[rank].transport(), NAMES, timeout_s=60)
        return exchange(communicator, cut if rank == 0 else lambda: None)

    try:
        with ThreadPoolExecutor(len(NAMES)) as pool:
            results = list(pool.map(act, range(len(NAMES))))
            list(pool.map(lambda mesh: mesh.close(), meshes))
            return results
    finally:
        for server in servers:
            server.stop(0)


def show(what: str, results: list[dict[str, Any]]) -> None:
    figures = {name: f"{1000 * seconds:.1f} ms" for name, seconds in results[0]["seconds"].items()}
    print(f"\n{what}: 8 KB round {figures['round']}, 2 MiB round {figures['large']}, with a cut {figures['cut']}")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    members = make_consortium(tmp_path_factory.mktemp("trial"), "trial", NAMES)
    return [next(folder for identity, folder in members.items() if identity.name == name) for name in NAMES]


@pytest.fixture
def proxies() -> Iterator[list[Proxy]]:
    found: list[Proxy] = []
    yield found
    for proxy in found:
        proxy.close()


@pytest.mark.parametrize(("round_trip_s", "rate_bytes_s", "loss_percent"), NETWORKS[:3])
def test_an_exchange_through_a_proxy_that_delays_and_cuts(
    folders: list[Path],
    proxies: list[Proxy],
    round_trip_s: float,
    rate_bytes_s: float | None,
    loss_percent: float,
) -> None:
    def network(address: str) -> str:
        proxies.append(Proxy(address, delay_s=round_trip_s / 2, rate_bytes_s=rate_bytes_s))
        return proxies[-1].address

    def cut() -> None:
        for proxy in proxies:
            proxy.cut_after_bytes = proxy.passed_bytes + 2_000_000

    results = run(folders, network, cut)
    show(f"proxy, {1000 * round_trip_s:g} ms, {rate_bytes_s or 'any'} bytes/s", results)
    # alpha accepts both others, beta accepts gamma: at least one of them had to dial again
    assert sum(proxy.connections for proxy in proxies) > len(NAMES)
    for result in results:
        assert {row["phase"] for row in result["report"]["peers"]} == {"", "small", "large", "cut"}


def netem(command: str) -> list[str]:
    """`command` in a network namespace of its own."""
    return ["unshare", "--net", "--map-root-user", "sh", "-ec", f"ip link set lo up; {command}"]


@pytest.mark.parametrize(("round_trip_s", "rate_bytes_s", "loss_percent"), NETWORKS)
def test_an_exchange_in_a_namespace_that_netem_slows_down(
    folders: list[Path], round_trip_s: float, rate_bytes_s: float | None, loss_percent: float
) -> None:
    missing = [tool for tool in ("unshare", "ip", "tc") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    rule = f"tc qdisc add dev lo root netem delay {500 * round_trip_s:g}ms limit 20000"
    rule += f" rate {int(8 * rate_bytes_s)}bit" if rate_bytes_s else ""
    rule += f" loss {loss_percent:g}%" if loss_percent else ""
    tried = subprocess.run(netem(rule), capture_output=True, text=True, timeout=20, check=False)
    if tried.returncode:
        pytest.skip(f"this machine has no netem in a namespace: {tried.stderr.strip()[:200]}")
    inside = f"{rule}; exec {sys.executable} -m tests.integration.test_networks {' '.join(map(str, folders))}"
    done = subprocess.run(netem(inside), capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    show(
        f"netem, {1000 * round_trip_s:g} ms, {rate_bytes_s or 'any'} bytes/s, loss {loss_percent} %",
        json.loads(done.stdout),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write(json.dumps(run([Path(folder) for folder in sys.argv[1:]], lambda address: address, lambda: None)))
