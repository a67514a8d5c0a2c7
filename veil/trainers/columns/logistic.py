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

import torch

from veil.mpc.engine.engine import Engine
from veil.mpc.engine.values import Value
from veil.trainers.columns.descent import AddNoise, Descent, Table, Weights, row_limit
from veil.trainers.columns.layout import Layout, OwnColumns


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
        return row_limit(self.layout, self.descent)

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
        layout, descent = program.layout, program.descent
        self._table = Table(engine, layout, descent, own, offset=program.offset)
        self._weights = Weights(engine, layout, descent, torch.zeros((layout.columns, 1), dtype=torch.int64))

    def restart(self) -> None:
        """Weights and momentum at zero again, with the same masked data."""
        self._weights.restart()

    def weights(self) -> Value:
        """int64[columns, 1], parties' columns in rank order."""
        return self._weights.value()

    def step(self, number: int) -> None:
        """One step on the next batch."""
        rows = self._table.rows(number)
        score = self._table.times(self._weights.masked(), rows)
        residual, _ = self._table.residual(score, rows)
        opened = self._table.weighed(self._engine.masked(residual), rows)
        gradient = self._table.transposed_times(opened, rows)
        self._weights.move(self._program.noised(number, gradient))
