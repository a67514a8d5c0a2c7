"""A factorisation machine and a small perceptron for clicks, plain, and bounded so that noised descent fits them.

Guarantee: for the bounded models the L2 norm of one row's gradient is at most `gradient_sensitivity` of
`veil.tabular.mechanism`, for any weights, because activations are bounded and output weights fixed and public; a test
measures it. The plain models have no such bound and are trained without noise only.

Models: Rendle 2010, "Factorization Machines", equation (5); a perceptron with one hidden layer; for the bounded ones
see the docstring of `veil.tabular.mechanism`. Random public starts: half of the hidden units repeat the other half with
the opposite output sign, so that the score is exactly 0 at the start (Chizat, Oyallon and Bach 2019, "On Lazy Training
in Differentiable Programming", section 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from veil.errors import ConfigError

Float64 = npt.NDArray[np.float64]
Noise = Callable[[int, int], Float64]
"""Called with step and number of parameters, returns what is added to the summed gradient."""

_BATCH: Final = 256


class FactorisationMachine(nn.Module):
    """u = b + w.x + (||V x||^2 - sum_j x_j^2 ||v_j||^2) / 2."""

    def __init__(self, width: int, factors: int, bias: float, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weights = nn.Parameter(torch.zeros(width))
        self.factors = nn.Parameter(torch.randn(width, factors, generator=generator) * 0.1)
        self.bias = bias

    def forward(self, rows: Tensor) -> Tensor:
        """float32[n, width] -> logits float32[n]."""
        crossed = (rows @ self.factors).square() - rows.square() @ self.factors.square()
        return self.bias + rows @ self.weights + 0.5 * crossed.sum(dim=1)


class Perceptron(nn.Module):
    """u = b + v . tanh(W x + c) + w.x, everything trained."""

    def __init__(self, width: int, hidden: int, bias: float, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.inner = nn.Parameter(torch.randn(width, hidden, generator=generator))
        self.shift = nn.Parameter(torch.zeros(hidden))
        self.outer = nn.Parameter(torch.zeros(hidden))
        self.weights = nn.Parameter(torch.zeros(width))
        self.bias = bias

    def forward(self, rows: Tensor) -> Tensor:
        """float32[n, width] -> logits float32[n]."""
        return self.bias + torch.tanh(rows @ self.inner + self.shift) @ self.outer + rows @ self.weights


class BoundedPerceptron(nn.Module):
    """u = b + s/sqrt(H) sum_h e_h tanh(w_h.x + b_h); only w_h are trained, e_h = +-1 and b_h are public."""

    def __init__(self, width: int, hidden: int, slope: float, start: float, bias: float, seed: int) -> None:
        super().__init__()
        if hidden < 2 or hidden % 2:
            raise ConfigError(f"got {hidden} hidden units, expected an even number")
        generator = torch.Generator().manual_seed(seed)
        half = torch.randn(width, hidden // 2, generator=generator) * start
        self.inner = nn.Parameter(torch.cat([half, half], dim=1))
        self.shift = (torch.randn(hidden // 2, generator=generator) * min(1.0, start)).repeat(2)
        self.signs = torch.cat([torch.ones(hidden // 2), -torch.ones(hidden // 2)]) * slope / math.sqrt(hidden)
        self.bias = bias

    def forward(self, rows: Tensor) -> Tensor:
        """float32[n, width] -> logits float32[n]."""
        return self.bias + torch.tanh(rows @ self.inner + self.shift) @ self.signs


class BoundedTowers(nn.Module):
    """u = b + w.x + s/sqrt(K) sum_k e_k tanh(a_k.x_A) tanh(b_k.x_B): a factorisation machine across two parties."""

    def __init__(self, width: int, cut: int, factors: int, slope: float, start: float, bias: float, seed: int) -> None:
        super().__init__()
        if factors < 2 or factors % 2 or not 0 < cut < width:
            raise ConfigError(
                f"got {factors} factors and cut {cut} of {width}, expected an even number and a cut inside"
            )
        generator = torch.Generator().manual_seed(seed)
        left = torch.randn(cut, factors // 2, generator=generator) * start
        right = torch.randn(width - cut, factors // 2, generator=generator) * start
        self.weights = nn.Parameter(torch.zeros(width))
        self.left = nn.Parameter(left.repeat(1, 2))
        self.right = nn.Parameter(right.repeat(1, 2))
        self.signs = torch.cat([torch.ones(factors // 2), -torch.ones(factors // 2)]) * slope / math.sqrt(factors)
        self.cut = cut
        self.bias = bias

    def forward(self, rows: Tensor) -> Tensor:
        """float32[n, width] -> logits float32[n]."""
        towers = torch.tanh(rows[:, : self.cut] @ self.left) * torch.tanh(rows[:, self.cut :] @ self.right)
        return self.bias + rows @ self.weights + towers @ self.signs


def summed_gradient(model: nn.Module, rows: Tensor, labels: Tensor) -> Float64:
    """Gradient of the logistic loss summed over rows, float64[parameters]."""
    model.zero_grad()
    loss = nn.functional.binary_cross_entropy_with_logits(model(rows), labels, reduction="sum")
    loss.backward()  # type: ignore[no-untyped-call]
    parts = [parameter.grad for parameter in model.parameters()]
    return np.concatenate([part.numpy().ravel().astype(np.float64) for part in parts if part is not None])


@dataclass(frozen=True)
class NeuralOptions:
    """Full-batch descent of a bounded model: as `DescentOptions`, plus its size, slope s and start's scale."""

    steps: int
    learning_rate: float
    momentum: float = 0.5
    hidden: int = 8
    slope: float = 1.0
    start: float = 1.0


def descend_model(
    model: nn.Module,
    rows: Float64,
    labels: Float64,
    options: NeuralOptions,
    *,
    users: float,
    noise: Noise | None,
) -> None:
    """Noised full-batch descent with momentum, in place. noise: in units of the gradient."""
    inputs, targets = torch.from_numpy(rows.astype(np.float32)), torch.from_numpy(labels.astype(np.float32))
    flat = nn.utils.parameters_to_vector(model.parameters()).detach().numpy().astype(np.float64)
    velocity = np.zeros_like(flat)
    for step in range(options.steps):
        gradient = summed_gradient(model, inputs, targets)
        if noise is not None:
            gradient += noise(step, gradient.size)
        velocity = options.momentum * velocity - options.learning_rate / users * gradient
        flat = flat + velocity
        nn.utils.vector_to_parameters(torch.from_numpy(flat.astype(np.float32)), model.parameters())


def fit_plain(
    model: nn.Module,
    rows: Float64,
    labels: Float64,
    *,
    epochs: int,
    learning_rate: float,
    decay: float,
    seed: int,
    watch: Callable[[], float] | None = None,
) -> None:
    """Adam on minibatches of 256, in place. watch: a score after each epoch; the best epoch's weights are kept."""
    inputs, targets = torch.from_numpy(rows.astype(np.float32)), torch.from_numpy(labels.astype(np.float32))
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=decay)
    generator = torch.Generator().manual_seed(seed)
    best, kept = -math.inf, [parameter.detach().clone() for parameter in model.parameters()]
    for _ in range(epochs):
        order = torch.randperm(len(inputs), generator=generator)
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            optimiser.zero_grad()
            loss = nn.functional.binary_cross_entropy_with_logits(model(inputs[batch]), targets[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        score = watch() if watch is not None else 0.0
        if score > best or watch is None:
            best, kept = score, [parameter.detach().clone() for parameter in model.parameters()]
    _restore(model, kept)


def _restore(model: nn.Module, kept: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), kept, strict=True):
            parameter.copy_(value)


def logits_of(model: nn.Module, rows: Float64) -> Float64:
    """Scores of rows, float64[n]."""
    with torch.no_grad():
        scored: Tensor = model(torch.from_numpy(rows.astype(np.float32)))
    return scored.numpy().astype(np.float64)
