"""What a budget buys: a job's plan before there is a job, with its noise, its openings and what to expect of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from cli import expectation
from veil.errors import ConfigError
from veil.jobs.spec import NEIGHBOURING, GradientTrainer, Noise, Release, Trainer
from veil.privacy import accountant
from veil.privacy.sources import draws, party_release

TrainerName = Literal["subspace", "als", "gradient"]
_BYTES_A_NUMBER = 8


@dataclass(frozen=True)
class Wish:
    """What somebody asks: a budget, and the sizes that a plan follows from. `users`: of all parties together."""

    epsilon: float
    delta: float
    trainer: TrainerName
    noise: Literal["dealer", "parties"]
    parties: int
    colluding: int | None = None
    users: int | None = None
    items: int | None = None
    features: int = 200
    parameters: int | None = None
    rounds: int | None = None
    sampling: float | None = None


@dataclass(frozen=True)
class Plan:
    """What the wish becomes: releases that cost `epsilon`, at most what was asked for."""

    wish: Wish
    trainer: Trainer
    releases: tuple[Release, ...]
    epsilon: float

    @property
    def multiplier(self) -> float | None:
        """Noise multiplier of the whole job as one Gaussian on all users; None where some are sampled."""
        spent = accountant.Composition().plus(self.releases)
        return 2.0**64 / math.sqrt(spent.squared_mu) if spent.exact else None

    @property
    def ratio(self) -> float | None:
        """Noise of the whole job relative to its users; None where one of the two is not known."""
        if self.multiplier is None or self.wish.users is None:
            return None
        return expectation.ratio(self.multiplier, draw_variance(self.wish), self.wish.users)

    @property
    def numbers(self) -> int:
        """Numbers that all openings show together."""
        return sum(release.size for release in self.releases)

    def groups(self) -> list[tuple[Release, Release, int]]:
        """First, last and number of releases in a row that differ in nothing but their names."""
        runs = [list(run) for _, run in groupby(self.releases, key=lambda one: one.model_copy(update={"name": "x"}))]
        return [(run[0], run[-1], len(run)) for run in runs]


def planned(wish: Wish) -> Plan:
    """Raises `ConfigError` when the budget or a size cannot be met, or a size is missing."""
    trainer, releases = _gradient(wish) if wish.trainer == "gradient" else _linear(wish)
    return Plan(wish, trainer, releases, accountant.epsilon(releases, wish.delta))


def _linear(wish: Wish) -> tuple[Trainer, tuple[Release, ...]]:
    from veil.jobs.request import CatalogueFacts, CatalogueSection, JobRequest, PrivacySection, TrainerSection
    from veil.trainers.registry import plan

    if wish.items is None:
        raise ConfigError(f"got trainer {wish.trainer} without a number of items, expected one", hint="pass --items")
    if wish.sampling is not None or wish.parameters is not None:
        raise ConfigError(f"got sampling or parameters for {wish.trainer}, expected them for gradient only")
    request = JobRequest(
        name="plan",
        parties=tuple(f"party-{number}" for number in range(1, wish.parties + 1)),
        catalogue=CatalogueSection(path=Path()),
        privacy=PrivacySection(epsilon=wish.epsilon, delta=wish.delta, noise=wish.noise, colluding=wish.colluding),
        trainer=TrainerSection(
            kind=wish.trainer, overrides={} if wish.rounds is None else {"rounds": float(wish.rounds)}
        ),
    )
    return plan(request, CatalogueFacts(digest="sha256:" + "0" * 64, items=wish.items, features=wish.features))


def _gradient(wish: Wish) -> tuple[Trainer, tuple[Release, ...]]:
    from veil.trainers.gradient.plan import plan_gradient

    if wish.parameters is None:
        raise ConfigError("got trainer gradient without a number of parameters, expected one", hint="pass --parameters")
    given = {"rounds": wish.rounds, "sampling": wish.sampling, "population": wish.users}
    return plan_gradient(
        epsilon=wish.epsilon,
        delta=wish.delta,
        noise_source=wish.noise,
        parties=wish.parties,
        module="planned",
        module_sha256="sha256:" + "0" * 64,
        parameters=wish.parameters,
        overrides={name: float(value) for name, value in given.items() if value is not None},
    )


def draw_variance(wish: Wish) -> float:
    """Variance on an opened total over that of the noise that a release states."""
    if wish.noise == "dealer":
        return 1.0
    return wish.parties / (wish.parties - (wish.parties - 1 if wish.colluding is None else wish.colluding))


def total_sigma(wish: Wish, release: Release) -> float:
    """Width of the noise on the opened total, in grid steps: of all draws together."""
    noise = Noise(source=wish.noise, colluding=wish.colluding)
    each = release if wish.noise == "dealer" else party_release(release, noise, wish.parties)
    return each.sigma * math.sqrt(draws(noise, wish.parties))


def mean_update_noise(plan: Plan) -> float | None:
    """L2 norm of a gradient round's noise on the mean update, relative to the clipping norm; None for other plans."""
    trainer, users = plan.trainer, plan.wish.users
    if not isinstance(trainer, GradientTrainer) or users is None:
        return None
    last = plan.releases[-1]
    sigma = total_sigma(plan.wish, last) / last.sensitivity
    return sigma * math.sqrt(trainer.parameters) / (trainer.sampling * users)


def expected(plan: Plan, known: Sequence[expectation.Reference]) -> list[expectation.Expected]:
    """What measured figures say; nothing for gradient jobs, and where the number of users is not known."""
    if plan.ratio is None or plan.wish.trainer == "gradient":
        return []
    return expectation.expected(known, plan.ratio, plan.wish.trainer)


def document(plan: Plan, known: Sequence[expectation.Reference]) -> dict[str, Any]:
    """The plan as JSON."""
    wish = plan.wish
    return {
        "trainer": plan.trainer.model_dump(mode="json"),
        "epsilon": plan.epsilon,
        "epsilon_asked": wish.epsilon,
        "delta": wish.delta,
        "unit": "user",
        "neighbouring": NEIGHBOURING,
        "noise_source": wish.noise,
        "parties": wish.parties,
        "colluding": wish.colluding,
        "users": wish.users,
        "noise_multiplier": plan.multiplier,
        "noise_to_users": plan.ratio,
        "mean_update_noise": mean_update_noise(plan),
        "openings": len(plan.releases),
        "numbers_opened": plan.numbers,
        "bytes_opened": plan.numbers * _BYTES_A_NUMBER,
        "releases": [
            {
                **first.model_dump(mode="json"),
                "last_name": last.name,
                "count": count,
                "noise_multiplier": first.sigma / first.sensitivity,
                "total_sigma": total_sigma(wish, first),
            }
            for first, last, count in plan.groups()
        ],
        "expected": [
            {
                "data": one.reference.data,
                "trainer": one.reference.trainer,
                "share_of_plaintext_gain": one.share,
                "hr_at_10": one.hr_at_10,
                "plaintext_hr_at_10": one.reference.plaintext,
                "popularity_hr_at_10": one.reference.popularity,
                "within_measured_noise": one.measured,
            }
            for one in expected(plan, known)
        ],
    }
