"""`veil bench`: timings as ratios, each measured beside its peer or its limit in the same run on the same machine."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.bench_columns import columns, columns_all
from cli.bench_mpc import mpc, mpc_all
from cli.bench_privacy import privacy, privacy_all
from cli.bench_psi import psi
from cli.bench_score import score, score_all
from cli.bench_side import side

app = typer.Typer(no_args_is_help=True, help="Timings as ratios, measured side by side in one run.")
app.command()(score)
app.command(name="score-all")(score_all)
app.command()(privacy)
app.command(name="privacy-all")(privacy_all)
app.command()(mpc)
app.command(name="mpc-all")(mpc_all)
app.command()(psi)
app.command()(columns)
app.command(name="columns-all")(columns_all)
app.command()(side)

JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")]


@app.command()
def noise(
    size: Annotated[int, typer.Option(min=1000, help="Samples.")] = 10_000_000,
    sigma: Annotated[int, typer.Option(min=1, help="Standard deviation in grid steps.")] = 1 << 31,
    json_file: JsonFile = None,
) -> None:
    """Time the exact noise sampler beside numpy's floating-point normal, rounded, which is neither exact nor secure.

    Example: veil bench noise --size 10000000
    """
    _report("noise sampler", measure_noise(size, sigma), json_file)


@app.command()
def train(
    users: Annotated[int, typer.Option(min=100, help="Users of the synthetic data set.")] = 30_000,
    epsilon: Annotated[float, typer.Option(help="Budget, which decides the openings.")] = 3.0,
    noise_source: Annotated[str, typer.Option("--noise", help="dealer or parties.")] = "dealer",
    json_file: JsonFile = None,
) -> None:
    """Time a joint job of three parties beside the same mechanism run in one place.

    Joint: real processes and mutual TLS on this machine, from submission to the signed model, workers' start included.

    Example: veil bench train --users 30000 --epsilon 3
    """
    _report("joint training", measure_training(users, epsilon, noise_source), json_file)


@app.command(name="all")
def everything(
    out: Annotated[Path, typer.Option(help="Folder for one JSON file a case.")] = Path("out/bench"),
) -> None:
    """Every case of docs/benchmarks.md that is a timing, but those that `score-all` and `mpc-all` have.

    Example: veil bench all --out out/bench
    """
    _report("noise sampler", measure_noise(10_000_000, 1 << 31), out / "noise.json")
    for source in ("dealer", "parties"):
        _report(f"joint training, noise {source}", measure_training(30_000, 3.0, source), out / f"train-{source}.json")


def measure_noise(size: int, sigma: int) -> dict[str, Any]:
    """Seconds for `size` samples of each sampler, best of three in turn."""
    import numpy as np

    from veil.privacy.noise import rounded_gaussian, system_source

    source, generator = system_source(), np.random.default_rng(0)

    def floating() -> object:
        return np.rint(generator.standard_normal(size) * sigma).astype(np.int64)

    ours, theirs = _in_turn(lambda: rounded_gaussian(size, sigma, source), floating)
    return {
        "size": size,
        "sigma": sigma,
        "exact_s": ours,
        "numpy_float_s": theirs,
        "ratio": ours / theirs,
        **_machine(),
    }


def measure_training(users: int, epsilon: float, noise_source: str) -> dict[str, Any]:
    """Seconds of a joint job and of a central run on the same synthetic data, and the joint job's meters."""
    import tempfile

    from rich.console import Console

    from baseline.evaluate import simulated_noise, simulation_spec
    from cli.joint_trial import run_job, split_over, start_programs
    from cli.local import LocalConsortium
    from veil.recsys import synthetic
    from veil.recsys.features import build_catalogue
    from veil.trainers.registry import central_run

    dataset = synthetic.generate(users)
    catalogue = build_catalogue(dataset.table)
    parties = ("alpha", "beta", "gamma")
    with tempfile.TemporaryDirectory(prefix="veil-bench-") as folder, LocalConsortium(Path(folder), parties) as trial:
        catalogue.save(Path(folder) / "catalogue")
        start_programs(trial, split_over(dataset, len(parties)), catalogue, Path(folder))
        _, _, joint = run_job(trial, Path(folder), epsilon, noise_source, Console(quiet=True))
    source: Any = noise_source
    spec = simulation_spec(catalogue, epsilon=epsilon, delta=1e-5, noise_source=source)
    started = time.perf_counter()
    central_run(spec, catalogue, dataset.train, lambda release: simulated_noise(spec, release, 1))
    central_s = time.perf_counter() - started
    rounds = [step for step in next(iter(joint["phases"].values())) if step not in ("load", "mesh", "publish")]
    rounds_s = max(sum(phases[step] for step in rounds) for phases in joint["phases"].values())
    return {
        "users": users,
        "items": catalogue.items,
        "epsilon": epsilon,
        "noise": noise_source,
        "job_s": joint["seconds"],
        "rounds_s": rounds_s,
        "central_s": central_s,
        "ratio": rounds_s / central_s,
        "bytes_sent_per_party": joint["bytes_sent_per_party"],
        "phases": joint["phases"],
        **_machine(),
    }


def _in_turn(first: Callable[[], object], second: Callable[[], object], runs: int = 3) -> tuple[float, float]:
    """Best seconds of each, taken in turn so that both meet the same machine."""
    best = [float("inf"), float("inf")]
    for _ in range(runs):
        for place, work in enumerate((first, second)):
            started = time.perf_counter()
            work()
            best[place] = min(best[place], time.perf_counter() - started)
    return best[0], best[1]


def _machine() -> dict[str, Any]:
    from cli.machine import machine

    return {"machine": machine()}


def _report(title: str, figures: dict[str, Any], json_file: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table

    from veil.files import write_atomic

    table = Table(title=title, show_header=False, title_justify="left")
    for key, value in figures.items():
        if isinstance(value, float):
            table.add_row(key, f"{value:.4g}")
        elif key == "machine":
            table.add_row(key, ", ".join(map(str, value.values())))
        else:
            table.add_row(key, str(value))
    Console().print(table)
    if json_file is not None:
        write_atomic(json_file, (json.dumps(figures, indent=2) + "\n").encode())
