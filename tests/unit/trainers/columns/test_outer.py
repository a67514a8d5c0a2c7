"""The joint outer product is exact, and no user moves it by more than both norms' product."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.unit.mpc.engine.together import together
from veil.errors import ConfigError, InputError
from veil.mpc.engine.engine import Engine
from veil.mpc.engine.plan import plan
from veil.privacy.mechanism import to_grid
from veil.trainers.columns.outer import OuterProduct

ROWS = 500


def rows_of(width: int, norm: float, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(ROWS, width)) * 3
    return to_grid(drawn, norm, 12)


@pytest.mark.parametrize(("parties", "left", "right"), [(2, 0, 1), (2, 1, 0), (3, 1, 2)])
def test_the_sum_is_exact_and_costs_one_opening_each(parties: int, left: int, right: int) -> None:
    y, g = rows_of(6, 1.0, 0), rows_of(4, 0.5, 1)
    program = OuterProduct(ROWS, left, 6, right, 4, bits=12, left_norm=2**12, right_norm=2**11)

    def part(engine: Engine) -> torch.Tensor:
        mine = {left: torch.from_numpy(y), right: torch.from_numpy(g)}.get(engine.rank)
        return engine.combine(program.run(engine, None if engine.device.type == "meta" else mine))

    for result in together(parties, part):
        np.testing.assert_array_equal(result.numpy(), y.T @ g)
    planned = plan(part, left, parties)
    assert planned.rounds == 3
    assert planned.sent_bytes < (parties - 1) * 8 * (ROWS * 6 + 24 + 20)


def test_no_user_moves_the_sum_by_more_than_the_sensitivity() -> None:
    y, g = rows_of(6, 1.0, 2), rows_of(4, 0.5, 3)
    program = OuterProduct(ROWS, 0, 6, 1, 4, bits=12, left_norm=2**12, right_norm=2**11)
    moved = [np.linalg.norm(np.outer(one, other)) for one, other in zip(y, g, strict=True)]
    assert 0.9 * program.sensitivity < max(moved) <= program.sensitivity


def test_one_party_on_both_sides_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected two"):
        OuterProduct(ROWS, 1, 6, 1, 4, bits=12, left_norm=1, right_norm=1)


def test_rows_beyond_their_norm_are_refused_though_every_entry_is_within() -> None:
    program = OuterProduct(2, 0, 2, 1, 1, bits=12, left_norm=100, right_norm=100)
    rows = {0: torch.tensor([[60, 80], [80, 80]]), 1: torch.tensor([[100], [-100]])}

    def part(engine: Engine) -> torch.Tensor:
        return engine.combine(program.run(engine, None if engine.device.type == "meta" else rows[engine.rank]))

    with pytest.raises(InputError, match="norm above 100"):
        together(2, part)
    rows[0][1, 1] = 60
    assert together(2, part)[0].tolist() == [[60 * 100 - 80 * 100], [80 * 100 - 60 * 100]]
