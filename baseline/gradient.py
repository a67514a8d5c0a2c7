"""Gradient rounds on data in one place: what a module would score after a private job, and without privacy.

Guarantee: the private rows run the plan, the per-user updates, the clipping, the secret coins and the noise of a real
job with all users in one place: the same distribution of models as a joint run, without the sharing. An evaluation of
data that one holds anyway, not a release. A module file needs one function more than a job does: `scores(module, users,
facts)`, float32[n, items].
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from baseline.evaluate import simulated_noise
from veil.jobs import spec as jobs
from veil.jobs.spec import JobSpec, Noise, Privacy, Release
from veil.privacy.noise import keyed_source
from veil.recsys.catalogue import Catalogue
from veil.recsys.dataset import Dataset
from veil.recsys.metrics import Metrics, evaluate
from veil.recsys.splits import leave_one_out, sample_negatives
from veil.trainers.gradient import examples
from veil.trainers.gradient.algorithm import GradientAlgorithm
from veil.trainers.gradient.contract import ModuleCode
from veil.trainers.gradient.facts import built, facts_of
from veil.trainers.gradient.local_update import trainable_size
from veil.trainers.gradient.plan import plan_gradient
from veil.trainers.rows import PartyRows
from veil.trainers.seam import central_state

_DELTA = 1e-5
_PARTIES = ("alpha", "beta", "gamma")


def gradient_spec(
    code: ModuleCode, digest: str, catalogue: Catalogue, epsilon: float | None, overrides: dict[str, float]
) -> JobSpec:
    """The job that parties would run. epsilon None: the same rounds with a clip that never binds and without noise."""
    claimed = 1000.0 if epsilon is None else epsilon
    facts = facts_of(catalogue, seed=0, options=overrides)
    trainer, releases = plan_gradient(
        epsilon=claimed,
        delta=_DELTA,
        noise_source="dealer",
        parties=len(_PARTIES),
        module="module",
        module_sha256=digest,
        parameters=trainable_size(built(code, facts)),
        overrides=overrides if epsilon is not None else {**overrides, "clip": 1000.0},
    )
    if epsilon is None:
        releases = tuple(release.model_copy(update={"sigma": 1}) for release in releases)
    return JobSpec(
        name="evaluation",
        nonce="0" * 32,
        consortium="evaluation",
        parties=_PARTIES,
        dealer="dealer",
        catalogue=jobs.Catalogue(digest=catalogue.digest, items=catalogue.items, features=catalogue.features.shape[1]),
        privacy=Privacy(epsilon=claimed, delta=_DELTA, noise=Noise(source="dealer")),
        trainer=trainer,
        releases=releases,
        versions={},
    )


def gradient_metrics(spec: JobSpec, catalogue: Catalogue, code: ModuleCode, dataset: Dataset, seed: int) -> Metrics:
    """Metrics of one run, noise and coins from the seed."""
    coins = keyed_source(seed.to_bytes(16, "big"), b"veil/examples/coins")
    algorithm = GradientAlgorithm(spec, catalogue, code, coins=coins)

    def noise(release: Release) -> npt.NDArray[np.int64]:
        return simulated_noise(spec, release, seed)

    state = central_state(algorithm, spec, PartyRows(dataset.train), noise)
    module = algorithm.module(state)
    blank = examples.template(code, algorithm.facts)

    def scores(users: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        made = examples.prepare(code, algorithm.facts, PartyRows(dataset.train.rows(users)), blank)
        with torch.no_grad():
            scored: torch.Tensor = code.scores(module, made.tensors, algorithm.facts)  # type: ignore[attr-defined]
        return np.asarray(scored.numpy(), dtype=np.float32)

    return evaluate(scores, dataset)


def validation(dataset: Dataset) -> Dataset:
    """The latest training item of each user held out in place of the test item, which stays unused."""
    held = leave_one_out(dataset.train, order="random" if dataset.train.time is None else "latest")
    negatives = sample_negatives(held.train, held.test_items)
    return Dataset(f"{dataset.name}, validation", held.train, held.test_items, negatives, dataset.table)
