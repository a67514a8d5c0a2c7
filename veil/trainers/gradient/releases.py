"""The releases of a gradient job, their sensitivities and their sampling: arithmetic on public integers.

Guarantee: `expected` is what the mechanism in `veil.trainers.gradient.local_update` really does; nothing here imports
torch or runs code of a module, so that a party's daemon can check a job with it.

    users        2^16 for each user that has enough rows to learn from      opens 1 number           sensitivity 2^16
    round-0001   trunc(2^b clip(update, C)) for each user that is sampled   opens as many numbers    floor(C 2^b)
                                                                            as are trained
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Final

from veil.errors import ConfigError
from veil.jobs.spec import GradientTrainer, JobSpec
from veil.privacy.mechanism import vector_sensitivity
from veil.trainers.seam import Expected, check_releases

USERS: Final = "users"
USER_BITS: Final = 16
"""The count is on a grid too: noise that parties share out has to be many steps wide."""
MODULE_OPTION_PREFIX: Final = "module-"

# Truncation costs each entry less than a step: at 2^20 steps in a norm, an entry of 1/100 of the norm keeps 10^4 steps.
_STEPS_BITS: Final = 20
_LEAST_CLIP: Final = 1e-6


def round_name(number: int) -> str:
    """Name of a round's release; rounds count from 1."""
    return f"round-{number:04d}"


def round_bits(clip: float) -> int:
    """Fractional bits of the grid: such that a clipped update is 2^20 to 2^21 steps long.

    Raises `ConfigError` for a clip below 10^-6.
    """
    if not (math.isfinite(clip) and clip >= _LEAST_CLIP):
        raise ConfigError(f"got clip {clip}, expected at least {_LEAST_CLIP:g}")
    return max(0, _STEPS_BITS - math.frexp(clip)[1] + 1)


def round_sensitivity(clip: float) -> int:
    """Bound on the L2 norm of what one user adds to a round, in grid steps."""
    return vector_sensitivity(clip, round_bits(clip))


def sampling_threshold(sampling: float) -> int:
    """floor(q 2^64): a user takes part when a uniform 64-bit integer is below it.

    The probability is threshold / 2^64 <= q exactly, never above what the accounting takes. Raises `ConfigError`.
    """
    if not 0 < sampling <= 1:
        raise ConfigError(f"got sampling {sampling}, expected above 0 and at most 1")
    return math.floor(Fraction(sampling) * 2**64)


def expected(trainer: GradientTrainer) -> list[Expected]:
    """Every release that the trainer makes, in order."""
    # Sensitivity: a user is counted once, as 2^16 steps, or not at all.
    releases = [Expected(USERS, (1,), 1 << USER_BITS)]
    bound = round_sensitivity(trainer.clip)
    for number in range(1, trainer.rounds + 1):
        releases.append(Expected(round_name(number), (trainer.parameters,), bound, sampling=trainer.sampling))
    return releases


def check_gradient_releases(spec: JobSpec) -> GradientTrainer:
    """The job's trainer, when its releases are those that it makes. Raises `ConfigError`."""
    trainer = spec.trainer
    if not isinstance(trainer, GradientTrainer):
        raise ConfigError(f"got a job of trainer {trainer.kind!r}, expected gradient")
    check_releases(spec, expected(trainer))
    return trainer
