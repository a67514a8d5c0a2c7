"""Waves of a shared number within their bounds, for two parties and more."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.mpc.he.numbers import Integers, together, total, uniform
from veil.errors import InputError
from veil.mpc.communicator import TensorCommunicator
from veil.mpc.he.exchange import Exchange
from veil.mpc.he.rotations import rotations
from veil.mpc.he.shared import SharedProducts


def _errors(parties: int, shape: tuple[int, ...], period_bits: int, harmonics: int, precision_bits: int) -> float:
    """The greatest error, in units of the last place."""

    def program(communicator: TensorCommunicator) -> tuple[Integers, Integers]:
        exchange = Exchange(communicator)
        exchange.start()
        masks = uniform(exchange.rank, *shape)
        return masks, rotations(SharedProducts(exchange), masks, period_bits, harmonics, precision_bits)

    masks, waves = (total(column) for column in zip(*together(parties, program), strict=True))
    assert waves.shape == (2 * harmonics, *shape)
    angles = (masks % 2**period_bits) * (2 * np.pi / 2**period_bits)
    turns = np.arange(1, harmonics + 1).reshape(-1, *(1,) * masks.ndim) * angles
    exact = np.concatenate([np.cos(turns), np.sin(turns)]) * 2.0**precision_bits
    return float(np.abs(waves - exact).max())


@pytest.mark.parametrize(("parties", "bound"), [(2, 2.0), (3, 3.5), (4, 5.0)])
@pytest.mark.parametrize(("period_bits", "precision_bits"), [(25, 18), (62, 8)])
def test_errors_keep_their_bounds(parties: int, bound: float, period_bits: int, precision_bits: int) -> None:
    assert _errors(parties, (5, 6), period_bits, 3, precision_bits) <= bound


@pytest.mark.parametrize(("parties", "bound", "precision_bits"), [(2, 2.0, 4), (2, 2.0, 40), (3, 3.5, 4), (3, 3.5, 27)])
def test_all_precisions(parties: int, bound: float, precision_bits: int) -> None:
    assert _errors(parties, (7,), 30, 2, precision_bits) <= bound


@pytest.mark.parametrize("parties", [2, 3])
def test_more_than_one_run_of_slots(parties: int) -> None:
    assert _errors(parties, (5000,), 20, 1, 12) <= 3.5


def test_precisions_beyond_the_bounds_are_refused() -> None:
    for parties, precision_bits in ((2, 41), (3, 28), (2, 0)):
        with pytest.raises(InputError):
            _errors(parties, (3,), 20, 1, precision_bits)
