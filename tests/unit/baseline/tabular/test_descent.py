from __future__ import annotations

import math

import numpy as np
import pytest

from baseline.tabular.alternatives import ridge_logistic
from baseline.tabular.descent import check_room, descend, sigmoid, summed_gradient, wavy_sigmoid
from baseline.tabular.material import Float64, Int64
from veil.errors import StateError
from veil.tabular.mechanism import gradient_sensitivity
from veil.tabular.plan import DescentOptions
from veil.tabular.schema import TabularSchema

Clicks = tuple[Int64, Int64, Float64]


def _float_descent(rows: Float64, labels: Int64, bias: float, users: float, options: DescentOptions) -> Float64:
    weights = np.zeros(rows.shape[1])
    velocity = np.zeros_like(weights)
    for _ in range(options.steps):
        gradient = rows.T @ (sigmoid(rows @ weights + bias) - labels)
        velocity = options.momentum * velocity - options.learning_rate / users * gradient
        weights = weights + velocity
    return weights


def test_integers_follow_the_formula(schema: TabularSchema, clicks: Clicks) -> None:
    rows, labels, _ = clicks
    options = DescentOptions(30, 15.0)
    found = descend(schema, rows, labels, rate=0.25, users=3000.0, options=options, noise=None)
    wanted = _float_descent(rows / schema.row_bound, labels, math.log(0.25 / 0.75), 3000.0, options)
    assert np.abs(found - wanted).max() < 1e-3 < np.abs(found).max()


def test_many_steps_reach_the_minimum(schema: TabularSchema, clicks: Clicks) -> None:
    rows, labels, _ = clicks
    options = DescentOptions(400, 30.0)
    found = descend(schema, rows, labels, rate=0.25, users=3000.0, options=options, noise=None)
    bias = math.log(0.25 / 0.75)
    best = ridge_logistic(rows / schema.row_bound, labels.astype(float), bias=bias, ridge=1e-6)
    assert np.abs(found - best).max() < 0.02


@pytest.mark.parametrize("size", [0.0, 1.0, 30.0])
def test_one_row_moves_the_gradient_by_at_most_the_sensitivity(
    schema: TabularSchema, clicks: Clicks, size: float
) -> None:
    rows, labels, _ = clicks
    rng = np.random.default_rng(3)
    # The worst row: at the bound, and against a model that is sure of the other outcome.
    for label in (0, 1):
        state = np.rint(rng.normal(size=schema.width) * size * 2**20).astype(np.int64)
        direction = (
            state / max(float(np.linalg.norm(state)), 1.0) if size else np.ones(schema.width) / schema.width**0.5
        )
        row = np.trunc(direction * (1 - 2 * label) * schema.row_bound).astype(np.int64)
        held, with_row = rows[:50].copy(), rows[:50].copy()
        held[7] = 0
        with_row[7] = row
        outcomes = labels[:50].copy()
        outcomes[7] = label
        absent = outcomes.copy()
        absent[7] = 0
        for link in (sigmoid, wavy_sigmoid(2.0**-8)):
            one = summed_gradient(schema, with_row.astype(float), outcomes, state, bias=-1.0, link=link)
            other = summed_gradient(schema, held.astype(float), absent, state, bias=-1.0, link=link)
            moved = sum(int(step) ** 2 for step in one - other)
            assert moved <= gradient_sensitivity(schema) ** 2
            if size == 30.0:
                assert moved > (0.98 * gradient_sensitivity(schema)) ** 2


def test_an_empty_slot_adds_nothing_for_any_model(schema: TabularSchema, clicks: Clicks) -> None:
    rows, labels, _ = clicks
    state = np.full(schema.width, 5 << 20, dtype=np.int64)
    padded = np.concatenate([rows, np.zeros((64, schema.width), dtype=np.int64)])
    one = summed_gradient(schema, rows.astype(float), labels, state, bias=-1.0)
    more = summed_gradient(
        schema, padded.astype(float), np.append(labels, np.zeros(64, dtype=np.int64)), state, bias=-1.0
    )
    assert (one == more).all()


def test_noise_is_added_to_every_gradient(schema: TabularSchema, clicks: Clicks) -> None:
    rows, labels, _ = clicks
    asked: list[int] = []

    def noise(step: int) -> Int64:
        asked.append(step)
        return np.full(schema.width, 1 << 30, dtype=np.int64)

    options = DescentOptions(3, 1.0, 0.0)
    plain = descend(schema, rows, labels, rate=0.25, users=3000.0, options=options, noise=None)
    moved = descend(schema, rows, labels, rate=0.25, users=3000.0, options=options, noise=noise)
    assert asked == [0, 1, 2]
    # three steps of rate / users * 2^30 / 2^27, less what the gradient pulls back
    assert plain - moved == pytest.approx(3 * 8 / 3000, rel=0.05)


def test_class_weights_act_and_raise_the_sensitivity(schema: TabularSchema, clicks: Clicks) -> None:
    rows, labels, _ = clicks
    heavy = schema.model_copy(update={"label": schema.label.model_copy(update={"positive_weight": 3.0})})
    state = np.zeros(schema.width, dtype=np.int64)
    only = np.ones_like(labels)
    one = summed_gradient(schema, rows.astype(float), only, state, bias=0.0)
    three = summed_gradient(heavy, rows.astype(float), only, state, bias=0.0)
    assert (three == 3 * one).all()
    # A heavy weight multiplies the rounding of the link too; the bound knows.
    heaviest = schema.model_copy(update={"label": schema.label.model_copy(update={"positive_weight": 99.9})})
    for bias in np.linspace(-20, 20, 41):
        summed_gradient(heaviest, rows[:9].astype(float), only[:9], state, bias=float(bias), link=wavy_sigmoid(2.0**-8))
    assert gradient_sensitivity(heavy) / gradient_sensitivity(schema) == pytest.approx(3, rel=1e-3)


@pytest.mark.parametrize("learning_rate", [1e-12, 1e-300, 5e-324])
def test_refuses_a_learning_rate_that_is_nothing_on_the_grid(
    schema: TabularSchema, clicks: Clicks, learning_rate: float
) -> None:
    rows, labels, _ = clicks
    options = DescentOptions(1, learning_rate)
    with pytest.raises(StateError, match="too small to move a weight"):
        descend(schema, rows, labels, rate=0.25, users=3000.0, options=options, noise=None)


def test_refuses_what_does_not_fit(schema: TabularSchema, clicks: Clicks) -> None:
    rows, labels, _ = clicks
    state = np.zeros(schema.width, dtype=np.int64)
    with pytest.raises(StateError, match="residual"):
        summed_gradient(schema, rows.astype(float), labels, state, bias=0.0, link=lambda u: np.full_like(u, 1.5))
    with pytest.raises(StateError, match="53 bits"):
        summed_gradient(schema, rows.astype(float), labels, state + (1 << 45), bias=0.0)
    with pytest.raises(StateError, match="62 bits"):
        check_room(np.array([1 << 50], dtype=np.int64), 1 << 12)


def test_shares_modulo_2_to_the_64_give_the_same_gradient(schema: TabularSchema, clicks: Clicks) -> None:
    rows, labels, _ = clicks
    state = np.zeros(schema.width, dtype=np.int64)
    wanted = summed_gradient(schema, rows.astype(float), labels, state, bias=-1.0)
    residual = np.rint(sigmoid(np.array(-1.0)) * (1 << 14)).astype(np.int64) - (labels << 14)
    rng = np.random.default_rng(0)
    mask = rng.integers(-(2**63), 2**63, rows.shape, dtype=np.int64)
    shares = (rows - mask, mask)  # wraps around, as shares do
    opened = sum(share.T @ residual for share in shares)
    assert (opened == wanted).all()
