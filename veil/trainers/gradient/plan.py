"""From a privacy budget to a gradient job: rounds, sampling, clip, rates, and the noise of every release.

Guarantee: the releases that `plan_gradient` returns cost together at most `epsilon` at `delta` by
`veil.privacy.accountant.epsilon`, sampling included, and their sensitivities are those of the mechanism.

Defaults are a function of `population`, a public guess of how many users all parties have together (the noised count
of the first release takes its place once the job runs); epsilon enters through the noise alone. `settings` states the
rule. It was chosen, as were the optimiser's defaults (`server.Optimizer`), on MovieLens-100K, a public data set, with
the item before the last of each user held out, epsilon 1, 3 and 10, on examples/two_tower.py; no other data set was
looked at. An override replaces any of them. To tune for another module: on public or synthetic data
(examples/train_gradient.py --validate); every try on private data would have to be paid for as a job of its own.

Noise over the rounds: `noise_decay` k makes the noise of the first of four stages k times that of the last, in equal
ratios, at the same epsilon. Above 1 is more noise early and less late; measured, that is the wrong way round for the
two-tower model: HR@10 at epsilon 3, mean of three seeds, .537 for k = 2, .553 for 1 and .565 for 1/2, the default. The
first rounds decide what the later ones refine, and the mean over the last weights takes the late noise out anyway.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from veil.errors import ConfigError
from veil.jobs.request import JobRequest
from veil.jobs.spec import GradientTrainer, Release
from veil.privacy import accountant
from veil.privacy.mechanism import variance_factor
from veil.trainers.gradient.releases import MODULE_OPTION_PREFIX, USERS, expected

DEFAULT_POPULATION: Final = 5_000
_MOST_ROUNDS: Final = 1000
_USERS_SHARE: Final = 0.01
_ROUNDS: Final = 160
_SAMPLED_USERS: Final = 300
_NOISE_DECAY: Final = 0.5
_STAGES: Final = 4
_CALIBRATION: Final = 1e-3  # relative, of the noise over several stages

PLAN_OVERRIDES: Final = ("rounds", "sampling", "clip", "population", "users_share", "noise_decay")
OPTION_OVERRIDES: Final = (
    *("server", "rate", "rate_end", "momentum", "second_momentum", "floor", "average"),
    *("local_steps", "local_rate"),
)


@dataclass(frozen=True)
class Settings:
    """What `settings` chose. `users_share`: of the budget, in mu^2, for the count of users."""

    rounds: int
    sampling: float
    clip: float
    rate: float
    users_share: float = _USERS_SHARE
    noise_decay: float = _NOISE_DECAY


def settings(epsilon: float, population: int) -> Settings:
    """The defaults for a budget and a public guess of the number of users.

    160 rounds of about 300 sampled users, at most half of all: more users in a round, or more rounds of fewer, change
    little, since the noise of the mean over all rounds stays nearly the same, and cost time.
    """
    if not (math.isfinite(epsilon) and epsilon > 0):
        raise ConfigError(f"got epsilon {epsilon}, expected a positive number")
    if population < 1:
        raise ConfigError(f"got population {population}, expected at least 1")
    return Settings(rounds=_ROUNDS, sampling=min(0.5, max(0.01, _SAMPLED_USERS / population)), clip=0.5, rate=0.01)


def plan_gradient(
    *,
    epsilon: float,
    delta: float,
    noise_source: Literal["dealer", "parties"],
    parties: int,
    module: str,
    module_sha256: str,
    parameters: int,
    overrides: Mapping[str, float] | None = None,
) -> tuple[GradientTrainer, tuple[Release, ...]]:
    """Trainer and releases of a job that costs at most (epsilon, delta), add or remove one user.

    The noise of a release is what one draw must have. With source "parties" each party adds such a draw, so that the
    total carries `parties` times its variance. Raises `ConfigError` on a budget or override that cannot be met.
    """
    variance_factor(noise_source, parties)  # refuses an unknown source
    given = dict(overrides or {})
    known = {*PLAN_OVERRIDES, *OPTION_OVERRIDES}
    unknown = sorted(name for name in given if name not in known and not name.startswith(MODULE_OPTION_PREFIX))
    if unknown:
        raise ConfigError(
            f"got unknown settings {', '.join(unknown)}, expected some of {', '.join(sorted(known))}"
            f" or {MODULE_OPTION_PREFIX}<name>"
        )
    population = _whole(given, "population", DEFAULT_POPULATION, 10**9)
    chosen = _overridden(settings(epsilon, population), given)
    options = {name: float(value) for name, value in given.items() if name not in PLAN_OVERRIDES}
    trainer = GradientTrainer(
        module=module,
        module_sha256=module_sha256,
        parameters=parameters,
        rounds=chosen.rounds,
        clip=chosen.clip,
        sampling=chosen.sampling,
        options={"rate": chosen.rate, **options},
    )
    releases = _releases(trainer, chosen, epsilon, delta)
    spent = accountant.epsilon(releases, delta)
    if spent > epsilon:
        raise ConfigError(f"got a plan that costs epsilon {spent}, expected at most {epsilon}")
    return trainer, releases


def plan_request(request: JobRequest) -> tuple[GradientTrainer, tuple[Release, ...]]:
    """As `plan_gradient`, from a job.toml: reads the catalogue and executes the operator's own copy of the module file,
    to count its parameters. Raises `ConfigError`."""
    # Here and not above: torch, and the module file's own libraries, for those who plan a job and for nobody else.
    from veil.recsys.catalogue import Catalogue
    from veil.trainers.gradient.facts import built, facts_of
    from veil.trainers.gradient.local_update import trainable_size
    from veil.trainers.gradient.source import read_code

    section = request.trainer
    if section.module is None or section.module_file is None or request.catalogue is None:
        raise ConfigError("got trainer gradient without a module, expected [trainer] module and module_file")
    code, digest = read_code(section.module_file, section.module)
    facts = facts_of(Catalogue.load(request.catalogue.path), seed=0, options=section.overrides)
    return plan_gradient(
        epsilon=request.privacy.epsilon,
        delta=request.privacy.delta,
        noise_source=request.privacy.noise,
        parties=len(request.parties),
        module=section.module,
        module_sha256=digest,
        parameters=trainable_size(built(code, facts)),
        overrides=section.overrides,
    )


def stage_factors(rounds: int, noise_decay: float) -> list[float]:
    """The noise of every round, relative to the last one's."""
    if noise_decay == 1 or rounds < _STAGES:
        return [1.0] * rounds
    return [noise_decay ** (1 - (number * _STAGES // rounds) / (_STAGES - 1)) for number in range(rounds)]


def _releases(trainer: GradientTrainer, chosen: Settings, epsilon: float, delta: float) -> tuple[Release, ...]:
    users, *rounds = expected(trainer)
    share = accountant.multipliers(epsilon, delta, [chosen.users_share])[0]
    count = users.sensitivity
    first = Release(name=USERS, shape=users.shape, sensitivity=count, sigma=accountant.sigma_steps(share, count))

    def noised(scale: float) -> tuple[Release, ...]:
        factors = stage_factors(trainer.rounds, chosen.noise_decay)
        return first, *(
            Release(
                name=one.name,
                shape=one.shape,
                sensitivity=one.sensitivity,
                sigma=accountant.sigma_steps(scale * factor, one.sensitivity),
                sampling=one.sampling,
            )
            for one, factor in zip(rounds, factors, strict=True)
        )

    equal = accountant.sampled_multiplier(epsilon, delta, trainer.sampling, trainer.rounds, beside=[first])
    if chosen.noise_decay == 1 or trainer.rounds < _STAGES:
        return noised(equal)
    # The least noise over several stages lies between all rounds as noisy as the first and all as noisy as the last.
    low, high = sorted((equal / chosen.noise_decay, equal))
    while high / low > 1 + _CALIBRATION:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if accountant.epsilon(noised(middle), delta) <= epsilon else (middle, high)
    return noised(high * (1 + 1e-9))


def _overridden(chosen: Settings, given: Mapping[str, float]) -> Settings:
    real = {
        name: float(given.get(name, getattr(chosen, name)))
        for name in ("sampling", "clip", "rate", "users_share", "noise_decay")
    }
    for name, most in (("sampling", 1.0), ("clip", 1000.0), ("rate", 1000.0)):
        if not 0 < real[name] <= most:
            raise ConfigError(f"got {name} {real[name]}, expected above 0 and at most {most:g}")
    if not 0 < real["users_share"] < 1:
        raise ConfigError(f"got users_share {real['users_share']}, expected above 0 and below 1")
    if not 0.1 <= real["noise_decay"] <= 10:
        raise ConfigError(f"got noise_decay {real['noise_decay']}, expected 0.1 to 10")
    return Settings(rounds=_whole(given, "rounds", chosen.rounds, _MOST_ROUNDS), **real)


def _whole(given: Mapping[str, float], name: str, default: int, most: int) -> int:
    value = float(given.get(name, default))
    if not value.is_integer() or not 1 <= value <= most:
        raise ConfigError(f"got {name} {value:g}, expected a whole number from 1 to {most}")
    return int(value)


def rounds_of(releases: Sequence[Release]) -> list[float]:
    """Noise multiplier of every round, for reports."""
    return [release.sigma / release.sensitivity for release in releases if release.name != USERS]
