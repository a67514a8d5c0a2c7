"""`veil bench mpc` and `mpc-all`: secure computation over mutual TLS beside its peers, in one run on one machine."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.mpc_peers import ENVIRONMENTS, peers_of
from cli.mpc_run import CaseName, CaseResult, Operators, Plane, Sizes, Triples, run_case, write_inputs
from veil.errors import ConfigError, VeilError

# Own runs before and after the peers': the machine's other load drifts.
_OWN_RUNS = 2
_WEIGHTS_BOUND = 1e-3
_AUC_BOUND = 0.005
_BYTES_BOUND = 1.05

JsonFile = Annotated[Path | None, typer.Option("--json", help="Write the figures here.")]
Environments = Annotated[Path, typer.Option("--environments", help="Where the peers' environments are made.")]


def mpc(
    case: Annotated[CaseName, typer.Option(help="One step, a whole epoch, or a sum of ten million numbers.")] = "step",
    parties: Annotated[int, typer.Option(min=2, max=16, help="Number of parties.")] = 2,
    triples: Annotated[Triples, typer.Option(help="From a dealer, or by homomorphic encryption.")] = "dealer",
    peers: Annotated[bool, typer.Option("--peers", help="Measure the case's peers too, in the same run.")] = False,
    operators: Annotated[Operators, typer.Option(help="Veil's engine, or CrypTen's operators over Veil.")] = "engine",
    steps: Annotated[int, typer.Option(min=1, max=100_000, help="Timed steps of a step case.")] = 100,
    worker: Annotated[bool, typer.Option("--worker", help="Run each party's part in a worker, as jobs do.")] = False,
    plane: Annotated[
        Plane, typer.Option(help="direct: TLS beside gRPC. gloo: no TLS; for a network of the parties alone.")
    ] = "direct",
    environments: Environments = ENVIRONMENTS,
    json_file: JsonFile = None,
) -> None:
    """Time secure computation between processes on this machine, over mutual TLS, and compare it with plaintext.

    A logistic regression: batches of 1024 rows and 64 features of the first party, labels of the second. With --peers
    each peer runs alone, in an environment of its own that is made when it is not there.

    Example: veil bench mpc --case step --parties 3 --triples dealer --peers --json out/mpc.json
    """
    figures = measure(Asked(case, parties, triples, operators, worker, plane), Sizes(steps=steps), peers, environments)
    _show(figures)
    if json_file is not None:
        _write(json_file, figures)


@dataclass(frozen=True)
class Asked:
    """One case."""

    case: CaseName
    parties: int
    triples: Triples
    operators: Operators = "engine"
    worker: bool = False
    plane: Plane = "direct"

    @property
    def name(self) -> str:
        """For files and tables."""
        return f"{self.case}-{self.parties}-{self.triples}" + ("" if self.plane == "direct" else f"-{self.plane}")


CASES = (
    Asked("step", 2, "dealer"),
    Asked("step", 3, "dealer"),
    Asked("step", 2, "dealer", plane="grpc"),
    Asked("step", 3, "dealer", plane="grpc"),
    Asked("step", 2, "he"),
    Asked("epoch", 3, "dealer"),
    Asked("sum", 3, "dealer"),
)


def mpc_all(
    out: Annotated[Path, typer.Option(help="Folder for one JSON file a case.")] = Path("out/bench-mpc"),
    only: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(case.name for case in CASES)}.")] = None,
    peers: Annotated[bool, typer.Option("--peers/--no-peers", help="Measure peers too.")] = True,
    environments: Environments = ENVIRONMENTS,
) -> None:
    """Every case of secure computation in docs/benchmarks.md, with its peers, and whether each is within its bar.

    A bar that is missed is shown, no more: machines differ.

    Example: veil bench mpc-all --out out/bench-mpc
    """
    from rich.console import Console

    unknown = sorted(set(only or ()) - {case.name for case in CASES})
    if unknown:
        raise ConfigError(f"got case {unknown[0][:40]!r}, expected one of {', '.join(case.name for case in CASES)}")
    done: dict[str, dict[str, Any]] = {}
    for asked in CASES:
        if only and asked.name not in only:
            continue
        done[asked.name] = measure(asked, Sizes(), peers, environments)
        _show(done[asked.name])
        # After each case: an interrupted run keeps what it has.
        _write(out / f"{asked.name}.json", done[asked.name])
    from cli.mpc_tables import bars_table

    Console().print(bars_table(done))


def measure(asked: Asked, sizes: Sizes, with_peers: bool, environments: Path = ENVIRONMENTS) -> dict[str, Any]:
    """The figures of one case, by the names that its JSON file has."""
    from cli.machine import machine

    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="veil-bench-data-") as name:
        folder = Path(name)
        write_inputs(asked.case, asked.parties, sizes, folder)

        def own(worker: bool = asked.worker) -> CaseResult:
            place: dict[str, Any] = {"worker": worker, "plane": asked.plane}
            return run_case(asked.case, asked.parties, asked.triples, sizes, folder, asked.operators, **place)

        results = [own()]
        peers = _peers(asked, sizes, folder, environments) if with_peers else {}
        results += [own() for _ in range(_OWN_RUNS - 1) if with_peers]
        other = {"worker_ms": own(worker=True).ms} if with_peers and asked.case == "step" and not asked.worker else {}
    # Of two runs the one that took longer; errors and bytes hardly differ.
    slowest = max(results, key=lambda result: result.ms)
    figures: dict[str, Any] = {
        "case": asked.case,
        "parties": asked.parties,
        "triples": asked.triples,
        "operators": asked.operators if asked.case != "sum" else "sum by parts",
        "worker": asked.worker,
        "plane": asked.plane,
        "ms": slowest.ms,
        "ms_of_runs": [result.ms for result in results],
        "bytes_per_party": slowest.bytes_per_party,
        "rounds": slowest.rounds,
        "max_abs_error": max(result.max_abs_error for result in results),
        **slowest.extra,
        **other,
        "peers": peers,
        "load_average": load,
        "machine": machine(),
    }
    figures["bars"] = bars(figures)
    return figures


def _peers(asked: Asked, sizes: Sizes, folder: Path, environments: Path) -> dict[str, dict[str, Any]]:
    """By name; one that cannot be had is there with its reason instead of figures."""
    import numpy as np

    from cli import mpc_peers

    found: dict[str, dict[str, Any]] = {}
    for peer in peers_of(asked.case, asked.parties):
        options: dict[str, Any] = {"elements": sizes.sum_elements}
        if asked.case != "sum":
            options = dict(sizes.logistic(asked.case).options())
        try:
            python = mpc_peers.prepare(peer, environments)
            figures = mpc_peers.run(peer, python, folder, asked.parties, options)
        except VeilError as error:
            found[peer.name] = {"error": str(error)}
            continue
        if "weights" in figures:
            truth = sizes.logistic(asked.case).plaintext(folder, figures["steps"])
            figures["max_abs_error"] = float(np.abs(np.asarray(figures.pop("weights")) - truth).max())
        figures.setdefault("ms", 1000 * figures.get("seconds", 0.0))
        found[peer.name] = figures
    if asked.case == "step" and asked.triples == "dealer" and asked.operators == "engine":
        # Not a peer but a yardstick: the same session and network, CrypTen's operators.
        result = run_case("step", asked.parties, "dealer", sizes, folder, "crypten")
        found["veil_session_crypten"] = {
            "ms": result.ms,
            "bytes_per_party": result.bytes_per_party,
            "rounds": result.rounds,
            "max_abs_error": result.max_abs_error,
            "setting": "CrypTen's operators over Veil's session: mutual TLS, AES randomness, a dealer",
        }
    return found


# By case, parties and triples: peer -> at most this multiple of its time.
_RATIOS: dict[tuple[str, int, str], dict[str, float]] = {
    ("step", 2, "dealer"): {"crypten_stock": 0.1, "spu_semi2k": 0.15},
    ("step", 3, "dealer"): {"crypten_stock": 0.1, "spu_aby3": 0.4},
    ("step", 2, "he"): {"spu_cheetah": 1.0},
}


def bars(figures: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What the case must show: limit, value, and whether it is met; a peer that was not measured has no bar."""
    found: dict[str, dict[str, Any]] = {}

    def bar(name: str, value: float, limit: float) -> None:
        found[name] = {"value": value, "limit": limit, "met": value <= limit}

    online_ms, offline_ms = figures["ms"], figures.get("offline_ms", 0.0)
    ratios = _RATIOS.get((figures["case"], figures["parties"], figures["triples"]), {})
    for peer, limit in ratios.items():
        peer_ms = figures["peers"].get(peer, {}).get("ms")
        if peer_ms and figures["triples"] == "dealer":
            bar(f"time / {peer}", online_ms / peer_ms, limit)
        if peer_ms and offline_ms:
            bar(f"time with offline part / {peer}", (online_ms + offline_ms) / peer_ms, limit)
    if figures["case"] == "step":
        bar(f"max_abs_error after {figures['steps']} steps", figures["max_abs_error"], _WEIGHTS_BOUND)
    if figures["case"] == "epoch":
        bar("AUC, difference to plaintext", abs(figures["auc"] - figures["auc_plaintext"]), _AUC_BOUND)
    if figures["case"] == "sum":
        bar("bytes / least bytes", figures["bytes_ratio"], _BYTES_BOUND)
        bar("max_abs_error", figures["max_abs_error"], 0.0)
    return found


def _show(figures: dict[str, Any]) -> None:
    from cli.mpc_tables import show

    show(figures)


def _write(path: Path, figures: dict[str, Any]) -> None:
    from veil.files import write_atomic

    write_atomic(path, (json.dumps(figures, indent=2, allow_nan=False) + "\n").encode())
