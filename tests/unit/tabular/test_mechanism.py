from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from veil.errors import ConfigError
from veil.tabular.mechanism import (
    RESIDUAL_BITS,
    gradient_sensitivity,
    residual_bound,
)
from veil.tabular.schema import TabularSchema


def _weighted(schema: TabularSchema, positive: float) -> TabularSchema:
    label = schema.label.model_copy(update={"positive_weight": positive})
    return schema.model_copy(update={"label": label})


def test_residual_bound_covers_link_error_weights_and_truncation(schema: TabularSchema) -> None:
    one = 1 << RESIDUAL_BITS
    assert residual_bound(schema, link_error=0.0) == one + 4
    assert residual_bound(schema, link_error=0.25) == one + one // 4 + 4
    assert residual_bound(_weighted(schema, 3.0), link_error=0.0) == 3 * one + 8
    with pytest.raises(ConfigError):
        residual_bound(schema, link_error=-0.1)


def test_linear_sensitivity_is_met_and_never_passed(schema: TabularSchema) -> None:
    bound = gradient_sensitivity(schema)
    # A row at the bound with the largest residual, in integers: exactly the sensitivity.
    assert bound == residual_bound(schema) * schema.row_bound
    rng = np.random.default_rng(2)
    for _ in range(200):
        row = rng.normal(size=15)
        row = np.trunc(row / np.linalg.norm(row) * schema.row_bound).astype(np.int64)
        residual = int(rng.integers(-residual_bound(schema), residual_bound(schema) + 1))
        assert sum((residual * int(step)) ** 2 for step in row) <= bound**2


@pytest.mark.parametrize("size", [0.1, 1.0, 100.0])
def test_nonlinear_gradients_stay_within_the_bound_for_any_weights(schema: TabularSchema, size: float) -> None:
    generator = torch.Generator().manual_seed(7)
    slope, hidden = 1.5, 8
    one = residual_bound(schema) * schema.row_bound
    signs = torch.where(torch.arange(hidden) % 2 == 0, 1.0, -1.0)
    for _ in range(50):
        x = torch.randn(15, generator=generator)
        x = x / x.norm()
        left, right = x[:10], x[10:]
        weights = (torch.randn(hidden, 15, generator=generator) * size).requires_grad_()
        biases = torch.randn(hidden, generator=generator)
        out = slope / math.sqrt(hidden) * (signs * torch.tanh(weights @ x + biases)).sum()
        (gradient,) = torch.autograd.grad(out, weights)
        assert float(gradient.norm()) * one <= gradient_sensitivity(schema, "perceptron", slope=slope)
        linear = (torch.randn(15, generator=generator) * size).requires_grad_()
        a = (torch.randn(hidden, 10, generator=generator) * size).requires_grad_()
        b = (torch.randn(hidden, 5, generator=generator) * size).requires_grad_()
        out = linear @ x + slope / math.sqrt(hidden) * (torch.tanh(a @ left) * torch.tanh(b @ right)).sum()
        parts = torch.autograd.grad(out, (linear, a, b))
        norm = math.sqrt(sum(float(part.square().sum()) for part in parts))
        assert norm * one <= gradient_sensitivity(schema, "towers", slope=slope) * (1 + 1e-6)


def test_refuses_a_sensitivity_that_does_not_fit(schema: TabularSchema) -> None:
    with pytest.raises(ConfigError, match="fewer bits"):
        gradient_sensitivity(schema, residual_steps=2**45)
