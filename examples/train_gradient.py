"""Trains a module by gradient rounds on data in one place and reports how well it recommends, beside its references.

The private rows run the plan, the per-user updates, the clipping, the secret coins and the noise of a real job, with
all users in one place: the same distribution of models as a joint run, without the sharing. For evaluation on public
data, and for tuning there: what is chosen by looking at private data would have to be paid for.

    python examples/train_gradient.py two-tower --data ml-100k:FOLDER --epsilon 3 10 --seeds 3
    python examples/train_gradient.py my_module.py --data synthetic --epsilon 3 --validate --set rounds=80 clip=1

A module file beside the ones here needs one more function: `scores(module, users, facts)`, float32[n, items].
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from baseline import material
from baseline.gradient import gradient_metrics, gradient_spec, validation
from baseline.references import Popularity
from veil.errors import VeilError
from veil.recsys.metrics import Metrics, evaluate
from veil.trainers.gradient.plan import rounds_of
from veil.trainers.gradient.source import read_code

_FOLDER = Path(__file__).resolve().parent
_DELTA = 1e-5


def main() -> None:
    """Reads the command line, prints one line for each row of the report."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    dataset, catalogue = material.load(arguments.data)
    if arguments.validate:
        dataset = validation(dataset)
    path = _FOLDER / f"{arguments.module.replace('-', '_')}.py"
    file = path if path.exists() else Path(arguments.module)
    code, digest = read_code(file, "module")
    overrides = {"population": float(dataset.train.users), **dict(arguments.set)}
    rows: list[dict[str, Any]] = []
    for epsilon in [*arguments.epsilon, None]:
        runs, seconds = [], []
        for seed in range(1, arguments.seeds + 1) if epsilon is not None else [1]:
            spec = gradient_spec(code, digest, catalogue, epsilon, overrides)
            started = time.monotonic()
            runs.append(gradient_metrics(spec, catalogue, code, dataset, seed))
            seconds.append(time.monotonic() - started)
        name = "no noise, no clipping" if epsilon is None else f"epsilon {epsilon:g}"
        noise = 0.0 if epsilon is None else rounds_of(spec.releases)[-1]
        rows.append(_row(name, runs, statistics.fmean(seconds), noise))
    rows.append(_row("popularity", [evaluate(Popularity(dataset.train), dataset)], 0.0, 0.0))
    if arguments.json:
        document = {"module": file.stem, "data": dataset.name, "users": dataset.train.users, "rows": rows}
        arguments.json.write_text(json.dumps({**document, "delta": _DELTA, "overrides": overrides}, indent=1))


def _row(name: str, runs: list[Metrics], seconds: float, noise: float) -> dict[str, Any]:
    hits = [run.hr_at_10 for run in runs]
    row = {
        "name": name,
        "hr_at_10": statistics.fmean(hits),
        "hr_at_10_sd": statistics.stdev(hits) if len(hits) > 1 else 0.0,
        "ndcg_at_10": statistics.fmean(run.ndcg_at_10 for run in runs),
        "full_hr_at_50": statistics.fmean(run.full_hr_at_50 for run in runs),
        "noise_multiplier": noise,
        "seconds": seconds,
    }
    print(
        f"{name:<22} HR@10 {row['hr_at_10']:.4f} ± {row['hr_at_10_sd']:.4f}  NDCG@10 {row['ndcg_at_10']:.4f}"
        f"  full HR@50 {row['full_hr_at_50']:.4f}  {seconds:6.1f} s a run",
        flush=True,
    )
    return row


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", help="two-tower, sequence, or a module file of your own")
    parser.add_argument("--data", default="synthetic", help="synthetic or NAME:FOLDER")
    parser.add_argument("--epsilon", type=float, nargs="+", default=[3.0])
    parser.add_argument("--seeds", type=int, default=1, help="runs for each epsilon")
    parser.add_argument("--validate", action="store_true", help="hold out the item before the last: for tuning")
    parser.add_argument("--set", type=_setting, nargs="*", default=[], help="settings of the plan, NAME=NUMBER")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def _setting(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    return name, float(value)


if __name__ == "__main__":
    try:
        main()
    except VeilError as error:
        sys.exit(str(error))
