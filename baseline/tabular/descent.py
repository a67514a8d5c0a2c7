"""Noised gradient descent on ring integers: what the secret-shared trainer computes, in one place and in plain sight.

Guarantee: every step's summed gradient is an exact integer in which one row moves at most
`veil.tabular.mechanism.gradient_sensitivity` steps (L2), plus integer noise of the release; nothing else depends on
rows. All intermediate integers stay far below 2^63 (`check_room`), so the same numbers come out of 64-bit ring
arithmetic. It differs from the joint run by one unit where a shared product is truncated. An evaluation of data that
one holds anyway: the accounting treats every step as opened, and so may the caller.

    u = X w / 2^(bits + 20) + b            logits; b = log(rate / (1 - rate)), public
    r = weight * (link(u) - y)             in steps of 2^-14
    g = X^T r + noise                      in steps of 2^-(bits + 14)
    v = momentum * v - rate / users * g    in steps of 2^-20, truncated
    w = w + v                              Polyak 1964, "Some methods of speeding up the convergence"
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy import special

from veil.errors import StateError
from veil.tabular.mechanism import RESIDUAL_BITS, residual_bound
from veil.tabular.plan import DescentOptions
from veil.tabular.schema import TabularSchema

STATE_BITS: Final = 20
_CONSTANT_BITS: Final = 16
_LEAST_CONSTANT: Final = 2.0 ** (_CONSTANT_BITS - 62)
_EXACT: Final = 2**53
_ROOM: Final = 2**62

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
Link = Callable[[Float64], Float64]
StepNoise = Callable[[int], Int64]


def sigmoid(logits: Float64) -> Float64:
    """1 / (1 + e^-u)."""
    return np.asarray(special.expit(logits))


def wavy_sigmoid(error: float) -> Link:
    """The sigmoid off by up to `error`, as a short Fourier series is: error * cos(5 u) added."""
    return lambda logits: sigmoid(logits) + error * np.cos(5.0 * logits)


def descend(
    schema: TabularSchema,
    rows: Int64,
    labels: Int64,
    *,
    rate: float,
    users: float,
    options: DescentOptions,
    noise: StepNoise | None,
    link: Link = sigmoid,
) -> Float64:
    """Weights after the last step, float64[width], multiples of 2^-20.

    rows: int64[n, width] in steps of 2^-bits, labels: int64[n] of 0 and 1, rate: public base rate in (0, 1), users:
    public (noised) number of users. noise: called with the step's number, returns int64[width] in steps of
    2^-(bits + 14). Raises `StateError` when a residual leaves its bound or a number its room, or when the learning rate
    is too small for 63 bits.
    """
    bias = math.log(rate / (1.0 - rate))
    # learning rate / users from steps of 2^-(bits + 14) to steps of 2^-20, as constant / 2^shift with 15 bits or more
    wanted = options.learning_rate / users * 2.0 ** (STATE_BITS - schema.bits - RESIDUAL_BITS)
    if wanted < _LEAST_CONSTANT:  # a shift of 63 bits and more leaves signs of gradients alone
        raise StateError("got a learning rate that is too small to move a weight", hint="choose a larger one")
    shift = _CONSTANT_BITS - math.floor(math.log2(wanted))
    constant = round(wanted * 2.0**shift)
    exact = rows.astype(np.float64)
    kept = round(options.momentum * (1 << _CONSTANT_BITS))
    state = np.zeros(rows.shape[1], dtype=np.int64)
    velocity = np.zeros_like(state)
    for step in range(options.steps):
        gradient = summed_gradient(schema, exact, labels, state, bias=bias, link=link)
        if noise is not None:
            gradient = gradient + noise(step)
        change = check_room(gradient, constant) >> shift
        velocity = (check_room(velocity, kept) >> _CONSTANT_BITS) - change
        state = state + velocity
    return state / 2.0**STATE_BITS


def summed_gradient(
    schema: TabularSchema, rows: Float64, labels: Int64, state: Int64, *, bias: float, link: Link = sigmoid
) -> Int64:
    """One step's summed gradient, int64[width], exact, in steps of 2^-(bits + 14).

    rows: whole numbers, steps of 2^-bits, as float64; state: weights in steps of 2^-20. A row of zeros adds nothing.
    Raises `StateError` when a residual leaves its bound or a product 53 bits.
    """
    bound = residual_bound(schema)
    steps = [
        int(weight * (1 << schema.bits)) for weight in (schema.label.negative_weight, schema.label.positive_weight)
    ]
    weights = np.where(labels == 1, steps[1], steps[0])
    logits = _product(rows, state) / 2.0 ** (schema.bits + STATE_BITS) + bias
    gap = np.rint(link(logits) * (1 << RESIDUAL_BITS)).astype(np.int64) - (labels << RESIDUAL_BITS)
    residual = (gap * weights) >> schema.bits
    if int(np.abs(residual).max(initial=0)) > bound:
        raise StateError(f"got a residual above {bound} steps, expected none", hint="raise link_error")
    # Sensitivity: one row adds residual * row, whole numbers of norm at most bound * row_bound: `gradient_sensitivity`.
    return _product(rows.T, residual).astype(np.int64)


def check_room(values: Int64, constant: int) -> Int64:
    """values * constant; raises `StateError` when a product might not fit in the ring with a bit to spare."""
    if int(np.abs(values).max(initial=0)) * abs(constant) >= _ROOM:
        raise StateError("got a number of more than 62 bits, expected fewer", hint="choose fewer bits")
    return values * constant


def _product(matrix: Float64, vector: Int64) -> Float64:
    """Exact integer product in float64; raises `StateError` when a partial sum could exceed 2^53."""
    peak = float(np.abs(matrix).max(initial=0.0)) * float(np.abs(vector).sum())
    if peak >= _EXACT:
        raise StateError("got a product of more than 53 bits, expected fewer", hint="choose fewer bits")
    return np.asarray(matrix @ vector.astype(np.float64))
