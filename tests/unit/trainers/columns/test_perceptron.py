"""The joint perceptron against the same in floating point, its sensitivity, and what it learns that a line cannot."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.unit.mpc.engine.together import together
from veil.errors import ConfigError
from veil.mpc.engine.engine import Engine
from veil.mpc.engine.plan import plan
from veil.mpc.engine.waves import fit, sigmoid
from veil.trainers.columns.descent import Descent
from veil.trainers.columns.layout import Layout, OwnColumns
from veil.trainers.columns.perceptron import Hidden, Perceptron

SIGMOID = fit(sigmoid, reach=6, period=16, harmonics=10)
SCALE = 1.5
HIDDEN = Hidden(
    units=6,
    activation=fit(lambda z: SCALE * np.tanh(z), reach=6, period=16, harmonics=8),
    slope=fit(lambda z: SCALE * (1 - np.tanh(z) ** 2), reach=6, period=16, harmonics=8),
    spread=1.0,
)
ROWS, WIDTHS, SHARES = 400, (2, 1), (826, 584)


def data() -> tuple[Layout, list[OwnColumns], np.ndarray, np.ndarray]:
    """Labels that depend on the product of two columns, one at each party; the third column is 1."""
    generator = np.random.default_rng(3)
    features = np.stack([generator.uniform(-1, 1, ROWS), np.ones(ROWS), generator.uniform(-1, 1, ROWS)], axis=1)
    features *= 0.57
    grid = np.trunc(features * 2**10).astype(np.int64)
    labels = (features[:, 0] * features[:, 2] > 0).astype(np.int64)
    layout = Layout(ROWS, WIDTHS, 1, feature_bits=10, norm=1.0, shares=SHARES)
    own = [
        OwnColumns(torch.from_numpy(grid[:, :2].copy())),
        OwnColumns(torch.from_numpy(grid[:, 2:].copy()), torch.from_numpy(labels.reshape(-1, 1))),
    ]
    return layout, own, grid / 2.0**10, labels


def learned(x: np.ndarray, labels: np.ndarray, start: np.ndarray, descent: Descent) -> np.ndarray:
    weights, velocity = start.copy(), np.zeros_like(start)
    signs = np.array([1.0 if unit % 2 == 0 else -1.0 for unit in range(HIDDEN.units)])
    for _ in range(descent.steps):
        z = x @ weights[:, 1:]
        score = x @ weights[:, 0] + HIDDEN.activation(z) @ signs
        residual = (SIGMOID(score) - labels)[:, None]
        back = residual * HIDDEN.slope(z) * signs
        velocity = descent.momentum / 256 * velocity + x.T @ np.concatenate([residual, back], axis=1)
        weights = weights - descent.rate / 2.0**descent.rate_bits * velocity
    return weights


def scores(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    signs = np.array([1.0 if unit % 2 == 0 else -1.0 for unit in range(HIDDEN.units)])
    result: np.ndarray = x @ weights[:, 0] + HIDDEN.activation(x @ weights[:, 1:]) @ signs
    return result


def test_it_follows_the_plain_perceptron_and_learns_a_product_of_two_parties_columns() -> None:
    layout, own, x, labels = data()
    descent = Descent(60, ROWS, 5, 11, momentum=220, velocity_bits=14, sigmoid=SIGMOID, precision_bits=10)
    program = Perceptron(layout, descent, HIDDEN)

    def part(engine: Engine) -> torch.Tensor:
        return engine.combine(program.run(engine, None if engine.device.type == "meta" else own[engine.rank]))

    results = together(2, part)
    assert torch.equal(results[0], results[1])
    weights = results[0].numpy() / 2.0**program.weight_bits
    expected = learned(x, labels, program.starting_weights().numpy() / 2.0**program.weight_bits, descent)
    assert np.abs(weights - expected).max() < 0.05 * np.abs(expected).max()
    right = ((scores(x, weights) > 0) == labels).mean()
    linear = np.linalg.lstsq(x, labels - 0.5, rcond=None)[0]
    assert right > 0.9 > 0.65 > ((x @ linear > 0) == labels).mean()


def test_six_rounds_a_step() -> None:
    layout = data()[0]

    def rounds(steps: int) -> int:
        descent = Descent(steps, ROWS, 5, 11, momentum=0, velocity_bits=14, sigmoid=SIGMOID, precision_bits=10)
        program = Perceptron(layout, descent, HIDDEN)
        return plan(lambda engine: program.run(engine, None), 0, 2).rounds

    assert rounds(3) - rounds(2) == 6


@pytest.mark.parametrize("spread", [0.3, 3.0, 60.0])
def test_no_row_moves_both_sums_by_more_than_the_sensitivity(spread: float) -> None:
    _, _, x, _ = data()
    generator = np.random.default_rng(1)
    weights = generator.normal(size=(3, 1 + HIDDEN.units)) * spread
    layout = Layout(ROWS, WIDTHS, 1, feature_bits=10, norm=1.0, shares=SHARES)
    descent = Descent(1, ROWS, 5, 11, momentum=0, velocity_bits=14, sigmoid=SIGMOID, precision_bits=10)
    program = Perceptron(layout, descent, HIDDEN)
    z = x @ weights[:, 1:]
    for label in (0.0, 1.0):
        residual = np.abs(SIGMOID(x @ weights[:, 0] + HIDDEN.activation(z).sum(1)) - label)
        moved = np.linalg.norm(x, axis=1) * residual * np.sqrt(1 + (HIDDEN.slope(z) ** 2).sum(1))
        assert moved.max() * 2.0**program.gradient_bits <= program.sensitivity


def test_sizes_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="0 units"):
        Hidden(0, HIDDEN.activation, HIDDEN.slope)
