"""The server's optimiser: from the noised mean of updates to the next weights. Post-processing of openings.

Guarantee: pure functions of public arrays and of the job; nothing here sees rows.

With g the estimate of the mean update of a round (descent direction: weights move against it), t from 1:

    momentum   m = b1 m + (1 - b1) g;   w = w - rate_t m / (1 - b1^t)
    adam       v = b2 v + (1 - b2) g^2; w = w - rate_t (m / (1 - b1^t)) / max(sqrt(v / (1 - b2^t) - phi), floor)

phi is the variance that the noise adds to each entry of g. It is public, and without taking it off Adam divides by the
noise instead of the signal (Tang, Shpilevskiy and Lecuyer 2024, "DP-AdamBC", AAAI); floor is the noise's share that is
left of the root. rate_t falls from `rate` to `rate * rate_end` along a straight line. What is published is the mean of
the weights over the last `average` of the rounds (Polyak and Juditsky 1992), which costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from veil.errors import ConfigError, InputError, StateError
from veil.trainers.seam import PublicState

Float64 = npt.NDArray[np.float64]

MOMENTUM, ADAM = 0.0, 1.0
_ARRAYS: Final = ("weights", "momentum", "second", "average")
_LARGEST_WEIGHT: Final = 1e6


@dataclass(frozen=True)
class Optimizer:
    """Settings, all public; the names are those of the job's options."""

    server: float = ADAM
    rate: float = 0.01
    rate_end: float = 0.3
    momentum: float = 0.9
    second_momentum: float = 0.99
    floor: float = 1.0
    average: float = 0.5

    def __post_init__(self) -> None:
        """Checks every number; raises `ConfigError`."""
        if self.server not in (MOMENTUM, ADAM):
            raise ConfigError(f"got server {self.server:g}, expected 0 (momentum) or 1 (adam)")
        if not 0 < self.rate <= 1000:
            raise ConfigError(f"got rate {self.rate}, expected above 0 and at most 1000")
        if not 0 < self.floor <= 1000:
            raise ConfigError(f"got floor {self.floor}, expected above 0 and at most 1000")
        for name in ("rate_end", "average"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"got {name} {getattr(self, name)}, expected 0 to 1")
        for name in ("momentum", "second_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"got {name} {getattr(self, name)}, expected 0 and below 1")


def start(weights: npt.NDArray[np.float32], users: int) -> PublicState:
    """The state before the first round. users: the noised count, which becomes at least 1."""
    nothing = np.zeros_like(weights)
    return {
        "weights": weights,
        "momentum": nothing,
        "second": nothing.copy(),
        "average": weights.copy(),
        "users": np.array([max(1, users)], np.int64),
        "round": np.array([0], np.int64),
    }


def checked(state: PublicState, parameters: int) -> PublicState:
    """The state, when its arrays are those of `start` for so many parameters. Raises `InputError`."""
    for name in _ARRAYS:
        array = state.get(name)
        if array is None or array.dtype != np.float32 or array.shape != (parameters,) or not np.isfinite(array).all():
            raise InputError(f"got no finite float32[{parameters}] {name!r} in the public state, expected one")
    for name, least in (("users", 1), ("round", 0)):
        array = state.get(name)
        if array is None or array.dtype != np.int64 or array.shape != (1,) or int(array[0]) < least:
            raise InputError(f"got no int64[1] {name!r} of at least {least} in the public state, expected one")
    return state


def step(state: PublicState, update: Float64, noise_sd: float, rounds: int, optimizer: Optimizer) -> PublicState:
    """The state after a round. update: float64[parameters], the estimate of the mean; noise_sd: of its entries.

    Raises `StateError` when the weights leave all bounds.
    """
    number = int(state["round"][0]) + 1
    momentum = optimizer.momentum * _wide(state, "momentum") + (1 - optimizer.momentum) * update
    second = optimizer.second_momentum * _wide(state, "second") + (1 - optimizer.second_momentum) * np.square(update)
    direction = momentum / (1 - optimizer.momentum**number)
    if optimizer.server == ADAM:
        signal = second / (1 - optimizer.second_momentum**number) - noise_sd**2
        direction = direction / np.maximum(np.sqrt(np.maximum(signal, 0.0)), optimizer.floor * noise_sd + 1e-8)
    done = (number - 1) / max(rounds - 1, 1)
    weights = _wide(state, "weights") - optimizer.rate * (1 - (1 - optimizer.rate_end) * done) * direction
    if not bool(np.abs(weights).max(initial=0.0) < _LARGEST_WEIGHT):
        raise StateError("got weights above 1,000,000, expected a training that converges", hint="lower `rate`")
    # The last round of all is always within.
    first = rounds - max(1, round(optimizer.average * rounds)) + 1
    share = 1.0 if number <= first else 1.0 / (number - first + 1)
    average = (1 - share) * _wide(state, "average") + share * weights
    arrays: dict[str, Any] = {"weights": weights, "momentum": momentum, "second": second, "average": average}
    return {
        **{name: array.astype(np.float32) for name, array in arrays.items()},
        "users": state["users"],
        "round": np.array([number], np.int64),
    }


def _wide(state: PublicState, name: str) -> Float64:
    return np.asarray(state[name], dtype=np.float64)
