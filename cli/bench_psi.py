"""`veil bench psi`: aligning records, every party a process of its own, mutual TLS between them on this machine."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

Mode = Literal["reveal", "hidden", "join"]
_SAMPLE = 20_000
_TIMEOUT_S = 3600.0
_CONNECT_S = 60.0


def psi(
    parties: Annotated[int, typer.Option(min=2, max=16, help="Parties.")] = 2,
    ids: Annotated[int, typer.Option(min=1, max=16_000_000, help="Ids of each party.")] = 100_000,
    mode: Annotated[Mode, typer.Option(help="Who learns what: veil/align/protocol.py, veil/align/join.py.")] = "reveal",
    columns: Annotated[int, typer.Option(min=0, max=256, help="For join: columns of each party but the lead.")] = 8,
    overlap: Annotated[float, typer.Option(min=0, max=1, help="Share of ids that all parties have.")] = 0.5,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Threads of each party.")] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
) -> None:
    """Time an alignment beside what its curve operations alone cost in the same run.

    Example: veil bench psi --ids 1000000 --mode reveal
    """
    from rich.console import Console
    from rich.table import Table

    from veil.files import write_atomic

    figures = measure(parties, ids, mode, overlap, workers, columns)
    table = Table(title="aligning records", show_header=False, title_justify="left")
    for key, value in figures.items():
        table.add_row(key, f"{value:.4g}" if isinstance(value, float) else str(value))
    Console().print(table)
    if json_file is not None:
        write_atomic(json_file, (json.dumps(figures, indent=2) + "\n").encode())


def measure(parties: int, ids: int, mode: Mode, overlap: float, workers: int = 1, columns: int = 8) -> dict[str, Any]:
    """Figures of one alignment; raises `StateError` when the result is not the expected one.

    seconds: from the first message until the last party has its rows; cpu_s: processor time of the busiest party's
    process; bytes and messages: sent by the party that sent most; curve_s: processor time of the busiest party's curve
    operations alone, from a sample; ratio: cpu_s / curve_s. For "join" the dealer's corrections are computed within the
    first party's process.
    """
    import multiprocessing
    import tempfile

    from cli.machine import machine
    from veil.align.join_plan import JoinPlan
    from veil.align.plan import AlignmentPlan
    from veil.errors import StateError
    from veil.identity.trial import make_consortium

    common = int(ids * overlap)
    sizes = (ids,) * parties
    plan: AlignmentPlan | JoinPlan
    if mode == "join":
        plan = JoinPlan(0, sizes, (0,) + (columns,) * (parties - 1))
    else:
        plan = AlignmentPlan(mode, sizes, max(common, 1) if mode == "reveal" else sum(sizes))
    names = tuple(f"party-{rank}" for rank in range(parties))
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="veil-bench-") as folder:
        make_consortium(Path(folder), "trial", names)
        pipes = []
        processes = []
        for rank in range(parties):
            here, there = context.Pipe()
            process = context.Process(
                target=_party, args=(rank, names, plan, common, workers, folder, there), daemon=True
            )
            process.start()
            there.close()
            pipes.append(here)
            processes.append(process)
        try:
            addresses = {name: str(_receive(pipe)) for name, pipe in zip(names, pipes, strict=True)}
            for pipe in pipes:
                pipe.send(addresses)
            results: list[dict[str, Any]] = [_receive(pipe) for pipe in pipes]
        finally:
            for process in processes:
                process.join(10)
                if process.is_alive():
                    process.kill()
                    process.join()
    if any(result["common"] != common for result in results):
        raise StateError(f"got {[result['common'] for result in results]} common rows, expected {common}")
    seconds = max(result["seconds"] for result in results)
    cpu_s = max(result["cpu_s"] for result in results)
    curve_s = _curve_s(plan, common)
    return {
        "case": "psi",
        "mode": mode,
        "parties": parties,
        "ids": ids,
        "common": common,
        "workers": workers,
        "seconds": seconds,
        "minutes": seconds / 60,
        "cpu_s": cpu_s,
        "curve_s": curve_s,
        "ratio": cpu_s / curve_s,
        "bytes_per_party": max(result["bytes"] for result in results),
        "messages": max(result["messages"] for result in results),
        "peak_mb": max(result["peak_mb"] for result in results),
        "machine": machine(),
    }


def _receive(pipe: Connection) -> Any:
    from veil.errors import StateError

    if not pipe.poll(_TIMEOUT_S):
        raise StateError(f"got nothing from a party's process in {_TIMEOUT_S:g} s, expected its figures")
    try:
        return pipe.recv()
    except EOFError:
        raise StateError("got the end of a party's process, expected its figures") from None


def _party(rank: int, names: tuple[str, ...], plan: Any, common: int, workers: int, folder: str, pipe: Any) -> None:
    """One party's process: connects, aligns, sends its figures."""
    import resource

    import torch

    from veil.align.join import join
    from veil.align.join_plan import JoinPlan
    from veil.align.protocol import align
    from veil.identity.credentials import Credentials
    from veil.mpc.communicator import TensorCommunicator
    from veil.mpc.grpc_mesh import GrpcMesh, MeshServicer
    from veil.wire.channel import serve

    torch.set_num_threads(1)
    digest = bytes(32)
    credentials = Credentials.load(Path(folder) / f"party-{names[rank]}")
    servicer = MeshServicer()
    with serve("127.0.0.1:0", credentials, [servicer.service()]) as server:
        pipe.send(f"127.0.0.1:{server.port}")
        mesh = GrpcMesh("bench-psi", digest, names[rank], pipe.recv(), credentials, servicer)
        mesh.connect(_CONNECT_S)
        transport = mesh.transport()
        communicator = TensorCommunicator(transport, names)
        own = [f"common-{row}" for row in range(common)]
        own += [f"{names[rank]}-{row}" for row in range(plan.sizes[rank] - common)]
        communicator.barrier()
        started, started_cpu = time.perf_counter(), time.process_time()
        if isinstance(plan, JoinPlan):
            table = None if rank == 0 else torch.ones((len(own), plan.columns[rank]), dtype=torch.int64)
            joined = join(communicator, _dealer(rank, len(names)), own, table, plan, digest, workers=workers)
            seconds, cpu_s = time.perf_counter() - started, time.process_time() - started_cpu
            traffic = transport.meter.total()
            found = int(communicator.all_reduce(joined.members[1].sum()))
        else:
            alignment = align(communicator, own, plan, digest, workers=workers)
            seconds, cpu_s = time.perf_counter() - started, time.process_time() - started_cpu
            traffic = transport.meter.total()
            # What no party could find out by itself, from all parties' private bits.
            bits = communicator.all_gather(torch.from_numpy(alignment.members.astype("uint8")))
            found = int(torch.stack(bits).all(dim=0).sum())
        pipe.send(
            {
                "seconds": seconds,
                "cpu_s": cpu_s,
                "common": found,
                "bytes": traffic.bytes_sent,
                "messages": traffic.messages_sent,
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )
        transport.close()
        mesh.close()


def _dealer(rank: int, parties: int) -> Any:
    """A provider whose corrections are computed on the spot from everybody's seeds: for measuring only."""
    import hashlib

    from veil.mpc.items import from_wire
    from veil.mpc.provider import DealerProvider
    from veil.mpc.triples import correction, item_key

    seeds = [hashlib.sha256(bytes([each])).digest() for each in range(parties)]

    def correct(request: Any) -> bytes:
        item = from_wire(request)
        keys = [item_key(seed, request.index, item) for seed in seeds]
        return correction(item, keys).numpy().tobytes()

    return DealerProvider(rank, seeds[rank], correct if rank == 0 else None)


def _curve_s(plan: Any, common: int) -> float:
    """Processor time of the busiest party's curve operations, from a sample."""
    from veil.align.curve import Curve, Scalar
    from veil.align.ids import dummies
    from veil.align.join_plan import JoinPlan

    scalar = Scalar.draw()
    with Curve() as curve:
        names = dummies(_SAMPLE)
        started = time.process_time()
        points = curve.hash(names, scalar)
        hash_s = (time.process_time() - started) / _SAMPLE
        started = time.process_time()
        curve.multiply(points, scalar)
        product_s = (time.process_time() - started) / _SAMPLE
    if isinstance(plan, JoinPlan):
        return float(max(plan.names) * hash_s + plan.rows * product_s)
    own, others = plan.sizes[0], sum(plan.sizes[1:])
    if plan.mode == "reveal":
        return float(own * hash_s + (others + common) * product_s)
    union = sum(plan.sizes) - common * (len(plan.sizes) - 1)
    hashes, products = own + plan.result - union, 2 * others + own + union
    return float(hashes * hash_s + products * product_s)
