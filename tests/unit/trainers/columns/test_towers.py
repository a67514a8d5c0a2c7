"""The joint towers against the same in floating point, and their sensitivity."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.unit.mpc.engine.together import together
from tests.unit.trainers.columns.test_perceptron import HIDDEN, SIGMOID, data
from veil.errors import ConfigError
from veil.mpc.engine.engine import Engine
from veil.mpc.engine.plan import plan
from veil.trainers.columns.descent import Descent
from veil.trainers.columns.towers import Sides, Towers

SIDES = Sides((0,), (1,))
SIGNS = np.array([1.0 if unit % 2 == 0 else -1.0 for unit in range(HIDDEN.units)])


def parts(x: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Score and both sides' inner products; the first two columns are the left side's."""
    left, right = x[:, :2] @ weights[:2, 1:], x[:, 2:] @ weights[2:, 1:]
    score = x @ weights[:, 0] + (HIDDEN.activation(left) * HIDDEN.activation(right)) @ SIGNS
    return score, left, right


def learned(x: np.ndarray, labels: np.ndarray, start: np.ndarray, descent: Descent) -> np.ndarray:
    weights, velocity = start.copy(), np.zeros_like(start)
    for _ in range(descent.steps):
        score, left, right = parts(x, weights)
        residual = (SIGMOID(score) - labels)[:, None]
        back_left = residual * HIDDEN.activation(right) * HIDDEN.slope(left) * SIGNS
        back_right = residual * HIDDEN.activation(left) * HIDDEN.slope(right) * SIGNS
        units = np.concatenate([x[:, :2].T @ back_left, x[:, 2:].T @ back_right])
        velocity = descent.momentum / 256 * velocity + np.concatenate([x.T @ residual, units], axis=1)
        weights = weights - descent.rate / 2.0**descent.rate_bits * velocity
    return weights


def test_they_follow_the_plain_towers_and_learn_a_product_of_two_parties_columns() -> None:
    layout, own, x, labels = data()
    descent = Descent(40, layout.rows, 5, 11, momentum=200, velocity_bits=14, sigmoid=SIGMOID, precision_bits=10)
    program = Towers(layout, descent, HIDDEN, SIDES)

    def part(engine: Engine) -> torch.Tensor:
        return engine.combine(program.run(engine, None if engine.device.type == "meta" else own[engine.rank]))

    results = together(2, part)
    assert torch.equal(results[0], results[1])
    weights = results[0].numpy() / 2.0**program.weight_bits
    expected = learned(x, labels, program.starting_weights().numpy() / 2.0**program.weight_bits, descent)
    assert np.abs(weights - expected).max() < 0.05 * np.abs(expected).max()
    assert ((parts(x, weights)[0] > 0) == labels).mean() > 0.9


def test_seven_rounds_a_step() -> None:
    layout = data()[0]

    def rounds(steps: int) -> int:
        descent = Descent(steps, layout.rows, 5, 11, momentum=9, velocity_bits=14, sigmoid=SIGMOID, precision_bits=10)
        program = Towers(layout, descent, HIDDEN, SIDES)
        return plan(lambda engine: program.run(engine, None), 0, 2).rounds

    assert rounds(3) - rounds(2) == 7


@pytest.mark.parametrize("spread", [0.3, 3.0, 60.0])
def test_no_row_moves_the_sums_by_more_than_the_sensitivity(spread: float) -> None:
    layout, _, x, _ = data()
    weights = np.random.default_rng(2).normal(size=(3, 1 + HIDDEN.units)) * spread
    descent = Descent(1, layout.rows, 5, 11, momentum=0, velocity_bits=14, sigmoid=SIGMOID, precision_bits=10)
    program = Towers(layout, descent, HIDDEN, SIDES)
    score, left, right = parts(x, weights)
    back = [HIDDEN.activation(right) * HIDDEN.slope(left), HIDDEN.activation(left) * HIDDEN.slope(right)]
    norms = [np.linalg.norm(x[:, :2], axis=1), np.linalg.norm(x[:, 2:], axis=1)]
    units = sum(norm**2 * (one**2).sum(1) for norm, one in zip(norms, back, strict=True))
    for label in (0.0, 1.0):
        moved = np.abs(SIGMOID(score) - label) * np.sqrt(np.linalg.norm(x, axis=1) ** 2 + units)
        assert moved.max() * 2.0**program.gradient_bits <= program.sensitivity


def test_every_party_stands_on_one_side() -> None:
    layout = data()[0]
    descent = Descent(1, 10, 5, 11, momentum=0, velocity_bits=14, sigmoid=SIGMOID)
    for sides in (Sides((0,), ()), Sides((0, 1), (1,)), Sides((0,), (2,))):
        with pytest.raises(ConfigError, match="split in two"):
            Towers(layout, descent, HIDDEN, sides)
