"""What a budget buys: the private trainers beside their own floor and the plaintext twin, on one split.

Guarantee: all figures of a case share data, split, negatives, catalogue and noise seeds, and every private one comes
from the real integer mechanism run in one place (`baseline.evaluate`). The floor is the model without a collaborative
part: public features and noised counts, all of the same budget spent on the counts, with mixing weights of its own.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from baseline.evaluate import LinearTrainer, NoiseSource, Row, plaintext_metrics, private_metrics
from baseline.material import load
from veil.errors import ConfigError
from veil.recsys.catalogue import Catalogue
from veil.recsys.dataset import Dataset

DELTA = 1e-5
FLOOR = {"rounds": 0.0}


@dataclass(frozen=True)
class Case:
    """One line of the utility table. `data`: "synthetic", "synthetic:USERS" or "NAME:FOLDER"."""

    data: str
    epsilon: float
    trainer: Literal["subspace", "als", "gradient"] = "subspace"
    # For gradient: the module file.
    module: Path | None = None
    seeds: int = 5
    delta: float = DELTA
    noise_source: NoiseSource = "dealer"
    colluding: int | None = None
    parties: int = 3
    text: bool = True
    plaintext: bool = True
    cache: Path | None = field(default=None, compare=False)


def measure(case: Case) -> dict[str, Any]:
    """The figures of a case. `seconds`: one training and evaluation, the mean over seeds. Raises `VeilError`."""
    dataset, catalogue = _material(case.data, case.text)
    started = time.perf_counter()
    row = _gradient(case, dataset, catalogue) if case.trainer == "gradient" else _private(case, dataset, catalogue, {})
    seconds = (time.perf_counter() - started) / case.seeds
    mean, deviation = row.mean(), row.deviation()
    floor = _floor(case.data, case.text, case.epsilon, case.delta, case.seeds, case.noise_source, case.colluding)
    return {
        "data": dataset.name,
        "users": dataset.train.users,
        "items": dataset.train.items,
        "text": case.text,
        "trainer": case.trainer if case.module is None else f"{case.trainer}: {case.module.stem}",
        "epsilon": case.epsilon,
        "delta": case.delta,
        "noise_source": case.noise_source,
        "colluding": case.colluding,
        "seeds": case.seeds,
        "hr_at_10": mean["hr_at_10"],
        "hr_at_10_sd": deviation["hr_at_10"],
        "ndcg_at_10": mean["ndcg_at_10"],
        "ndcg_at_10_sd": deviation["ndcg_at_10"],
        "full_hr_at_50": mean["full_hr_at_50"],
        "floor": floor,
        "plaintext": _plaintext(case.data, case.text) if case.plaintext else None,
        "popularity": _popularity(case.data),
        "seconds": seconds,
    }


def _private(case: Case, dataset: Dataset, catalogue: Catalogue, overrides: dict[str, float]) -> Row:
    trainer: LinearTrainer = "als" if case.trainer == "als" else "subspace"
    return private_metrics(
        dataset,
        catalogue,
        epsilon=case.epsilon,
        delta=case.delta,
        seeds=range(1, case.seeds + 1),
        noise_source=case.noise_source,
        parties=case.parties,
        colluding=case.colluding,
        trainer=trainer,
        overrides=overrides,
    )


def _gradient(case: Case, dataset: Dataset, catalogue: Catalogue) -> Row:
    from baseline.gradient import gradient_metrics, gradient_spec
    from veil.trainers.gradient.source import read_code

    if case.module is None:
        raise ConfigError("got trainer gradient without a module, expected a module file", hint="--module FILE")
    if case.noise_source != "dealer":
        raise ConfigError("got noise by the parties for trainer gradient, expected dealer in this benchmark")
    code, digest = read_code(case.module, "module")
    settings = {"population": float(dataset.train.users)}
    spec = gradient_spec(code, digest, catalogue, case.epsilon, settings)
    runs = tuple(gradient_metrics(spec, catalogue, code, dataset, seed) for seed in range(1, case.seeds + 1))
    return Row("gradient", runs)


@lru_cache(maxsize=1)
def _material(data: str, text: bool) -> tuple[Dataset, Catalogue]:
    return load(data, text=text)


@lru_cache(maxsize=64)
def _floor(
    data: str, text: bool, epsilon: float, delta: float, seeds: int, noise_source: NoiseSource, colluding: int | None
) -> dict[str, float]:
    dataset, catalogue = _material(data, text)
    case = Case(data, epsilon, seeds=seeds, delta=delta, noise_source=noise_source, colluding=colluding)
    row = _private(case, dataset, catalogue, dict(FLOOR))
    mean, deviation = row.mean(), row.deviation()
    return {
        "hr_at_10": mean["hr_at_10"],
        "hr_at_10_sd": deviation["hr_at_10"],
        "ndcg_at_10": mean["ndcg_at_10"],
        "full_hr_at_50": mean["full_hr_at_50"],
    }


@lru_cache(maxsize=8)
def _plaintext(data: str, text: bool) -> dict[str, float]:
    dataset, catalogue = _material(data, text)
    return _plain(Row("plaintext", (plaintext_metrics(dataset, catalogue),)))


@lru_cache(maxsize=8)
def _popularity(data: str) -> dict[str, float]:
    from baseline.references import Popularity
    from veil.recsys.metrics import evaluate

    dataset, _ = _material(data, True)
    return _plain(Row("popularity", (evaluate(Popularity(dataset.train), dataset),)))


def _plain(row: Row) -> dict[str, float]:
    mean = row.mean()
    return {name: mean[name] for name in ("hr_at_10", "ndcg_at_10", "full_hr_at_50")}
