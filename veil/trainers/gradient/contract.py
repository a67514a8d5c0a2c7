"""What a module file is: one Python file that says what is trained, on which rows, with which loss.

A module file is executed in a party's worker only, and only when its SHA-256 is the one that the job names and the
party's own configuration lists the file (`veil.trainers.gradient.source`). It defines

    ROWS = "interactions"                 or "texts": which rows of a party it learns from
    ENGINE = "functional"                 how per-user updates are computed, see below (optional)

    build(facts: Facts) -> torch.nn.Module
        The module with its initial weights, on the CPU. Trainable is what has `requires_grad`; everything else is
        public, is rebuilt by whoever has this file and the catalogue, and is never sent. Called under a seeded
        generator. The number of trainable parameters must be the same for every seed.

    example(user: UserRows, facts: Facts) -> dict[str, torch.Tensor] | None
        One user's rows as tensors of fixed shapes (pad and cut: the shapes are those for a user without rows), with no
        extent for users. None: this user has too little, is not counted and contributes nothing. For a user without
        rows it must return tensors, which tell the shapes. May use bool, int64 and float32.

    draws(facts: Facts, generator: torch.Generator) -> dict[str, torch.Tensor]              (optional)
        Public random tensors of a round, for instance sampled negatives: the same for every user and every party, from
        a generator seeded by job and round.

    loss(module, users: dict[str, torch.Tensor], draws: dict[str, torch.Tensor], facts: Facts) -> torch.Tensor
        float32[n], the mean loss of each user, from what `example` returned, stacked: first extent n users. No entry
        may depend on another user's rows. `module` is what `build` returned (wrapped, for the engine "opacus").

Engines, all of which give one row of update a user:

    functional   torch.func: vmap of grad, `loss` sees one user at a time (n = 1), so that users cannot mix; any layer
                 that vmap knows; several local steps. The default.
    opacus       Opacus' GradSampleModule: one forward and backward pass over n users; every trainable layer needs a
                 hook of Opacus and must see users as its first extent. For large modules and those that vmap refuses.
    single       one user after the other (n = 1), plain autograd: anything runs, and slowest.

A module is always in evaluation mode, dropout off: random draws inside a pass would depend on who else is in it.
Layers that mix users, such as batch normalisation, are refused (Opacus' ModuleValidator).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from veil.errors import ConfigError

Rows = Literal["interactions", "texts"]
Engine = Literal["functional", "opacus", "single"]
Tensors = dict[str, torch.Tensor]

ENGINES: Final[tuple[Engine, ...]] = ("functional", "opacus", "single")
ROWS: Final[tuple[Rows, ...]] = ("interactions", "texts")


@dataclass(frozen=True, eq=False)
class Facts:
    """What is public and the same at every party. Nothing in it depends on any user.

    Attributes:
        features: float32[items, F]: the catalogue's public features.
        titles, categories: of the items, in index order.
        labels: every category that occurs in the catalogue, sorted: the meaning of the columns of labelled texts.
        seed: below 2^63, from the job.
        options: the job's numbers for the module: trainer options whose name begins with "module-", without that.
    """

    features: torch.Tensor
    titles: tuple[str, ...]
    categories: tuple[tuple[str, ...], ...]
    labels: tuple[str, ...]
    seed: int
    options: Mapping[str, float] = field(default_factory=dict)

    @property
    def items(self) -> int:
        """Number of items in the catalogue."""
        return len(self.titles)

    def option(self, name: str, default: float) -> float:
        """A number of the job, or the default."""
        return float(self.options.get(name, default))


@dataclass(frozen=True, eq=False, repr=False)
class UserRows:
    """One user's rows; empty where the party holds no such rows. `repr` shows nothing of them.

    Attributes:
        items: int64[n]: the items that the user met, earliest first where times are known, else by index.
        times: int64[n] beside `items`; None when not known.
        texts: the user's texts.
        labels: bool[texts, labels].
    """

    items: npt.NDArray[np.int64]
    times: npt.NDArray[np.int64] | None
    texts: tuple[str, ...]
    labels: npt.NDArray[np.bool_]

    def __repr__(self) -> str:
        return "UserRows(...)"


class ModuleCode(Protocol):
    """An executed module file."""

    def build(self, facts: Facts) -> torch.nn.Module:
        """The module with its initial weights."""

    def example(self, user: UserRows, facts: Facts) -> Tensors | None:
        """One user's rows as tensors."""

    def loss(self, module: torch.nn.Module, users: Tensors, draws: Tensors, facts: Facts) -> torch.Tensor:
        """The mean loss of each user."""


def rows_of(code: ModuleCode) -> Rows:
    """Which rows the module learns from; raises `ConfigError`."""
    chosen = getattr(code, "ROWS", "interactions")
    if chosen not in ROWS:
        raise ConfigError(f"got ROWS {str(chosen)[:40]!r} in a module file, expected one of {', '.join(ROWS)}")
    return chosen


def engine_of(code: ModuleCode) -> Engine:
    """How per-user updates are computed; raises `ConfigError`."""
    chosen = getattr(code, "ENGINE", "functional")
    if chosen not in ENGINES:
        raise ConfigError(f"got ENGINE {str(chosen)[:40]!r} in a module file, expected one of {', '.join(ENGINES)}")
    return chosen


def draws_of(code: ModuleCode, facts: Facts, seed: int) -> Tensors:
    """The public random tensors of one round; empty when the module file wants none."""
    make = getattr(code, "draws", None)
    if make is None:
        return {}
    generator = torch.Generator()
    generator.manual_seed(seed)
    return dict(make(facts, generator))


def no_rows(labels: int) -> UserRows:
    """A user without rows."""
    return UserRows(np.zeros(0, np.int64), None, (), np.zeros((0, labels), np.bool_))
