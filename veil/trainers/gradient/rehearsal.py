"""A module tried on invented users before it meets real ones.

Guarantee: what is wrong with a module file for everybody shows here, on public pseudo-random rows, as an error that
depends on no user. After it, nothing that goes wrong is reported any more (`veil.trainers.gradient.examples`).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from veil.errors import ConfigError
from veil.trainers.gradient.contract import Facts, ModuleCode, Tensors, UserRows, draws_of, rows_of
from veil.trainers.gradient.facts import built
from veil.trainers.gradient.local_update import Updates

_USERS: Final = 3
_ROWS: Final = 12
# How far, in each weight, the second look is from the initial ones.
_MOVED: Final = 0.05
# Relative to the longest row: float32 sums in another order differ by far less, a mixed-in user by far more.
_TOLERANCE: Final = 1e-3


def check_module(code: ModuleCode, facts: Facts, updates: Updates, blank: Tensors, seed: int) -> None:
    """Runs `example` and `loss` on three invented users, together and alone. Raises `ConfigError`.

    blank: tensors of a user without rows. Beside failures it finds two ways in which one user's row may depend on
    others, where they show on these users; that is a check, no proof. (1) What `example` returns depends on what it was
    called for before, for instance by random numbers from a generator that lives on: called again, in reverse order, it
    must return the same. (2) With the engine "opacus", updates depend on who else is in the pass. Looked for at the
    initial weights, and at others near them: layers that start at zero hide what lies behind them.
    """
    made = []
    invented = _invented(code, facts, seed)
    for user in invented:
        try:
            one = code.example(user, facts)
        except Exception as error:  # noqa: BLE001 - a foreign file may raise anything; no user is involved
            raise ConfigError(f"example() fails on invented rows: {type(error).__name__}: {str(error)[:200]}") from None
        if one is None:
            raise ConfigError(f"example() refuses an invented user with {_ROWS} rows, expected tensors")
        kinds = {name: (tensor.dtype, tensor.shape) for name, tensor in one.items()}
        if kinds != {name: (tensor.dtype, tensor.shape) for name, tensor in blank.items()}:
            raise ConfigError("example() gives other names, kinds or shapes than for a user without rows")
        made.append(one)
    for user, before in reversed(list(zip(invented, made, strict=True))):
        _check_again(code, facts, user, before)
    together = {name: torch.stack([one[name] for one in made]) for name in blank}
    initial = updates.flat()
    _check_passes(code, facts, updates, blank, together, initial, seed)
    if updates.engine == "opacus":
        moved = np.random.default_rng(seed).normal(scale=_MOVED, size=initial.shape).astype(np.float32)
        _check_passes(code, facts, updates, blank, together, initial + moved, seed)


def _check_again(code: ModuleCode, facts: Facts, user: UserRows, before: Tensors) -> None:
    try:
        again = code.example(user, facts)
    except Exception:  # noqa: BLE001 - a foreign file may raise anything; no user is involved
        again = None
    if again is None or set(again) != set(before) or any(not _same(again[name], before[name]) for name in before):
        raise ConfigError(
            "example() gives an invented user other tensors the second time, expected the same ones: what it was called"
            " for before must not matter",
            hint="seed a generator of its own from facts.seed in each call",
        )


def _same(first: torch.Tensor, second: torch.Tensor) -> bool:
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    return bool(((first == second) | ((first != first) & (second != second))).all())


def _check_passes(
    code: ModuleCode,
    facts: Facts,
    updates: Updates,
    blank: Tensors,
    together: Tensors,
    flat: npt.NDArray[np.float32],
    seed: int,
) -> None:
    weights = updates.weights(flat)
    try:
        draws = draws_of(code, facts, seed)
        rows = updates.compute(weights, together, draws, seed)
        alone = []
        for i in range(_USERS):
            padded = {name: blank[name].expand(_USERS, *blank[name].shape).clone() for name in blank}
            for name in blank:
                padded[name][i] = together[name][i]
            alone.append(updates.compute(weights, padded, draws, seed)[i])
        plain = _plain(code, facts, updates).compute(weights, together, draws, seed)
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001 - as above
        raise ConfigError(
            f"loss() fails on invented rows with engine {updates.engine}: {type(error).__name__}: {str(error)[:300]}",
            hint='ENGINE = "single" runs anything that autograd does',
        ) from None
    if not np.isfinite(rows).all():
        raise ConfigError("loss() has gradients that are not finite on invented rows, expected finite numbers")
    longest = float(np.abs(rows).max(initial=0.0)) + 1e-12
    for other, what in (
        (np.stack(alone), "depend on the other users of a pass"),
        (plain, "differ from plain autograd"),
    ):
        if float(np.abs(rows - other).max(initial=0.0)) > _TOLERANCE * longest:
            raise ConfigError(f"got updates of engine {updates.engine} that {what}, expected those of each user alone")


def _plain(code: ModuleCode, facts: Facts, updates: Updates) -> Updates:
    steps, rate = updates.local_steps, updates.local_rate
    return Updates(built(code, facts), code, facts, "single", local_steps=steps, local_rate=rate)


def _invented(code: ModuleCode, facts: Facts, seed: int) -> list[UserRows]:
    generator = np.random.default_rng(seed)
    users = []
    for number in range(_USERS):
        labels = generator.random((_ROWS, len(facts.labels))) < 0.3
        nothing = labels[:0]
        if rows_of(code) == "texts":
            texts = tuple(f"invented text {number} of {row}" for row in range(_ROWS))
            users.append(UserRows(np.zeros(0, np.int64), None, texts, labels))
            continue
        items = generator.permutation(facts.items)[:_ROWS].astype(np.int64)
        users.append(UserRows(items, np.arange(len(items), dtype=np.int64), (), nothing))
    return users
