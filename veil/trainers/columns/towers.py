"""Two towers on columns of several parties: products of what each side's columns say, beside a linear part.

    score(x) = w.x + sum over units j of s_j a(v_j.x_left) a(v_j.x_right),   s_j = +1 or -1 by turns

x_left are the columns of some of the parties, x_right those of the others: users and items, an advertiser and a
publisher. With a the identity this is a factorisation machine between the two sides (Rendle, "Factorization machines",
ICDM 2010); a is bounded instead, so that what one row can do is public. Seven rounds a step:

    1  open w and V under masks        linear part, z_left = X_left V, z_right = X_right V
    2  open both z modulo the period   a and a' of both
    3  open all four under masks       the products a_left a_right, and a_right a'_left, a_left a'_right
    4  open the score and truncate     p = sigmoid(score), and those two with fewer bits
    5  open p - y and those two        B = s_j (p - y) a_right a'_left and the like
    6  open B under masks              gradients, exact before noise
    7  open momentum + gradients

Privacy. Unit and neighbouring as in `veil.trainers.columns.logistic`. One row changes the sums by x (p - y) and, for
each unit, by x_left (p - y) s_j a(z_right) a'(z_left) and the like: with A >= |a| and B >= |a'| everywhere, norm
|x| r sqrt(1 + units (A B)^2), since |x_left|^2 + |x_right|^2 = |x|^2. One unit in the last place of the truncated
product is counted into A B.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from veil.errors import ConfigError
from veil.mpc.engine.engine import Engine
from veil.mpc.engine.requests import Truncated
from veil.mpc.engine.values import Value, concatenated
from veil.trainers.columns.descent import AddNoise, Descent, Program, Table, Weights, row_limit
from veil.trainers.columns.layout import Layout
from veil.trainers.columns.perceptron import Hidden, signs, starting_units

_BACK_BITS = 12


@dataclass(frozen=True)
class Sides:
    """Ranks of the parties whose columns the left and the right tower read."""

    left: tuple[int, ...]
    right: tuple[int, ...]

    def check(self, layout: Layout) -> None:
        """Raises `ConfigError` unless every party with columns is on one side."""
        if not self.left or not self.right or sorted((*self.left, *self.right)) != list(layout.holders):
            raise ConfigError(f"got sides {self.left} and {self.right}, expected {layout.holders} split in two")


class Towers(Program):
    """The program of one job; see `veil.trainers.columns.logistic.Logistic`. Noise covers all sums of a step."""

    def __init__(
        self,
        layout: Layout,
        descent: Descent,
        hidden: Hidden,
        sides: Sides,
        *,
        noise: AddNoise | None = None,
        offset: float = 0.0,
    ) -> None:
        sides.check(layout)
        super().__init__(layout, descent, noise=noise, offset=offset)
        self.hidden, self.sides = hidden, sides

    @property
    def gradient_bits(self) -> int:
        """Fractional bits of a step's sums."""
        layout = self.layout
        return layout.feature_bits + self.descent.residual_bits + layout.weight_bits + _BACK_BITS

    @property
    def sensitivity(self) -> int:
        """L2 sensitivity of all sums of a step together, in their units."""
        hidden, one = self.hidden, 1 << _BACK_BITS
        product = hidden.activation.limit(hidden.precision_bits) * hidden.slope.limit(hidden.precision_bits)
        # One unit for the truncation, whichever neighbour it takes.
        limit = (product >> 4 * hidden.precision_bits - _BACK_BITS) + 1
        return row_limit(self.layout, self.descent) * (math.isqrt(one * one + hidden.units * limit * limit) + 1)

    def starting_weights(self) -> torch.Tensor:
        """int64[columns, 1 + units] over 2^weight_bits: zeros for the linear part, small public numbers for units."""
        hidden, columns = self.hidden, self.layout.columns
        units = starting_units(columns, hidden.units, hidden.start, hidden.spread, self.weight_bits)
        return torch.cat([torch.zeros((columns, 1), dtype=torch.int64), units], dim=1)

    def gradient(self, engine: Engine, table: Table, weights: Weights, rows: tuple[int, int]) -> Value:
        """X^T (p - y), then the units' sums of both sides."""
        hidden, sides, units, turns = self.hidden, self.sides, self.hidden.units, signs(self.hidden.units)
        masked = weights.masked()
        left, right = (table.times(masked, rows, ranks) for ranks in (sides.left, sides.right))
        both = concatenated([left.columns(1, 1 + units), right.columns(1, 1 + units)], dimension=1)
        values, slopes = engine.functions(both, hidden.activation, hidden.slope, precision_bits=hidden.precision_bits)
        a_left, a_right, b_left, b_right = engine.masked_all(
            *(part.columns(first, first + units) for part in (values, slopes) for first in (0, units))
        )
        signed = engine.mul(a_left, a_right).weighted(turns, 0, 0.0).sum(1)
        linear = left.columns(0, 1) + right.columns(0, 1)
        bits = max(linear.bits, signed.bits)
        backs = [engine.mul(a_right, b_left), engine.mul(a_left, b_right)]
        residual, cut = table.residual(
            linear.widened(bits) + signed.widened(bits),
            rows,
            *(Truncated(back, back.bits - _BACK_BITS) for back in backs),
        )
        residuals, *cut_opened = engine.masked_all(residual, *(part for part in cut if isinstance(part, Value)))
        residuals = table.weighed(residuals, rows)
        products = [engine.mul(part, residuals).weighted(turns, 0, 0.0) for part in cut_opened]
        opened = engine.masked_all(*products)
        gradients = {
            rank: table.transposed_times(back, rows, [rank])
            for back, ranks in zip(opened, (sides.left, sides.right), strict=True)
            for rank in ranks
        }
        hidden_part = concatenated([gradients[rank] for rank in self.layout.holders])
        linear_part = table.transposed_times(residuals, rows).widened(hidden_part.bits)
        return concatenated([linear_part, hidden_part], dimension=1)
