"""A small multilayer perceptron on columns of several parties, hardly less private than logistic regression.

    score(x) = w.x + sum over units j of s_j a(v_j.x),   s_j = +1 or -1 by turns

with a bounded activation a (which carries the scale of the output layer). The signs of the output layer are public and
stay; hidden weights and the linear part are learned. That keeps the product of two secret layers out of both passes,
and it bounds what one row can do without any clipping. Six rounds a step:

    1  open w and V under masks       u = X w, z = X V
    2  open z modulo the period       a(z), a'(z): two series over the same waves
    3  open u + sum s_j a(z_j)        p = sigmoid(that)
    4  open p - y and a'(z) masked    B_j = s_j a'(z_j) (p - y)
    5  open B under a mask            gradients X^T (p - y) and X^T B, exact before noise
    6  open momentum + gradients      as in `veil.trainers.columns.logistic`

Privacy. Unit and neighbouring as there. One row changes the sums by x (p - y) and by x (p - y) s_j a'(z_j) for each j:
norms |x| r and |x| r A sqrt(units), with r the residual limit and A >= |a'| the bound of the series, which holds for
every input. So the sensitivity of both together is |x| r sqrt(1 + units A^2), in integers rounded up.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch

from veil.errors import ConfigError
from veil.mpc.engine.engine import Engine
from veil.mpc.engine.values import Value, concatenated
from veil.mpc.engine.waves import Series
from veil.mpc.randomness import RingStream
from veil.trainers.columns.descent import AddNoise, Descent, Program, Table, Weights, row_limit
from veil.trainers.columns.layout import Layout


@dataclass(frozen=True)
class Hidden:
    """The hidden layer. activation and slope: of one period; slope is the activation's derivative.

    start: seed of the public starting weights of the units, uniform with deviation `spread`.
    """

    units: int
    activation: Series
    slope: Series
    start: int = 0
    spread: float = 1.0
    precision_bits: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.units <= 1024 or not 0 < self.spread <= 8:
            raise ConfigError(f"got {self.units} units, spread {self.spread:g}; expected 1 to 1024, 0 to 8")


class Perceptron(Program):
    """The program of one job; see `veil.trainers.columns.logistic.Logistic`. Noise covers both sums of a step."""

    def __init__(
        self, layout: Layout, descent: Descent, hidden: Hidden, *, noise: AddNoise | None = None, offset: float = 0.0
    ) -> None:
        super().__init__(layout, descent, noise=noise, offset=offset)
        self.hidden = hidden

    @property
    def hidden_bits(self) -> int:
        """Fractional bits of activations and slopes."""
        return 2 * self.hidden.precision_bits

    @property
    def gradient_bits(self) -> int:
        """Fractional bits of a step's sums."""
        return self.layout.feature_bits + self.descent.residual_bits + self.layout.weight_bits + self.hidden_bits

    @property
    def sensitivity(self) -> int:
        """L2 sensitivity of both sums of a step together, in their units."""
        linear = 1 << self.hidden_bits
        slope = self.hidden.slope.limit(self.hidden.precision_bits)
        both = math.isqrt(linear * linear + self.hidden.units * slope * slope) + 1
        return row_limit(self.layout, self.descent) * both

    def starting_weights(self) -> torch.Tensor:
        """int64[columns, 1 + units] over 2^weight_bits: zeros for the linear part, small public numbers for units."""
        units = starting_units(
            self.layout.columns, self.hidden.units, self.hidden.start, self.hidden.spread, self.weight_bits
        )
        return torch.cat([torch.zeros((self.layout.columns, 1), dtype=torch.int64), units], dim=1)

    def gradient(self, engine: Engine, table: Table, weights: Weights, rows: tuple[int, int]) -> Value:
        """X^T (p - y), then X^T B."""
        hidden, turns = self.hidden, signs(self.hidden.units)
        scores = table.times(weights.masked(), rows)
        activations, slopes = engine.functions(
            scores.columns(1, 1 + hidden.units),
            hidden.activation,
            hidden.slope,
            precision_bits=hidden.precision_bits,
        )
        signed = activations.weighted(turns, 0, 0.0).sum(1)
        residual, _ = table.residual(scores.columns(0, 1) + signed.widened(scores.bits), rows)
        residuals, bends = engine.masked_all(residual, slopes)
        residuals = table.weighed(residuals, rows)
        back = engine.masked(engine.mul(bends, residuals).weighted(turns, 0, 0.0))
        units = table.transposed_times(back, rows)
        linear = table.transposed_times(residuals, rows).widened(units.bits)
        return concatenated([linear, units], dimension=1)


def signs(units: int) -> torch.Tensor:
    """+1 and -1 by turns, int64[units]."""
    return torch.tensor([1 if unit % 2 == 0 else -1 for unit in range(units)], dtype=torch.int64)


def starting_units(columns: int, units: int, start: int, spread: float, bits: int) -> torch.Tensor:
    """Public starting weights, int64[columns, units] over 2^bits, uniform with deviation `spread`."""
    seed = hashlib.sha256(f"veil/perceptron/{start}".encode()).digest()
    uniform = RingStream(seed, b"starting weights").ring((columns, units)).double() / 2.0**63
    # Half the width of a uniform distribution is sqrt(3) deviations.
    return (uniform * (math.sqrt(3) * spread * 2.0**bits)).round().to(torch.int64)
