"""A tiny consortium's data, and jobs on module files written by the tests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from veil.jobs import spec as jobs
from veil.jobs.spec import JobSpec, Noise, Privacy
from veil.recsys.catalogue import Catalogue
from veil.recsys.dataset import Dataset
from veil.recsys.features import build_catalogue
from veil.recsys.interactions import Interactions
from veil.recsys.synthetic import generate
from veil.trainers.gradient.algorithm import GradientAlgorithm
from veil.trainers.gradient.facts import built, facts_of
from veil.trainers.gradient.local_update import trainable_size
from veil.trainers.gradient.plan import plan_gradient
from veil.trainers.gradient.source import execute, load_code

torch.set_num_threads(1)

PARTIES = ("alpha", "beta", "gamma")
MakeSpec = Callable[..., JobSpec]
MakeAlgorithm = Callable[..., GradientAlgorithm]


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    return generate(users=60, items=250, seed=4, negatives=20)


@pytest.fixture(scope="session")
def catalogue(dataset: Dataset) -> Catalogue:
    return build_catalogue(dataset.table)


@pytest.fixture(scope="session")
def odd_users() -> Interactions:
    """Users with 0, 1, 2 and 7 items of 250; item n of user n is shared with nobody."""
    pairs = [(1, 4), (2, 5), (2, 9), *[(3, item) for item in range(20, 27)]]
    users, items = np.array(pairs).T
    return Interactions.from_pairs(users, items, users=4, items=250, time=np.arange(len(pairs))[::-1].copy())


def write(folder: Path, source: str) -> Path:
    """A module file."""
    path = folder / f"{hashlib.sha256(source.encode()).hexdigest()[:12]}.py"
    path.write_text(source)
    return path


@pytest.fixture(scope="session")
def make_spec(catalogue: Catalogue) -> MakeSpec:
    def make(source: str, *, epsilon: float = 20.0, noise: str = "dealer", **overrides: float) -> JobSpec:
        digest = f"sha256:{hashlib.sha256(source.encode()).hexdigest()}"
        facts = facts_of(catalogue, seed=0, options=overrides)
        trainer, releases = plan_gradient(
            epsilon=epsilon,
            delta=1e-5,
            noise_source=noise,  # type: ignore[arg-type]
            parties=len(PARTIES),
            module="net",
            module_sha256=digest,
            parameters=trainable_size(built(execute(source.encode(), "net"), facts)),
            overrides={"rounds": 3, "sampling": 0.5, "clip": 0.25, "noise_decay": 1.0, **overrides},
        )
        return JobSpec(
            name="films",
            nonce="0" * 32,
            consortium="trial",
            parties=PARTIES,
            dealer="main",
            catalogue=jobs.Catalogue(
                digest=catalogue.digest, items=catalogue.items, features=catalogue.features.shape[1]
            ),
            privacy=Privacy(epsilon=epsilon, delta=1e-5, noise=Noise(source=noise)),  # type: ignore[arg-type]
            trainer=trainer,
            releases=releases,
            versions={"veil": "0.1.0"},
        )

    return make


@pytest.fixture
def make_algorithm(make_spec: MakeSpec, catalogue: Catalogue, tmp_path: Path) -> MakeAlgorithm:
    def make(source: str, *, coins: Callable[[int], bytes] | None = None, **overrides: float) -> GradientAlgorithm:
        spec = make_spec(source, **overrides)
        code = load_code(spec.trainer, {"net": write(tmp_path, source)})  # type: ignore[arg-type]
        return GradientAlgorithm(spec, catalogue, code, coins=coins)

    return make
