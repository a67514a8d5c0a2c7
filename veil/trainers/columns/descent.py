"""What every descent on split columns has: its public numbers, the masked table, weights that move with momentum.

One party's half of each; all parties call the same in the same order. Nothing here opens anything but masked values.
"""

from __future__ import annotations

import functools
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from veil.errors import ConfigError
from veil.mpc.engine.engine import Engine
from veil.mpc.engine.requests import Request, Result
from veil.mpc.engine.values import Opened, Value, concatenated
from veil.mpc.engine.waves import Series
from veil.trainers.columns.layout import (
    Layout,
    OwnColumns,
    fixed_features,
    fixed_weights,
    labels_of,
    most_weight,
)

MOMENTUM_BITS = 8
AddNoise = Callable[[int, Value], Value]


@dataclass(frozen=True)
class Descent:
    """Public numbers of the descent. The step size is rate / 2^rate_bits for the *sum* of a batch's gradients.

    batch: rows in a step; momentum: over 2^8; precision_bits: of waves, half the fractional bits of p.
    """

    steps: int
    batch: int
    rate: int
    rate_bits: int
    momentum: int
    velocity_bits: int
    sigmoid: Series
    precision_bits: int = 16

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 2**MOMENTUM_BITS or self.rate < 1 or self.steps < 1 or self.batch < 1:
            raise ConfigError("got momentum, rate, steps or batch out of range, expected 0 to 255 and at least 1")

    @property
    def residual_bits(self) -> int:
        """Fractional bits of p - y."""
        return 2 * self.precision_bits

    @property
    def residual_limit(self) -> int:
        """A bound on |p - y| over 2^residual_bits, for every weight vector and both labels, rounding included.

        Integers throughout: it is a number of the job that every party computes again.
        """
        return self.sigmoid.residual_limit(self.precision_bits)


def row_limit(layout: Layout, descent: Descent) -> int:
    """A bound on |x| w |p - y| for any row and any model, in units of feature, weight and residual bits together."""
    return layout.row_steps * (most_weight(layout) if layout.most_weight else 1) * descent.residual_limit


class Table:
    """The parties' columns, labels and weights of rows; features open under masks once, when it is made."""

    def __init__(
        self, engine: Engine, layout: Layout, descent: Descent, own: OwnColumns | None, *, offset: float = 0.0
    ) -> None:
        """own: None in a dry run. offset: a public number on top of every score: log odds of a public base rate."""
        self._engine, self._layout, self._descent = engine, layout, descent
        self._offset = offset
        self._features = fixed_features(engine, layout, own)
        self._labels = labels_of(engine, layout, own, descent.residual_bits)
        self._row_weights = fixed_weights(engine, layout, own)
        self._batches = layout.batches(descent.batch)

    def rows(self, step: int) -> tuple[int, int]:
        """First row and the one after the last of a step's batch."""
        return self._batches[step % len(self._batches)]

    def times(self, weights: Mapping[int, Opened], rows: tuple[int, int], ranks: Sequence[int] | None = None) -> Value:
        """X W for a batch, int64[rows, outputs]: over the columns of all parties, or of these alone."""
        chosen = self._layout.holders if ranks is None else ranks
        parts = [self._engine.matmul(self._features[rank], weights[rank], rows=rows) for rank in chosen]
        return functools.reduce(operator.add, parts)

    def transposed_times(self, right: Opened, rows: tuple[int, int], ranks: Sequence[int] | None = None) -> Value:
        """X^T R for a batch, int64[columns, outputs], columns in rank order: of all parties, or of these alone."""
        chosen = self._layout.holders if ranks is None else ranks
        return concatenated(
            [self._engine.matmul(self._features[rank], right, rows=rows, transposed=True) for rank in chosen]
        )

    def residual(self, score: Value, rows: tuple[int, int], *others: Request) -> tuple[Value, list[Result]]:
        """sigmoid(score) - label, and what else was asked for in the same round."""
        descent = self._descent
        if offset := round(self._offset * 2**score.bits):
            score = self._engine.plus(score, offset)
        waved, *rest = self._engine.open_waved(score, descent.sigmoid, descent.precision_bits, *others)
        if not isinstance(waved, Value):
            raise ConfigError("got no predictions, expected one function")
        residual = (waved - self._labels.rows(*rows)).within(math.log2(descent.residual_limit))
        return residual, rest

    def weighed(self, residual: Opened, rows: tuple[int, int]) -> Opened:
        """The residual times the weights of rows; one round, none where all weigh 1."""
        if self._row_weights is None:
            return residual
        return self._engine.masked(self._engine.mul(self._row_weights, residual, rows=rows))


class Weights:
    """Shared weights, int64[columns, outputs], one block for each party with columns, and their momentum."""

    def __init__(self, engine: Engine, layout: Layout, descent: Descent, start: torch.Tensor) -> None:
        """start: public, int64[columns, outputs] over 2^(velocity_bits + rate_bits), each below 2^6 as a number."""
        self._engine, self._layout, self._descent = engine, layout, descent
        self._start = start
        self.restart()

    def restart(self) -> None:
        """The starting weights again, and no momentum."""
        bits = self._descent.velocity_bits + self._descent.rate_bits
        self._blocks = {
            rank: self._engine.public(self._start[first:stop].contiguous(), bits=bits, limit_bits=bits + 6.0)
            for rank, (first, stop) in self._layout.places().items()
        }
        self._velocity: Value | None = None

    def masked(self) -> dict[int, Opened]:
        """Every block less a mask, opened; one round."""
        opened = self._engine.masked_all(*self._blocks.values())
        return dict(zip(self._blocks, opened, strict=True))

    def move(self, gradient: Value) -> None:
        """velocity = momentum velocity + gradient, weights -= rate velocity; one round."""
        descent = self._descent
        if self._velocity is not None and descent.momentum:
            kept = self._velocity.scaled(descent.momentum, MOMENTUM_BITS)
            gradient = gradient + kept.widened(gradient.bits)
        self._velocity = self._engine.truncated(gradient, gradient.bits - descent.velocity_bits)
        for rank, (first, stop) in self._layout.places().items():
            moved = self._velocity.rows(first, stop).scaled(descent.rate, descent.rate_bits)
            self._blocks[rank] = self._blocks[rank] - moved

    def value(self) -> Value:
        """All blocks, parties' columns in rank order."""
        return concatenated(list(self._blocks.values()))


class Program(ABC):
    """A model that parties learn together; `noise` adds what the job's release for a step says, or nothing.

    offset: a public number on top of every score: log odds of a public base rate.
    """

    def __init__(self, layout: Layout, descent: Descent, *, noise: AddNoise | None = None, offset: float = 0.0) -> None:
        self.layout = layout
        self.descent = descent
        self.offset = offset
        self._noise = noise

    @property
    @abstractmethod
    def gradient_bits(self) -> int:
        """Fractional bits of a step's sums."""

    @property
    @abstractmethod
    def sensitivity(self) -> int:
        """L2 sensitivity of all sums of a step together, in their units."""

    @abstractmethod
    def starting_weights(self) -> torch.Tensor:
        """Public, int64[columns, outputs] over 2^weight_bits."""

    @abstractmethod
    def gradient(self, engine: Engine, table: Table, weights: Weights, rows: tuple[int, int]) -> Value:
        """The sums over a batch, int64[columns, outputs] over 2^gradient_bits."""

    @property
    def weight_bits(self) -> int:
        """Fractional bits of all weights."""
        return self.descent.velocity_bits + self.descent.rate_bits

    def noised(self, step: int, gradient: Value) -> Value:
        """The sums of a step with the noise of its release."""
        return gradient if self._noise is None else self._noise(step, gradient)

    def start(self, engine: Engine, own: OwnColumns | None) -> Learning:
        """The data masked and opened, the weights as they start. own: None in a dry run."""
        return Learning(self, engine, own)

    def run(self, engine: Engine, own: OwnColumns | None) -> Value:
        """Shared weights, int64[columns, outputs], parties' columns in rank order. own: None in a dry run."""
        learning = self.start(engine, own)
        for step in range(self.descent.steps):
            learning.step(step)
        return learning.weights()


class Learning:
    """One party's part of a program that is under way."""

    def __init__(self, program: Program, engine: Engine, own: OwnColumns | None) -> None:
        self._program, self._engine = program, engine
        self._table = Table(engine, program.layout, program.descent, own, offset=program.offset)
        self._weights = Weights(engine, program.layout, program.descent, program.starting_weights())

    def restart(self) -> None:
        """Weights and momentum as they started, with the same masked data."""
        self._weights.restart()

    def weights(self) -> Value:
        """int64[columns, outputs], parties' columns in rank order."""
        return self._weights.value()

    def step(self, number: int) -> None:
        """One step on the next batch."""
        program, table = self._program, self._table
        gradient = program.gradient(self._engine, table, self._weights, table.rows(number))
        self._weights.move(program.noised(number, gradient))
