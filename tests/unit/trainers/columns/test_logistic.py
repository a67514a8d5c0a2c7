"""Joint descent against the same descent in floating point, and the bounds that its privacy rests on."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.unit.mpc.engine.together import together
from veil.errors import ConfigError, InputError
from veil.mpc.engine.engine import Engine
from veil.mpc.engine.plan import plan
from veil.mpc.engine.values import Value
from veil.mpc.engine.waves import fit, sigmoid
from veil.trainers.columns.descent import Descent
from veil.trainers.columns.layout import Layout, OwnColumns
from veil.trainers.columns.logistic import Logistic

SERIES = fit(sigmoid, reach=6, period=16, harmonics=8)
ROWS, WIDTHS = 300, (5, 4, 3)


def data(
    parties: int, label: int, seed: int = 0, most_weight: float = 0.0
) -> tuple[Layout, list[OwnColumns], torch.Tensor, np.ndarray]:
    generator = np.random.default_rng(seed)
    widths = WIDTHS[:parties]
    drawn = [generator.normal(size=(ROWS, width)) for width in widths]
    # Each part nearly as long as its share lets it be.
    features = np.concatenate([part / np.linalg.norm(part, axis=1, keepdims=True) for part in drawn], axis=1)
    features /= np.sqrt(parties) * 1.001
    grid = np.trunc(features * 2**12).astype(np.int64)
    truth = generator.normal(size=sum(widths)) * 3
    labels = (features @ truth + generator.normal(size=ROWS) > 0).astype(np.int64)
    shares = (int(2**12 / np.sqrt(parties)),) * parties
    layout = Layout(ROWS, widths, label, feature_bits=12, norm=1.0, shares=shares, most_weight=most_weight)
    weights = torch.from_numpy((labels * 3 + 1).reshape(-1, 1) * 8)
    cuts = np.cumsum((0, *widths))
    own = [
        OwnColumns(
            torch.from_numpy(grid[:, cuts[rank] : cuts[rank + 1]].copy()),
            torch.from_numpy(labels.reshape(-1, 1)) if rank == label else None,
            weights if most_weight and rank == label else None,
        )
        for rank in range(parties)
    ]
    return layout, own, torch.from_numpy(grid), labels


def descended(grid: torch.Tensor, labels: np.ndarray, layout: Layout, descent: Descent) -> np.ndarray:
    x = grid.numpy() / 2.0**12
    weights, velocity = np.zeros(layout.columns), np.zeros(layout.columns)
    batches = layout.batches(descent.batch)
    for step in range(descent.steps):
        first, stop = batches[step % len(batches)]
        residual = 1 / (1 + np.exp(-x[first:stop] @ weights)) - labels[first:stop]
        if layout.most_weight:
            residual = residual * (labels[first:stop] * 3 + 1) / 2
        velocity = descent.momentum / 256 * velocity + x[first:stop].T @ residual
        weights = weights - descent.rate / 2.0**descent.rate_bits * velocity
    return weights


@pytest.mark.parametrize(
    ("parties", "label", "momentum", "most_weight"),
    [(2, 0, 0, 0.0), (2, 1, 180, 0.0), (3, 2, 128, 0.0), (3, 0, 0, 2.0)],
)
def test_the_weights_of_a_joint_descent_are_those_of_a_plain_one(
    parties: int, label: int, momentum: int, most_weight: float
) -> None:
    layout, own, grid, labels = data(parties, label, most_weight=most_weight)
    descent = Descent(
        100,
        128,
        rate=3 if momentum == 0 else 1,
        rate_bits=8,
        momentum=momentum,
        velocity_bits=14,
        sigmoid=SERIES,
        precision_bits=15,
    )
    program = Logistic(layout, descent)

    def part(engine: Engine) -> torch.Tensor:
        weights = program.run(engine, None if engine.device.type == "meta" else own[engine.rank])
        return engine.combine(weights)

    results = together(parties, part)
    assert all(torch.equal(result, results[0]) for result in results)
    weights = results[0].numpy().reshape(-1) / 2.0**program.weight_bits
    expected = descended(grid, labels, layout, descent)
    assert np.abs(grid.numpy() / 2.0**12 @ expected).max() < 6  # the reach of the series
    assert np.abs(expected).max() > 1
    assert np.abs(weights - expected).max() < 1e-3 * (1 + 4 * momentum / 256)


def test_four_rounds_a_step_whoever_takes_part() -> None:
    def rounds(parties: int, steps: int) -> int:
        descent = Descent(steps, 128, rate=1, rate_bits=8, momentum=9, velocity_bits=14, sigmoid=SERIES)
        program = Logistic(data(parties, 0)[0], descent)
        return plan(lambda engine: program.run(engine, None), 1, parties).rounds

    for parties in (2, 3):
        assert rounds(parties, 10) == parties + 40 and rounds(parties, 11) == parties + 44


@pytest.mark.parametrize("weights_scale", [0.1, 3, 40, 1e4])
def test_no_row_moves_a_steps_sum_by_more_than_its_sensitivity(weights_scale: float) -> None:
    """Even for weights that drive the series out of its reach, where it is no sigmoid."""
    layout, _, grid, _ = data(2, 0)
    descent = Descent(1, ROWS, rate=1, rate_bits=8, momentum=0, velocity_bits=14, sigmoid=SERIES)
    program = Logistic(layout, descent)
    start = np.random.default_rng(1).normal(size=layout.columns) * weights_scale
    fixed = torch.from_numpy(np.rint(start * 2**20).astype(np.int64)).reshape(-1, 1)

    def part(engine: Engine) -> torch.Tensor:
        scores = engine.own(grid @ fixed if engine.rank == 0 else None, (ROWS, 1), 0, bits=32, limit_bits=62)
        probability = engine.functions(scores, SERIES)[0]
        return engine.combine(Value(probability.share, probability.bits, 0.0))

    predicted = together(2, part)[0].numpy() / 2.0**36
    for label in (0, 1):
        moved = np.linalg.norm(grid.numpy(), axis=1) * np.abs(predicted[:, 0] - label)
        assert moved.max() * 2.0**descent.residual_bits <= program.sensitivity


def test_rows_beyond_the_norm_and_missing_labels_are_refused() -> None:
    layout, own, _, _ = data(2, 0)
    own[0].check(layout, 0)
    assert own[0].features is not None
    with pytest.raises(InputError, match="norm above this party's share of 2896 steps"):
        OwnColumns(own[0].features * 2, own[0].labels).check(layout, 0)
    with pytest.raises(InputError, match=r"float64, expected torch\.int64"):
        OwnColumns(own[0].features.double(), own[0].labels).check(layout, 0)
    with pytest.raises(InputError, match="labels at rank 0 only"):
        OwnColumns(own[0].features).check(layout, 0)
    assert own[0].labels is not None
    wrong = [own[0].labels - 1, own[0].labels * 2, own[0].labels[:-1], own[0].labels.double()]
    for labels in wrong:
        with pytest.raises(InputError, match=r"labels other than 0 and 1|expected torch.int64 \(300, 1\)"):
            OwnColumns(own[0].features, labels).check(layout, 0)


def test_a_part_must_keep_its_share_though_the_whole_norm_would_let_it_pass() -> None:
    """Sensitivities count on whole rows, which nobody sees: two parts of norm 1 would make one of norm sqrt 2."""
    layout, own, _, _ = data(2, 0)
    assert own[0].features is not None and layout.shares == (2896, 2896)
    features = torch.zeros_like(own[0].features)
    features[7, 2] = 2896
    OwnColumns(features, own[0].labels).check(layout, 0)
    for place, value in ((2, 2897), (2, 4096), (3, 1), (2, -(2**63))):  # (2896, 1) is longer by less than a step
        beyond = features.clone()
        beyond[7, place] = value
        with pytest.raises(InputError, match="share of 2896 steps"):
            OwnColumns(beyond, own[0].labels).check(layout, 0)


@pytest.mark.parametrize("shares", [(2897, 2896), (4096, 1), (2896,), (2896, 2896, 0), (-1, 2896), ()])
def test_shares_that_do_not_fit_into_the_norm_are_refused(shares: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="got shares"):
        Layout(ROWS, (5, 4), 0, feature_bits=12, norm=1.0, shares=shares)
