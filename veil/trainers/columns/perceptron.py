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

import functools
import hashlib
import math
import operator
from dataclasses import dataclass

import torch

from veil.errors import ConfigError
from veil.mpc.engine.engine import Engine
from veil.mpc.engine.values import Opened, Value, concatenated
from veil.mpc.engine.waves import Series
from veil.mpc.randomness import RingStream
from veil.trainers.columns.layout import (
    Layout,
    OwnColumns,
    fixed_features,
    fixed_weights,
    labels_of,
    most_weight,
)
from veil.trainers.columns.logistic import MOMENTUM_BITS, AddNoise, Descent


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


class Perceptron:
    """The program of one job; see `veil.trainers.columns.logistic.Logistic`. Noise covers both sums of a step."""

    def __init__(self, layout: Layout, descent: Descent, hidden: Hidden, *, noise: AddNoise | None = None) -> None:
        self.layout = layout
        self.descent = descent
        self.hidden = hidden
        self._noise = noise

    @property
    def hidden_bits(self) -> int:
        """Fractional bits of activations and slopes."""
        return 2 * self.hidden.precision_bits

    @property
    def gradient_bits(self) -> int:
        """Fractional bits of a step's sums."""
        return self.layout.feature_bits + self.descent.residual_bits + self.layout.weight_bits + self.hidden_bits

    @property
    def weight_bits(self) -> int:
        """Fractional bits of all weights."""
        return self.descent.velocity_bits + self.descent.rate_bits

    @property
    def sensitivity(self) -> int:
        """L2 sensitivity of both sums of a step together, in their units."""
        grid = math.ceil(self.layout.norm * (1 << self.layout.feature_bits))
        weight = most_weight(self.layout) if self.layout.most_weight else 1
        linear = 1 << self.hidden_bits
        rounding = 2 * self.hidden.slope.harmonics << self.hidden.precision_bits
        slope = math.ceil(linear * self.hidden.slope.greatest()) + rounding
        both = math.isqrt(linear * linear + self.hidden.units * slope * slope) + 1
        return grid * weight * self.descent.residual_limit * both

    def starting_weights(self) -> torch.Tensor:
        """int64[columns, 1 + units] over 2^weight_bits: zeros for the linear part, small public numbers for units."""
        seed = hashlib.sha256(f"veil/perceptron/{self.hidden.start}".encode()).digest()
        ring = RingStream(seed, b"starting weights").ring((self.layout.columns, self.hidden.units))
        # Uniform with the deviation asked for: half its width is sqrt(3) deviations.
        uniform = ring.double() / 2.0**63
        units = (uniform * (math.sqrt(3) * self.hidden.spread * 2.0**self.weight_bits)).round().to(torch.int64)
        return torch.cat([torch.zeros((self.layout.columns, 1), dtype=torch.int64), units], dim=1)

    def run(self, engine: Engine, own: OwnColumns | None) -> Value:
        """Shared weights, int64[columns, 1 + units]: the linear part, then a column for each unit."""
        learning = _Learning(self, engine, own)
        for step in range(self.descent.steps):
            learning.step(step)
        return learning.weights()

    def noised(self, step: int, gradient: Value) -> Value:
        """Both sums of a step, [columns, 1 + units], with the noise of its release."""
        return gradient if self._noise is None else self._noise(step, gradient)


class _Learning:
    def __init__(self, program: Perceptron, engine: Engine, own: OwnColumns | None) -> None:
        self._program, self._engine = program, engine
        layout = program.layout
        self._features = fixed_features(engine, layout, own)
        self._labels = labels_of(engine, layout, own, program.descent.residual_bits)
        self._row_weights = fixed_weights(engine, layout, own)
        start = program.starting_weights()
        cuts = [sum(layout.widths[:rank]) for rank in range(len(layout.widths) + 1)]
        self._weights = {
            rank: engine.public(
                start[cuts[rank] : cuts[rank + 1]].contiguous(),
                bits=program.weight_bits,
                limit_bits=program.weight_bits + 6,
            )
            for rank in layout.holders
        }
        self._velocity: Value | None = None
        self._batches = layout.batches(program.descent.batch)
        signs = torch.tensor([1 if unit % 2 == 0 else -1 for unit in range(program.hidden.units)])
        self._signs = signs.to(torch.int64)

    def weights(self) -> Value:
        return concatenated([self._weights[rank] for rank in self._program.layout.holders])

    def step(self, number: int) -> None:
        program, engine = self._program, self._engine
        layout, descent, hidden = program.layout, program.descent, program.hidden
        rows = self._batches[number % len(self._batches)]
        opened = engine.masked_all(*(self._weights[rank] for rank in layout.holders))
        scores = functools.reduce(
            operator.add,
            [
                engine.matmul(self._features[rank], one, rows=rows)
                for rank, one in zip(layout.holders, opened, strict=True)
            ],
        )
        activations, slopes = engine.functions(
            scores.columns(1, 1 + hidden.units),
            hidden.activation,
            hidden.slope,
            precision_bits=hidden.precision_bits,
        )
        signed = activations.weighted(self._signs, 0, 0.0).sum(1)
        total = scores.columns(0, 1) + signed.widened(scores.bits)
        predicted = engine.functions(total, descent.sigmoid, precision_bits=descent.precision_bits)[0]
        residual = (predicted - self._labels.rows(*rows)).within(math.log2(descent.residual_limit))
        residuals, bends = engine.masked_all(residual, slopes)
        if self._row_weights is not None:
            residuals = engine.masked(engine.mul(self._row_weights, residuals, rows=rows))
        back = engine.masked(engine.mul(bends, residuals).weighted(self._signs, 0, 0.0))
        gradient = program.noised(
            number, concatenated([self._gradient(rank, residuals, back, rows) for rank in layout.holders])
        )
        if self._velocity is not None and descent.momentum:
            gradient = gradient + self._velocity.scaled(descent.momentum, MOMENTUM_BITS).widened(gradient.bits)
        self._velocity = engine.truncated(gradient, gradient.bits - descent.velocity_bits)
        at = 0
        for rank in layout.holders:
            moved = self._velocity.rows(at, at + layout.widths[rank]).scaled(descent.rate, descent.rate_bits)
            self._weights[rank] = self._weights[rank] - moved
            at += layout.widths[rank]

    def _gradient(self, rank: int, residuals: Opened, back: Opened, rows: tuple[int, int]) -> Value:
        """One party's rows of both sums, [width, 1 + units]."""
        features, engine = self._features[rank], self._engine
        hidden = engine.matmul(features, back, rows=rows, transposed=True)
        linear = engine.matmul(features, residuals, rows=rows, transposed=True).widened(hidden.bits)
        return concatenated([linear, hidden], dimension=1)
