"""Metrics of the plaintext model, of the references, and of the private mechanism simulated on data that one holds.

Guarantee: all rows of a comparison share one data set, one split and one set of negatives. The private rows run the
real integer mechanism (`veil.trainers.registry.central_run` with `veil.privacy.noise_of.draw`) with all users
in one place: the same distribution of models as a joint run, without the sharing. They are an evaluation for whoever
holds the data already, not a release: nothing is charged to a ledger, and looking at the metrics reveals the data.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from baseline import mixing
from baseline.references import Factorisation, Popularity
from baseline.train import plaintext_model
from veil.errors import ConfigError
from veil.jobs import spec as jobs
from veil.jobs.request import CatalogueFacts, CatalogueSection, JobRequest, PrivacySection, TrainerSection
from veil.jobs.spec import JobSpec, Noise, Privacy, Release
from veil.privacy import noise_of
from veil.privacy.noise import keyed_source
from veil.privacy.sources import draws, party_release
from veil.recsys.catalogue import Catalogue
from veil.recsys.dataset import Dataset
from veil.recsys.metrics import Metrics, evaluate
from veil.recsys.model import Model
from veil.recsys.splits import leave_one_out, sample_negatives
from veil.trainers import registry
from veil.trainers.als.algorithm import AlsAlgorithm
from veil.trainers.linear import LinearAlgorithm, central_trained
from veil.trainers.registry import central_run
from veil.trainers.subspace.algorithm import SubspaceAlgorithm

Int64 = npt.NDArray[np.int64]
NoiseSource = Literal["dealer", "parties"]
LinearTrainer = Literal["subspace", "als"]

_SIMULATION_DOMAIN = b"veil/baseline/simulated-noise/v1"


@dataclass(frozen=True)
class Row:
    """One line of a comparison. `runs` holds the metrics of each noise seed; one for what has no noise."""

    name: str
    runs: tuple[Metrics, ...]

    def mean(self) -> dict[str, float]:
        """Mean over runs, by metric."""
        whole = [run.as_dict() for run in self.runs]
        return {name: statistics.fmean(one[name] for one in whole) for name in whole[0]}

    def deviation(self) -> dict[str, float]:
        """Standard deviation over runs (of one draw, not of the mean), by metric; 0 for a single run."""
        whole = [run.as_dict() for run in self.runs]
        return {name: statistics.stdev(one[name] for one in whole) if len(whole) > 1 else 0.0 for name in whole[0]}


def model_metrics(model: Model, dataset: Dataset) -> Metrics:
    """Metrics of a model, its users folded in from their training histories."""
    vectors = model.user_vectors(dataset.train)
    return evaluate(lambda users: model.scores(vectors[users]), dataset)


def plaintext_metrics(dataset: Dataset, catalogue: Catalogue, device: torch.device | str = "cpu") -> Metrics:
    """Metrics of the plaintext twin, trained on `device`."""
    return model_metrics(plaintext_model(dataset.train, catalogue, device), dataset)


def reference_metrics(dataset: Dataset, *, threads: int = 0) -> dict[str, Metrics]:
    """{"popularity", "ials"}: metrics of the references. threads: for iALS, 0 for all cores."""
    return {
        "popularity": evaluate(Popularity(dataset.train), dataset),
        "ials": evaluate(Factorisation(dataset.train, threads=threads), dataset),
    }


def simulation_spec(
    catalogue: Catalogue,
    *,
    epsilon: float,
    delta: float,
    noise_source: NoiseSource = "dealer",
    parties: int = 3,
    colluding: int | None = None,
    trainer: LinearTrainer = "subspace",
    overrides: dict[str, float] | None = None,
) -> JobSpec:
    """The job that parties would run on this catalogue, with invented names. trainer: one with linear scores."""
    facts = CatalogueFacts(digest=catalogue.digest, items=catalogue.items, features=int(catalogue.features.shape[1]))
    request = JobRequest(
        name="simulation",
        parties=tuple(f"party-{number}" for number in range(parties)),
        catalogue=CatalogueSection(path=Path("catalogue")),  # not read: its facts are at hand
        privacy=PrivacySection(epsilon=epsilon, delta=delta, noise=noise_source, colluding=colluding),
        trainer=TrainerSection(kind=trainer, overrides=dict(overrides or {})),
    )
    planned, releases = registry.plan(request, facts)
    return JobSpec(
        name=request.name,
        nonce="0" * 32,
        consortium="simulation",
        parties=request.parties,
        dealer="dealer",
        catalogue=jobs.Catalogue(digest=facts.digest, items=facts.items, features=facts.features),
        privacy=Privacy(epsilon=epsilon, delta=delta, noise=Noise(source=noise_source, colluding=colluding)),
        trainer=planned,
        releases=releases,
        versions={},
    )


def simulated_noise(spec: JobSpec, release: Release, seed: int) -> Int64:
    """What lies on an opened total: one draw for the source "dealer", one a party for "parties"; reproducible."""
    key = seed.to_bytes(32, "big")
    noise, parties = spec.privacy.noise, len(spec.parties)
    one = release if noise.source == "dealer" else party_release(release, noise, parties)
    total = np.zeros(release.shape, np.int64)
    for draw in range(draws(noise, parties)):
        source = keyed_source(key, b"%s/%s/%d" % (_SIMULATION_DOMAIN, release.name.encode(), draw))
        total += noise_of.draw(one, source)
    return total


def private_metrics(
    dataset: Dataset,
    catalogue: Catalogue,
    *,
    epsilon: float,
    delta: float,
    seeds: Sequence[int],
    noise_source: NoiseSource = "dealer",
    parties: int = 3,
    colluding: int | None = None,
    trainer: LinearTrainer = "subspace",
    overrides: dict[str, float] | None = None,
) -> Row:
    """Metrics of the private model, simulated centrally, for each noise seed."""
    if not seeds:
        raise ConfigError("got no noise seed, expected at least one")
    spec = simulation_spec(
        catalogue,
        epsilon=epsilon,
        delta=delta,
        noise_source=noise_source,
        parties=parties,
        colluding=colluding,
        trainer=trainer,
        overrides=overrides,
    )
    runs = []
    for seed in seeds:

        def noise(release: Release, seed: int = seed) -> Int64:
            return simulated_noise(spec, release, seed)

        runs.append(model_metrics(central_run(spec, catalogue, dataset.train, noise), dataset))
    return Row(f"private, epsilon {epsilon:g}", tuple(runs))


def fit_private_mixing(
    dataset: Dataset,
    catalogue: Catalogue,
    *,
    epsilon: float,
    delta: float,
    seeds: Sequence[int],
    trainer: LinearTrainer = "subspace",
    overrides: dict[str, float] | None = None,
    latest: int = 1,
    without: Sequence[str] = (),
) -> dict[str, float]:
    """Mixing weights for the private model, fitted on the latest training items of each user.

    Looks at held-out items in the clear: for public data sets. The constants in `veil.trainers.subspace.plan` and
    `veil.trainers.als.plan` are its results on MovieLens-100K; what with is said there. The test item stays unused.

    latest: how many items of each user are held out, all of them at once; users with few items keep at least one.
    without: terms whose weight is 0.
    """
    held, order = dataset.train, "random" if dataset.train.time is None else "latest"
    targets = []
    for number in range(latest):
        split = leave_one_out(held, order=order, seed=number)  # type: ignore[arg-type]
        held = split.train
        targets.append(split.test_items)
    spec = simulation_spec(catalogue, epsilon=epsilon, delta=delta, trainer=trainer, overrides=overrides)
    algorithm: LinearAlgorithm = (
        AlsAlgorithm(spec, catalogue) if trainer == "als" else SubspaceAlgorithm(spec, catalogue)
    )
    names: list[str] = []
    problems = []
    for seed in seeds:

        def noise(release: Release, seed: int = seed) -> Int64:
            return simulated_noise(spec, release, seed)

        trained = central_trained(algorithm, spec, held, noise)
        for number, test_items in enumerate(targets):
            users = np.flatnonzero(test_items >= 0)
            part = held.rows(users)
            negatives = sample_negatives(dataset.train.rows(users), test_items[users], seed=number)
            names, problem = mixing.columns(trained, part, test_items[users], negatives)
            problems.append(problem[:, :, [name not in without for name in names]])
    return mixing.fit([name for name in names if name not in without], problems) | dict.fromkeys(without, 0.0)


def private_comparison(
    dataset: Dataset,
    catalogue: Catalogue,
    *,
    epsilons: Sequence[float],
    delta: float,
    seeds: Sequence[int],
    noise_source: NoiseSource = "dealer",
    parties: int = 3,
) -> Iterator[Row]:
    """One row for each epsilon, as they are done."""
    for epsilon in epsilons:
        yield private_metrics(
            dataset,
            catalogue,
            epsilon=epsilon,
            delta=delta,
            seeds=seeds,
            noise_source=noise_source,
            parties=parties,
        )


def plain_comparison(dataset: Dataset, catalogue: Catalogue, device: str, *, threads: int = 0) -> Iterator[Row]:
    """Plaintext model, iALS, popularity, as they are done."""
    yield Row(f"plaintext, {device}", (plaintext_metrics(dataset, catalogue, device),))
    references = reference_metrics(dataset, threads=threads)
    yield Row("iALS", (references["ials"],))
    yield Row("popularity", (references["popularity"],))
