"""The same public inputs through CrypTen as it ships and through Veil's session, by 2 and 3 processes each.

`python -m tests.protocol.stock_crypten FOLDER` reads FOLDER/inputs.npz and writes FOLDER/{stock,session}-{2,3}.npz.
"Stock" is CrypTen with its gloo, its trusted first party and its generators, nothing of it changed but its import,
which reads a module that torch no longer has. Parties are forked from one process that has imported CrypTen already.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

SIZES = (2, 3)
BITS = 16
CUT_BITS = 6
STEPS = 3
RATE_BITS = 4
LIMIT_S = 60


def compute(cfg: Any, shared: dict[str, Any]) -> dict[str, Any]:
    """The program, in CrypTen's own operators, on its tensors."""
    x, y, u, data = shared["x"], shared["y"], shared["u"], shared["data"]
    weights = shared["start"]
    for _ in range(STEPS):
        residual = data.matmul(weights).sigmoid() - shared["labels"]
        weights = weights - data.t().matmul(residual) * 2.0**-RATE_BITS
    with cfg.temp_override({"functions.sigmoid_tanh_method": "chebyshev"}):
        chebyshev = shared["near"].sigmoid()
    return {
        "sum": x + y,
        "product": x * y,
        "matrix product": x.matmul(shared["w"]),
        "truncation": x / 2**CUT_BITS,
        "sigmoid": u.sigmoid(),
        "chebyshev": chebyshev,
        "steps": weights,
        "decoded": shared["hard"],
    }


def shapes(inputs: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Shapes of what `compute` returns."""
    like = {"sum": "x", "product": "x", "truncation": "x", "sigmoid": "u", "chebyshev": "near", "decoded": "hard"}
    found = {name: tuple(inputs[of].shape) for name, of in like.items()}
    rows, columns = len(inputs["x"]), inputs["w"].shape[1]
    return {**found, "matrix product": (rows, columns), "steps": tuple(inputs["start"].shape)}


def source(place: int, parties: int) -> int:
    """Who brings the input at this place."""
    return place % parties


def stock(inputs: dict[str, torch.Tensor], rank: int, parties: int, folder: Path) -> dict[str, np.ndarray]:
    """One party of CrypTen as it ships: ring elements over 2^16, and `decoded` by CrypTen's own decoder."""
    os.environ |= {
        "WORLD_SIZE": str(parties),
        "RANK": str(rank),
        "RENDEZVOUS": f"file://{folder}/meeting-{parties}",
        "DISTRIBUTED_BACKEND": "gloo",
    }
    import crypten

    crypten.init()
    shared = {
        name: crypten.cryptensor(value, src=source(place, parties))
        for place, (name, value) in enumerate(inputs.items())
    }
    found = compute(crypten.cfg, shared)
    results = {name: value.reveal().numpy() / 2.0**BITS for name, value in found.items()}
    results["stock decoder"] = found["decoded"].get_plain_text().numpy()
    crypten.communicator.get().barrier()
    return results


def session(
    inputs: dict[str, torch.Tensor], rank: int, parties: int, transport: Any, correct: Callable[[Any], bytes]
) -> dict[str, np.ndarray]:
    """One party of a session of Veil's."""
    import crypten

    from tests.unit.mpc.parties import NAMES, test_seeds
    from veil.mpc.communicator import TensorCommunicator
    from veil.mpc.provider import DealerProvider
    from veil.mpc.session import Session

    provider = DealerProvider(rank, test_seeds(parties)[rank], correct)
    communicator = TensorCommunicator(transport, NAMES[:parties], timeout_s=LIMIT_S)
    with Session(communicator, provider, job_digest=b"d" * 32, openings=shapes(inputs)) as opened:
        shared = {}
        for place, (name, value) in enumerate(inputs.items()):
            brings = source(place, parties)
            shared[name] = opened.share(value if rank == brings else None, brings, tuple(value.shape))
        found = compute(crypten.cfg, shared)
        return {name: opened.open(name, value).numpy() for name, value in found.items()}


def take_part(kind: str, rank: int, parties: int, ends: Any, folder: Path) -> None:
    """A process: rank 0 writes what opened."""
    torch.set_num_threads(1)
    with np.load(folder / "inputs.npz") as file:
        inputs = {name: torch.from_numpy(file[name].astype(np.float32)) for name in file.files}
    if kind == "stock":
        results = stock(inputs, rank, parties, folder)
    else:
        from tests.unit.mpc.parties import _local_corrections
        from veil.mpc.loopback import SocketTransport

        transport = SocketTransport(rank, ends[rank])
        results = session(inputs, rank, parties, transport, _local_corrections(parties))
        transport.close()  # what the others have not read yet goes out first
    if rank == 0:
        np.savez(folder / f"{kind}-{parties}.npz", allow_pickle=False, **results)
    sys.stdout.flush()
    os._exit(0)  # gloo's threads and sockets have nothing left to say


def main() -> None:
    warnings.simplefilter("ignore")
    sys.modules["torch.onnx.symbolic_registry"] = types.ModuleType("torch.onnx.symbolic_registry")
    import crypten  # noqa: F401 - once, for all parties

    from veil.mpc.loopback import socket_pairs

    folder, context = Path(sys.argv[1]), multiprocessing.get_context("fork")
    running = []
    for parties in SIZES:
        ends = socket_pairs(parties)
        for kind in ("stock", "session"):
            for rank in range(parties):
                worker = context.Process(target=take_part, args=(kind, rank, parties, ends, folder), daemon=True)
                worker.start()
                running.append(worker)
    for worker in running:
        worker.join(LIMIT_S)
    if any(worker.exitcode != 0 for worker in running):
        raise SystemExit("a party has failed or not finished")


if __name__ == "__main__":
    main()
