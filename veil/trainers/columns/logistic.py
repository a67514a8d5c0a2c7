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
from veil.trainers.columns.descent import Program, Table, Weights, row_limit


class Logistic(Program):
    """The program of one job; one output."""

    @property
    def gradient_bits(self) -> int:
        """Fractional bits of a step's sum."""
        return self.layout.feature_bits + self.descent.residual_bits + self.layout.weight_bits

    @property
    def sensitivity(self) -> int:
        """L2 sensitivity of a step's sum, in its units."""
        return row_limit(self.layout, self.descent)

    def starting_weights(self) -> torch.Tensor:
        """Zeros."""
        return torch.zeros((self.layout.columns, 1), dtype=torch.int64)

    def gradient(self, engine: Engine, table: Table, weights: Weights, rows: tuple[int, int]) -> Value:
        """X^T w (p - y)."""
        residual, _ = table.residual(table.times(weights.masked(), rows), rows)
        return table.transposed_times(table.weighed(engine.masked(residual), rows), rows)
