"""Private selection: its grid, its exponent, its refusals. The laws: tests/statistical/test_laplace.py."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veil.errors import BudgetError, InputError, StateError
from veil.privacy import selection
from veil.privacy.noise import keyed_source
from veil.privacy.selection import Selection, SelectionBudget, release_from_best, release_top_k

KEY = b"\x09" * 32
SCORES = np.linspace(-1, 1, 50, dtype=np.float32)


@pytest.mark.parametrize("mechanism", ["permute-and-flip", "exponential"])
@pytest.mark.parametrize("k", [1, 7, 50])
def test_k_different_items_and_a_keyed_source_repeats(mechanism: Selection, k: int) -> None:
    chosen, again = (
        release_top_k(SCORES, k, 10.0, 1.0, mechanism=mechanism, source=keyed_source(KEY, b"k")) for _ in range(2)
    )
    np.testing.assert_array_equal(chosen, again)
    assert len(set(chosen.tolist())) == k
    assert 0 <= chosen.min() <= chosen.max() < 50


@pytest.mark.parametrize("mechanism", ["permute-and-flip", "exponential"])
def test_with_little_sensitivity_the_best_come_in_order(mechanism: Selection) -> None:
    # gaps of 0.04 against a sensitivity of 1e-4 at epsilon 100 each: a wrong order has probability below e^-10000
    chosen = release_top_k(SCORES, 5, 500.0, 1.0, sensitivity=1e-4, mechanism=mechanism)
    assert chosen.tolist() == [49, 48, 47, 46, 45]


def test_scores_beyond_the_bound_count_as_the_bound() -> None:
    far = np.array([5.0, 1e30, -1e30])
    counts = np.bincount([int(release_top_k(far, 1, 1000.0, 1.0)[0]) for _ in range(200)], minlength=3)
    assert counts[2] == 0
    assert counts[:2].min() > 50  # both are at the bound: a tie


@settings(max_examples=200, deadline=None)
@given(
    bound=st.floats(1e-6, 1e9),
    first=st.lists(st.floats(-1, 1), min_size=1, max_size=8),
    shifts=st.lists(st.floats(-1, 1), min_size=8, max_size=8),
    share=st.floats(1e-6, 3),
)
def test_neighbours_differ_by_at_most_the_steps_on_the_grid(
    bound: float, first: list[float], shifts: list[float], share: float
) -> None:
    sensitivity = bound * share
    one = np.array(first) * bound
    other = np.array([score + shift * sensitivity for score, shift in zip(one.tolist(), shifts, strict=False)])
    # what float addition did to the difference is not the grid's business
    exact = max(abs(Fraction(float(a)) - Fraction(float(b))) for a, b in zip(one, other, strict=True))
    sensitivity = max(sensitivity, math.nextafter(float(exact), math.inf))
    grid, steps = selection._on_grid(one, bound, sensitivity)
    neighbour, _ = selection._on_grid(other, bound, sensitivity)
    assert int(np.abs(grid - neighbour).max()) <= steps
    whole, widest = selection._on_grid(one, bound, None)
    np.testing.assert_array_equal(whole, grid)
    assert steps <= widest <= 2**31
    assert np.abs(grid).max() <= 2**30


def test_the_worst_ratio_is_within_epsilon() -> None:
    """All score vectors on the corners of the box, exactly: P(i | s) / P(i | t) <= e^epsilon for one item."""
    epsilon, items = 1.5, 4
    corners = [np.array([2 * (c >> i & 1) - 1 for i in range(items)], float) for c in range(2**items)]
    for law in (_permute_and_flip_law, _exponential_law):
        laws = []
        for scores in corners:
            grid, steps = selection._on_grid(scores, 1.0, None)
            laws.append(law(np.exp(-epsilon * (grid.max() - grid) / (2 * steps))))
        worst = max(float((a / b).max()) for a in laws for b in laws)
        assert worst <= math.exp(epsilon) * (1 + 1e-12)
        assert worst > math.exp(0.5 * epsilon)  # and it is not far below


def _exponential_law(weight: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    return weight / weight.sum()


def _permute_and_flip_law(weight: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    law = np.zeros(weight.size)
    for heads in range(1, 2**weight.size):
        inside = np.array([heads >> i & 1 for i in range(weight.size)], bool)
        law[inside] += np.where(inside, weight, 1 - weight).prod() / inside.sum()
    return law


@pytest.mark.parametrize(
    ("scores", "k", "epsilon", "bound", "more"),
    [
        (np.zeros((2, 2)), 1, 1.0, 1.0, {}),
        (np.zeros(0), 1, 1.0, 1.0, {}),
        (np.zeros(3), 0, 1.0, 1.0, {}),
        (np.zeros(3), 4, 1.0, 1.0, {}),
        (np.zeros(3), 1, 0.0, 1.0, {}),
        (np.zeros(3), 1, math.nan, 1.0, {}),
        (np.zeros(3), 3, 1e-7, 1.0, {}),
        (np.zeros(3), 1, 1.0, 0.0, {}),
        (np.zeros(3), 1, 1.0, math.inf, {}),
        (np.array([0.0, math.nan]), 1, 1.0, 1.0, {}),
        (np.zeros(3), 1, 1.0, 1.0, {"sensitivity": 0.0}),
    ],
)
def test_arguments_out_of_range_are_refused(
    scores: np.ndarray,  # type: ignore[type-arg]
    k: int,
    epsilon: float,
    bound: float,
    more: dict[str, float],
) -> None:
    with pytest.raises(InputError):
        release_top_k(scores, k, epsilon, bound, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("k", [1, 7, 50])
def test_from_the_best_k_different_items(k: int) -> None:
    chosen, again = (release_from_best(SCORES, k, 10.0, best=3, source=keyed_source(KEY, b"best")) for _ in range(2))
    np.testing.assert_array_equal(chosen, again)
    assert len(set(chosen.tolist())) == k
    assert 0 <= chosen.min() <= chosen.max() < 50


def test_from_the_best_only_the_order_of_scores_counts() -> None:
    scaled = np.exp(100 * SCORES.astype(float))
    first, second = (
        release_from_best(scores, 5, 2.0, source=keyed_source(KEY, b"order")) for scores in (SCORES, scaled)
    )
    np.testing.assert_array_equal(first, second)
    # with a large epsilon a tie goes to the first positions
    assert set(release_from_best(np.zeros(40), 4, 400.0, best=1).tolist()) == {0, 1, 2, 3}


def test_from_the_best_the_worst_ratio_is_epsilon_for_any_two_histories() -> None:
    """Two in a row, exactly, over all orders of five items: no pair is more than e^epsilon times as probable."""
    epsilon, best = 1.2, 2
    laws = []
    for order in itertools.permutations(range(5)):
        law = {}
        for first, second in itertools.permutations(range(5), 2):
            rest = [item for item in order if item != first]
            law[first, second] = _share(order, best, first, epsilon / 2) * _share(rest, best, second, epsilon / 2)
        laws.append(law)
    worst = max(a[pair] / b[pair] for a in laws for b in laws for pair in a)
    assert worst == pytest.approx(math.exp(epsilon))


def _share(order: Sequence[int], best: int, item: int, epsilon: float) -> float:
    total = best * math.exp(epsilon) + len(order) - best
    return (math.exp(epsilon) if item in order[:best] else 1.0) / total


@pytest.mark.parametrize("best", [0, 51])
def test_from_the_best_refuses_a_number_out_of_range(best: int) -> None:
    with pytest.raises(InputError, match="best"):
        release_from_best(SCORES, 1, 1.0, best=best)


def test_a_budget_adds_up_on_disk_and_refuses_what_is_too_much(tmp_path: Path) -> None:
    path = tmp_path / "anna.spent"
    budget = SelectionBudget(path, limit=1.0)
    assert budget.spent == 0
    budget.pay(0.4)
    assert path.stat().st_mode & 0o777 == 0o600
    again = SelectionBudget(path, limit=1.0)
    again.pay(0.6)
    with pytest.raises(BudgetError, match="expected at most 1 in all"):
        again.pay(1e-9)  # rounded up to a millionth
    assert again.spent == pytest.approx(1.0)
    path.write_text("much")
    with pytest.raises(StateError, match="damaged"):
        budget.pay(0.1)


def test_payments_at_once_all_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that read the same sum before either writes would record one payment of two."""
    path = tmp_path / "users" / "anna.spent"
    reading = selection.read_bounded

    def slowly(where: Path, limit_bytes: int) -> bytes:
        data = reading(where, limit_bytes)
        time.sleep(0.01)
        return data

    monkeypatch.setattr(selection, "read_bounded", slowly)
    SelectionBudget(path, limit=10.0).pay(0.5)
    with ThreadPoolExecutor(8) as pool:
        for paid in [pool.submit(SelectionBudget(path, limit=10.0).pay, 0.5) for _ in range(8)]:
            paid.result()
    assert SelectionBudget(path, limit=10.0).spent == 4.5
