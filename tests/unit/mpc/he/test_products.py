"""Who may call what when."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.mpc.he.numbers import uniform
from veil.errors import ProtocolMismatch, StateError
from veil.mpc.he.matrix import MatrixPlan
from veil.mpc.he.products import PairProducts
from veil.mpc.he.vectors import VectorPlan


def test_answers_need_the_key_of_the_peer(pair: tuple[PairProducts, PairProducts]) -> None:
    asker, _ = pair
    stranger = PairProducts("alpha")
    plan = VectorPlan(2, 4, 4)
    with pytest.raises(StateError):
        stranger.answer(plan, asker.request(plan, np.array([1, 2])), np.array([3, 4]))
    with pytest.raises(ProtocolMismatch):
        stranger.meet(b"hello")


def test_under_another_key_nothing_comes_out(pair: tuple[PairProducts, PairProducts]) -> None:
    asker, answerer = pair
    other = PairProducts("beta")
    plan = VectorPlan(64, 4, 4)
    numbers = np.arange(64) % 16
    answer, theirs = answerer.answer(plan, other.request(plan, numbers), numbers)
    assert (asker.finish(plan, answer) + theirs != numbers * numbers).any()


def test_a_held_matrix_is_not_a_vector(pair: tuple[PairProducts, PairProducts]) -> None:
    asker, answerer = pair
    plan = MatrixPlan(2, 2, 2)
    held = answerer.hold(plan, asker.request(plan, uniform(1, 2, 2)))
    with pytest.raises(StateError):
        answerer.answer(VectorPlan(2, 4, 4), held, np.array([1, 2]))
    assert repr(answerer) == "PairProducts(alpha)"
