"""CrypTen's logistic-regression step as CrypTen ships it: gloo on localhost, trusted first party, a process a party.

`python crypten_step.py REQUEST.json`, with the python of an environment made by `setup.sh crypten FOLDER`; prints one
JSON document. Nothing of CrypTen is changed but its import, which reads a module that torch no longer has. Data are
shared before the clock starts; CrypTen's own counter says bytes and rounds, in steps outside of the timing.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np


def party(request: dict[str, Any], rank: int, meeting: str, pipe: Any) -> None:
    """One party."""
    os.environ |= {
        "WORLD_SIZE": str(request["parties"]),
        "RANK": str(rank),
        "RENDEZVOUS": f"file://{meeting}",
        "DISTRIBUTED_BACKEND": "gloo",
    }
    warnings.simplefilter("ignore")
    import torch

    sys.modules["torch.onnx.symbolic_registry"] = types.ModuleType("torch.onnx.symbolic_registry")
    import crypten

    torch.set_num_threads(1)
    crypten.init()
    folder, batch = Path(request["folder"]), request["batch"]
    features = torch.from_numpy(np.load(folder / "features.npy").astype(np.float32))
    labels = torch.from_numpy(np.load(folder / "labels.npy").astype(np.float32)).reshape(-1, 1)
    x, y = crypten.cryptensor(features, src=0), crypten.cryptensor(labels, src=1)
    scale = request["learning_rate"] / batch

    def step(weights: Any, index: int) -> Any:
        place = index % request["batches"]
        rows = slice(place * batch, (place + 1) * batch)
        own, wanted = x[rows], y[rows]
        return weights - own.t().matmul(own.matmul(weights).sigmoid() - wanted) * scale

    communicator = crypten.communicator.get()
    start = crypten.cryptensor(torch.zeros(request["features"], 1), src=0)
    weights = start
    for index in range(request["warmup"]):
        weights = step(weights, index)
    crypten.cfg.communicator.verbose = True
    communicator.reset_communication_stats()
    counted = 4
    for index in range(counted):
        weights = step(weights, index)
    traffic = communicator.get_communication_stats()
    crypten.cfg.communicator.verbose = False
    weights, times = start, []
    communicator.barrier()
    for index in range(request["steps"]):
        started = time.perf_counter()
        weights = step(weights, index)
        times.append(1000 * (time.perf_counter() - started))
    opened = weights.get_plain_text().flatten().tolist()
    pipe.send((times, opened, traffic["bytes"] / counted, traffic["rounds"] / counted, torch.__version__))
    communicator.barrier()


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    context = multiprocessing.get_context("spawn")
    running = []
    with tempfile.TemporaryDirectory() as folder:
        for rank in range(request["parties"]):
            here, there = context.Pipe()
            arguments = (request, rank, str(Path(folder) / "meeting"), there)
            worker = context.Process(target=party, args=arguments, daemon=True)
            worker.start()
            running.append((worker, here))
        answers = []
        for _, here in running:
            if not here.poll(request["limit_s"]):
                raise TimeoutError("a party of CrypTen has not answered in time")
            answers.append(here.recv())
        for worker, _ in running:
            worker.join(10)
            worker.kill()
    figures = {
        "ms": max(statistics.median(answer[0]) for answer in answers),
        "best_ms": max(min(answer[0]) for answer in answers),
        "weights": answers[0][1],
        # Each party counts what it sends and what it receives (its note at `_logging` in communicator.py).
        "bytes_per_party": round(max(answer[2] for answer in answers) / 2),
        "rounds": max(answer[3] for answer in answers),
        "version": "0.4.1",
        "setting": f"trusted first party, gloo on localhost without TLS, one process a party, torch {answers[0][4]}",
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
