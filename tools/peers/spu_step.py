"""SPU's logistic-regression step, one process a party over its own links on loopback, and in one process.

`python spu_step.py REQUEST.json`, with the python of an environment made by `setup.sh spu FOLDER`; prints one JSON
document. SPU runs as it comes: field FM64, its default fixed point, truncation and sigmoid; SEMI2K by its trusted first
party. Shares are made before the clock starts and opened after it has stopped.
"""

from __future__ import annotations

import json
import multiprocessing
import socket
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import spu
from spu import libspu
from spu.utils import frontend

_RECEIVE_MS = 120_000


def compiled(request: dict[str, Any]) -> list[Any]:
    """One executable a batch: the same step with other input names."""
    import jax

    scale = request["learning_rate"] / request["batch"]

    def step(x: Any, y: Any, w: Any) -> Any:
        return w - scale * (x.T @ (jax.nn.sigmoid(x @ w) - y))

    like = (
        np.zeros((request["batch"], request["features"]), np.float32),
        np.zeros((request["batch"], 1), np.float32),
        np.zeros((request["features"], 1), np.float32),
    )
    secret = [libspu.Visibility.VIS_SECRET] * 3
    found = []
    for batch in range(request["batches"]):
        names = [f"x{batch}", f"y{batch}", "w"]
        executable, _ = frontend.compile(
            frontend.Kind.JAX, step, like, {}, names, secret, lambda _: ["w"], copts=libspu.CompilerOptions()
        )
        found.append(executable)
    return found


def configuration(protocol: str) -> Any:
    return libspu.RuntimeConfig(protocol=getattr(libspu.ProtocolKind, protocol), field=libspu.FieldType.FM64)


def shares(request: dict[str, Any], io: Any) -> dict[str, list[Any]]:
    """By variable, one share a party."""
    folder, batch = Path(request["folder"]), request["batch"]
    features = np.load(folder / "features.npy").astype(np.float32)
    labels = np.load(folder / "labels.npy").astype(np.float32).reshape(-1, 1)
    secret = libspu.Visibility.VIS_SECRET
    made = {"w": io.make_shares(np.zeros((request["features"], 1), np.float32), secret)}
    for index in range(request["batches"]):
        rows = slice(index * batch, (index + 1) * batch)
        made[f"x{index}"] = io.make_shares(np.ascontiguousarray(features[rows]), secret)
        made[f"y{index}"] = io.make_shares(np.ascontiguousarray(labels[rows]), secret)
    return made


def run_party(request: dict[str, Any], link: Any, own: dict[str, Any]) -> tuple[list[float], Any, int]:
    """Milliseconds of the timed steps, the share of the final weights, and bytes that the timed steps wrote."""
    runtime = spu.Runtime(link, configuration(request["protocol"]))
    executables = compiled(request) if request["processes"] else request["executables"]
    for name, share in own.items():
        runtime.set_var(name, share)
    for index in range(request["warmup"]):
        runtime.run(executables[index % request["batches"]])
    runtime.set_var("w", own["w"])
    link.barrier()
    times, before = [], written_bytes()
    for index in range(request["steps"]):
        started = time.perf_counter()
        runtime.run(executables[index % request["batches"]])
        times.append(1000 * (time.perf_counter() - started))
    sent = written_bytes() - before
    return times, runtime.get_var("w"), sent


def process(request: dict[str, Any], rank: int, ports: list[int], pipe: Any) -> None:
    """One party as a process."""
    description = libspu.link.Desc()
    description.recv_timeout_ms = _RECEIVE_MS
    for party, port in enumerate(ports):
        description.add_party(f"party-{party}", f"127.0.0.1:{port}")
    own = pipe.recv()
    link = libspu.link.create_brpc(description, rank)
    times, share, sent = run_party(request, link, own)
    pipe.send((times, share, sent))
    link.stop_link()


def written_bytes() -> int:
    """Bytes that this process has handed to write calls, which is how SPU's links send."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("wchar:"):
            return int(line.split(":")[1])
    return 0


def between_processes(request: dict[str, Any]) -> dict[str, Any]:
    io = spu.Io(request["parties"], configuration(request["protocol"]))
    made = shares(request, io)
    context = multiprocessing.get_context("spawn")
    probes = [socket.socket() for _ in range(request["parties"])]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    running = []
    for rank in range(request["parties"]):
        here, there = context.Pipe()
        worker = context.Process(target=process, args=({**request, "processes": True}, rank, ports, there), daemon=True)
        worker.start()
        here.send({name: parts[rank] for name, parts in made.items()})
        running.append((worker, here))
    answers = []
    for _, here in running:
        if not here.poll(request["limit_s"]):
            raise TimeoutError("a party of SPU has not answered in time")
        answers.append(here.recv())
    for worker, _ in running:
        worker.join(10)
        worker.kill()
    weights = io.reconstruct([answer[1] for answer in answers])
    sent = max(answer[2] for answer in answers) / request["steps"]
    return {**times_of("processes", answers), "weights": weights.ravel().tolist(), "bytes_per_party": round(sent)}


def in_one_process(request: dict[str, Any]) -> dict[str, Any]:
    io = spu.Io(request["parties"], configuration(request["protocol"]))
    made = shares(request, io)
    asked = {**request, "processes": False, "executables": compiled(request)}
    description = libspu.link.Desc()
    for rank in range(request["parties"]):
        description.add_party(f"party-{rank}", f"thread-{rank}")
    answers: list[Any] = [None] * request["parties"]

    def party(rank: int) -> None:
        link = libspu.link.create_mem(description, rank)
        answers[rank] = run_party(asked, link, {name: parts[rank] for name, parts in made.items()})

    threads = [threading.Thread(target=party, args=(rank,)) for rank in range(request["parties"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times_of("memory", answers)


def times_of(placement: str, answers: list[Any]) -> dict[str, float]:
    """Median and best step, the slowest party's."""
    return {
        f"{placement}_ms": max(statistics.median(answer[0]) for answer in answers),
        f"{placement}_best_ms": max(min(answer[0]) for answer in answers),
    }


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    figures = {**between_processes(request), **in_one_process(request)}
    # Whichever suits it better.
    figures["ms"] = min(figures["processes_ms"], figures["memory_ms"])
    figures["best_ms"] = min(figures["processes_best_ms"], figures["memory_best_ms"])
    figures["version"] = spu.__version__
    figures["setting"] = f"{request['protocol']}, FM64; the faster of processes over its links without TLS and threads"
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
