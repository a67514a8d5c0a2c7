from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from baseline.tabular import neural
from baseline.tabular.material import Float64, Int64
from baseline.tabular.neural import NeuralOptions
from baseline.tabular.scores import auc
from veil.errors import ConfigError
from veil.tabular.mechanism import RESIDUAL_BITS, Family, gradient_sensitivity
from veil.tabular.schema import TabularSchema

Clicks = tuple[Int64, Int64, Float64]


def _bounded(kind: Family, width: int, slope: float, seed: int = 1) -> torch.nn.Module:
    if kind == "towers":
        return neural.BoundedTowers(width, width // 2, 8, slope, 2.0, -1.0, seed)
    return neural.BoundedPerceptron(width, 8, slope, 0.3, -1.0, seed)


def test_the_machine_is_the_sum_over_pairs() -> None:
    machine = neural.FactorisationMachine(5, 3, 0.5, seed=2)
    with torch.no_grad():
        machine.weights.copy_(torch.arange(5.0))
    x = torch.tensor([0.3, -1.0, 0.0, 2.0, 0.5])
    factors, weights = machine.factors.detach(), machine.weights.detach()
    pairs = sum(float(factors[i] @ factors[j] * x[i] * x[j]) for i, j in combinations(range(5), 2))
    logits = neural.logits_of(machine, x[None].numpy().astype(np.float64))
    assert logits[0] == pytest.approx(0.5 + float(weights @ x) + pairs, abs=1e-5)


@pytest.mark.parametrize("kind", ["perceptron", "towers"])
@pytest.mark.parametrize("slope", [0.3, 1.0, 4.0])
def test_one_row_moves_the_gradient_by_at_most_the_sensitivity(
    schema: TabularSchema, clicks: Clicks, kind: Family, slope: float
) -> None:
    rows, labels, _ = clicks
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    model = _bounded(kind, schema.width, slope)
    one = gradient_sensitivity(schema, kind, slope=slope) / 2.0 ** (schema.bits + RESIDUAL_BITS)
    for size in (0.0, 1.0, 20.0):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * size)
        for row in range(40):
            inputs = torch.from_numpy(unit[row : row + 1].astype(np.float32))
            target = torch.from_numpy(labels[row : row + 1].astype(np.float32))
            assert np.linalg.norm(neural.summed_gradient(model, inputs, target)) <= one


@pytest.mark.parametrize("kind", ["perceptron", "towers"])
def test_the_start_scores_nothing_and_descent_learns(schema: TabularSchema, clicks: Clicks, kind: Family) -> None:
    rows, labels, truth = clicks
    features, outcomes = rows / schema.row_bound, labels.astype(float)
    model = _bounded(kind, schema.width, 1.0)
    assert neural.logits_of(model, features) == pytest.approx(-1.0, abs=1e-5)
    neural.descend_model(model, features, outcomes, NeuralOptions(30, 15.0), users=3000.0, noise=None)
    best = auc(outcomes, features @ truth)
    assert auc(outcomes, neural.logits_of(model, features)) > best - 0.03


def test_noise_enters_every_step(schema: TabularSchema, clicks: Clicks) -> None:
    rows, labels, _ = clicks
    features, outcomes = rows / schema.row_bound, labels.astype(float)
    asked: list[tuple[int, int]] = []

    def noise(step: int, parameters: int) -> Float64:
        asked.append((step, parameters))
        return np.full(parameters, 1e9)

    model = _bounded("perceptron", schema.width, 1.0)
    neural.descend_model(model, features, outcomes, NeuralOptions(2, 15.0), users=3000.0, noise=noise)
    assert asked == [(0, schema.width * 8), (1, schema.width * 8)]
    moved = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    assert float(moved.abs().min()) > 1e5


@pytest.mark.parametrize("make", [neural.FactorisationMachine, neural.Perceptron])
def test_plain_models_learn_and_keep_their_best_epoch(
    schema: TabularSchema, clicks: Clicks, make: type[neural.FactorisationMachine]
) -> None:
    rows, labels, truth = clicks
    features, outcomes = rows / schema.row_bound, labels.astype(float)
    model = make(schema.width, 4, -1.0, 1)
    seen: list[float] = []

    def watch() -> float:
        seen.append(auc(outcomes, neural.logits_of(model, features)))
        # The second epoch counts as the best, so that what is kept is not the last.
        return seen[-1] + (len(seen) == 2)

    neural.fit_plain(model, features, outcomes, epochs=4, learning_rate=0.05, decay=0.0, seed=1, watch=watch)
    assert auc(outcomes, neural.logits_of(model, features)) == pytest.approx(seen[1], abs=1e-9)
    assert seen[1] > auc(outcomes, features @ truth) - 0.05


def test_refuses_odd_sizes() -> None:
    with pytest.raises(ConfigError, match="even"):
        neural.BoundedPerceptron(4, 3, 1.0, 1.0, 0.0, 1)
    with pytest.raises(ConfigError, match="even"):
        neural.BoundedTowers(4, 4, 2, 1.0, 1.0, 0.0, 1)
