"""Logistic regression on columns of several parties, without anybody learning anything but the noised weights.

Gradient descent with momentum. For a batch of rows X (parties' columns side by side), labels y, weights w:

    1  open w under a mask                     u = X w         products with the fixed masked features
    2  open u modulo the period                p = sigmoid(u)  `veil.mpc.engine.waves`
    3  open p - y under a mask                 g = X^T (p - y) exact: no truncation between data and noise
    4  open momentum v + g + noise + 2^62 + r  v' in velocity bits, w' = w - rate v'

Weights w of rows (classes, empty slots) multiply p - y, which takes one round more.

Four rounds a step, and none of them depends on the number of parties. Nothing but masked values opens.

Privacy. Unit: one user, one row; neighbouring: a row set to padding (zero features) or back, so the number of rows is
public. A row x with |x| <= norm changes g by x w (p - y), where |p - y| <= `Descent.residual_limit`, whatever the
model: the series is bounded everywhere, also where it is no sigmoid. So the L2 sensitivity of each step's sum is norm
times most weight times residual limit, exactly, in integers; each step's noise is that of its release, and the weights
are a function of noised sums alone (Bassily, Smith, Thakurta, "Private empirical risk minimization", FOCS 2014).
Accounting counts every step as if it had been opened.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass

from veil.errors import ConfigError
from veil.mpc.engine.engine import Engine
from veil.mpc.engine.values import Value, concatenated
from veil.mpc.engine.waves import Series
from veil.trainers.columns.layout import (
    Layout,
    OwnColumns,
    fixed_features,
    fixed_weights,
    labels_of,
    most_weight,
    zeros,
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
        """A bound on |p - y| over 2^residual_bits, for every weight vector and both labels.

        The bound of the series, plus what tables and rounding add: two units of the precision for each wave.
        """
        bound: float = self.sigmoid.residual() + 2 * self.sigmoid.harmonics / (1 << self.precision_bits)
        return math.ceil(bound * (1 << self.residual_bits))


class Logistic:
    """The program of one job; `noise` adds what the job's release for a step says, or nothing where none is asked.

    offset: a public number on top of every score: log odds of a public base rate.
    """

    def __init__(self, layout: Layout, descent: Descent, *, noise: AddNoise | None = None, offset: float = 0.0) -> None:
        self.layout = layout
        self.descent = descent
        self.offset = offset
        self._noise = noise

    @property
    def gradient_bits(self) -> int:
        """Fractional bits of a step's sum."""
        return self.layout.feature_bits + self.descent.residual_bits + self.layout.weight_bits

    @property
    def sensitivity(self) -> int:
        """L2 sensitivity of a step's sum, in its units."""
        grid: int = math.ceil(self.layout.norm * (1 << self.layout.feature_bits))
        weight = most_weight(self.layout) if self.layout.most_weight else 1
        return grid * weight * self.descent.residual_limit

    def noised(self, step: int, gradient: Value) -> Value:
        """The sum of a step with the noise of its release."""
        return gradient if self._noise is None else self._noise(step, gradient)

    @property
    def weight_bits(self) -> int:
        """Fractional bits of the weights."""
        return self.descent.velocity_bits + self.descent.rate_bits

    def start(self, engine: Engine, own: OwnColumns | None) -> Descending:
        """The data masked and opened, the weights at zero. own: None in a dry run."""
        return Descending(self, engine, own)

    def run(self, engine: Engine, own: OwnColumns | None) -> Value:
        """Shared weights, int64[columns, 1], parties' columns in rank order. own: None in a dry run."""
        descending = self.start(engine, own)
        for step in range(self.descent.steps):
            descending.step(step)
        return descending.weights()


class Descending:
    """One party's part of a descent that is under way."""

    def __init__(self, program: Logistic, engine: Engine, own: OwnColumns | None) -> None:
        self._program, self._engine = program, engine
        self._layout, self._descent = program.layout, program.descent
        self._features = fixed_features(engine, self._layout, own)
        self._labels = labels_of(engine, self._layout, own, self._descent.residual_bits)
        self._row_weights = fixed_weights(engine, self._layout, own)
        self._weights = self._zeros()
        self._velocity: Value | None = None
        self._batches = self._layout.batches(self._descent.batch)

    def restart(self) -> None:
        """Weights and momentum at zero again, with the same masked data."""
        self._weights = self._zeros()
        self._velocity = None

    def _zeros(self) -> dict[int, Value]:
        widths, bits = self._layout.widths, self._program.weight_bits
        return {rank: zeros(self._engine, widths[rank], 1, bits) for rank in self._layout.holders}

    def weights(self) -> Value:
        """int64[columns, 1], parties' columns in rank order."""
        return concatenated([self._weights[rank] for rank in self._layout.holders])

    def step(self, number: int) -> None:
        """One step on the next batch."""
        layout, descent, engine = self._layout, self._descent, self._engine
        rows = self._batches[number % len(self._batches)]
        predicted = engine.functions(self._scores(rows), descent.sigmoid, precision_bits=descent.precision_bits)[0]
        residual = (predicted - self._labels.rows(*rows)).within(math.log2(descent.residual_limit))
        opened = engine.masked(residual)
        if self._row_weights is not None:
            opened = engine.masked(engine.mul(self._row_weights, opened, rows=rows))
        gradient = concatenated(
            [engine.matmul(self._features[rank], opened, rows=rows, transposed=True) for rank in layout.holders]
        )
        gradient = self._program.noised(number, gradient)
        if self._velocity is not None and descent.momentum:
            kept = self._velocity.scaled(descent.momentum, MOMENTUM_BITS)
            gradient = gradient + kept.widened(gradient.bits)
        self._velocity = engine.truncated(gradient, gradient.bits - descent.velocity_bits)
        at = 0
        for rank in layout.holders:
            moved = self._velocity.rows(at, at + layout.widths[rank]).scaled(descent.rate, descent.rate_bits)
            self._weights[rank] = self._weights[rank] - moved
            at += layout.widths[rank]

    def _scores(self, rows: tuple[int, int]) -> Value:
        ranks = self._layout.holders
        opened = self._engine.masked_all(*(self._weights[rank] for rank in ranks))
        parts = [
            self._engine.matmul(self._features[rank], one, rows=rows) for rank, one in zip(ranks, opened, strict=True)
        ]
        total = functools.reduce(operator.add, parts)
        offset = round(self._program.offset * 2**total.bits)
        return self._engine.plus(total, offset) if offset else total
