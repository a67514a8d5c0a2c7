"""Trainers by name: the one place that knows them all.

Guarantee: what a job names is either built by the code that is named here or refused; nothing is looked up by a string
that comes from outside. A trainer's own libraries are imported only when a job asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from veil.errors import ConfigError
from veil.jobs.columns import ColumnsTrainer
from veil.jobs.predictions import PredictionsTrainer
from veil.jobs.request import CatalogueFacts, JobRequest
from veil.jobs.side import SideTrainer
from veil.jobs.spec import AlsTrainer, GradientTrainer, JobSpec, QueryTrainer, Release, SubspaceTrainer, Trainer
from veil.recsys.catalogue import Catalogue
from veil.recsys.interactions import Interactions
from veil.recsys.model import Model
from veil.trainers.rows import PartyRows
from veil.trainers.seam import Algorithm, Int64, PublicState, central_state


class Recommender(Algorithm, Protocol):
    """A trainer whose result is a model with linear scores."""

    def model(self, public_state: PublicState) -> Model:
        """The model, from the state after the last step."""
        ...


def check_job(spec: JobSpec, catalogue: Catalogue | None, *, modules: Mapping[str, Path] | None = None) -> None:
    """Raises `ConfigError` unless trainer, releases and catalogue fit together. Runs no code that a job names.

    modules: as for `algorithm_of`; raises `PolicyError` on a module that is not among them with the job's digest.
    """
    trainer = spec.trainer
    if isinstance(trainer, ColumnsTrainer):
        from veil.trainers.columns.terms import ColumnsTerms

        ColumnsTerms.of(spec)
        return
    if isinstance(trainer, PredictionsTrainer):
        from veil.trainers.columns.prediction import PredictionTerms

        PredictionTerms.of(spec)
        return
    if catalogue is None:
        raise ConfigError(f"got trainer {trainer.kind!r} without a catalogue, expected one")
    if isinstance(trainer, SideTrainer):
        from veil.trainers.side.algorithm import SideAlgorithm

        SideAlgorithm(spec, catalogue)
        return
    if isinstance(trainer, GradientTrainer):
        from veil.trainers.gradient.releases import check_gradient_releases
        from veil.trainers.gradient.source import check_source

        check_source(check_gradient_releases(spec), modules or {})
        return
    if isinstance(trainer, QueryTrainer):
        from veil.queries.algorithm import QueryAlgorithm

        QueryAlgorithm(spec, catalogue)
        return
    recommender_of(spec, catalogue)


def algorithm_of(spec: JobSpec, catalogue: Catalogue, *, modules: Mapping[str, Path] | None = None) -> Algorithm:
    """The job's trainer. modules: where this party keeps the code of each module that it allows.

    Raises `ConfigError`, and `PolicyError` on a module that is not among them with the job's digest.
    """
    trainer = spec.trainer
    if isinstance(trainer, QueryTrainer):
        from veil.queries.algorithm import QueryAlgorithm

        return QueryAlgorithm(spec, catalogue)
    if isinstance(trainer, GradientTrainer):
        from veil.trainers.gradient.algorithm import GradientAlgorithm
        from veil.trainers.gradient.source import load_code

        return GradientAlgorithm(spec, catalogue, load_code(trainer, modules or {}))
    return recommender_of(spec, catalogue)


def recommender_of(spec: JobSpec, catalogue: Catalogue) -> Recommender:
    """As `algorithm_of`, for the trainers of linear recommenders: subspace and als. Raises `ConfigError`."""
    trainer = spec.trainer
    if isinstance(trainer, SubspaceTrainer):
        from veil.trainers.subspace.algorithm import SubspaceAlgorithm

        return SubspaceAlgorithm(spec, catalogue)
    if isinstance(trainer, AlsTrainer):
        from veil.trainers.als.algorithm import AlsAlgorithm

        return AlsAlgorithm(spec, catalogue)
    raise ConfigError(f"got trainer {trainer.kind!r}, expected subspace or als")


def plan(request: JobRequest, catalogue: CatalogueFacts | None) -> tuple[Trainer, tuple[Release, ...]]:
    """Trainer and releases of a job that costs at most the request's budget. Raises `ConfigError`."""
    section = request.trainer
    if section.kind == "predictions":
        from veil.trainers.columns.prediction_plan import plan_predictions

        return plan_predictions(request)
    privacy = request.privacy
    if section.kind == "columns":
        from veil.trainers.columns.plan import plan_request as plan_columns

        return plan_columns(request)
    if catalogue is None:
        raise ConfigError(f"got trainer {section.kind!r} without a catalogue, expected one")
    if section.kind == "subspace":
        from veil.trainers.subspace.plan import plan_subspace

        return plan_subspace(
            epsilon=privacy.epsilon,
            delta=privacy.delta,
            noise_source=privacy.noise,
            parties=len(request.parties),
            items=catalogue.items,
            features=catalogue.features,
            overrides=section.overrides,
        )
    if section.kind == "als":
        from veil.trainers.als.plan import plan_als

        return plan_als(
            epsilon=privacy.epsilon,
            delta=privacy.delta,
            items=catalogue.items,
            features=catalogue.features,
            overrides=section.overrides,
        )
    if section.kind == "side":
        from veil.trainers.side.plan import plan_request as plan_side

        return plan_side(request, catalogue)
    if section.kind == "gradient":
        from veil.trainers.gradient.plan import plan_request

        return plan_request(request)
    if section.kind == "query":
        from veil.queries.plan import plan_queries

        if section.overrides:
            raise ConfigError(f"got {', '.join(section.overrides)} in [trainer], expected kind and questions only")
        return plan_queries(
            section.questions,
            epsilon=privacy.epsilon,
            delta=privacy.delta,
            items=catalogue.items,
            categories=catalogue.categories,
        )
    raise ConfigError(f"got trainer {section.kind!r}, which this version does not have")


def central_run(
    spec: JobSpec, catalogue: Catalogue, interactions: Interactions, noise: Callable[[Release], Int64]
) -> Model:
    """The model that a job would train, with all users in one place (`veil.trainers.seam.central_state`)."""
    algorithm = recommender_of(spec, catalogue)
    return algorithm.model(central_state(algorithm, spec, PartyRows(interactions), noise))
