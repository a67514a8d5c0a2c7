"""The tuner's predictions against trials, its choices, and what it refuses. Errors: encoding/test_deviation.py."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from he_inference.encoding.deviation import SIGMAS, USER_NORM, expected, stated_error
from he_inference.layouts.catalogue import layout_of
from he_inference.layouts.history import HistoryLayout
from he_inference.layouts.seam import Layout
from he_inference.parameters import FAST, HISTORY, KEYLESS, KEYLESS_SMALL, named
from he_inference.tuning.calibration import Costs, Folding, Line, calibrate
from he_inference.tuning.tune import (
    SETS,
    Link,
    Plan,
    bits_per_second,
    check,
    expected_largest,
    layouts,
    plans,
    predict,
)
from veil.errors import ConfigError

LINK = Link(5e6, 20e6)


def made_up(*, rotation: float = 0.5, accumulation: float = 1e-6) -> Costs:
    """Costs of so many milliseconds a rotation and a byte; one of everything else."""
    one = Line((1, 1.0), (2, 2.0))
    giant, added = (Line((1, each), (2, 2 * each)) for each in (rotation, accumulation))
    folding = Folding(Line((1, rotation), (2, 2 * rotation)), added, rotation)
    return Costs(rotation, giant, added, one, one, one, one, 7.0, folding)


COSTS = {one.name: made_up() for one in (*SETS, HISTORY)}


@pytest.mark.parametrize(
    ("text", "rate"),
    [("5Mbit", 5e6), ("20 mbit/s", 2e7), ("1.5Gbit", 1.5e9), ("800kbps", None), ("800kbitps", 8e5), ("64bit", 64.0)],
)
def test_rates(text: str, rate: float | None) -> None:
    if rate is None:
        with pytest.raises(ConfigError, match="5Mbit"):
            bits_per_second(text)
    else:
        assert bits_per_second(text) == rate


@pytest.mark.parametrize("text", ["", "5", "Mbit", "-5Mbit", "0Mbit", "5MB", "nanMbit", "1e3Mbit", "9" * 400 + "bit"])
def test_a_rate_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        bits_per_second(text)
    assert len(str(caught.value)) < 300


def test_only_post_quantum_sets_where_asked_for() -> None:
    quantum = {layout.parameters.name for layout in layouts(1000, 32, post_quantum=True)}
    assert quantum == {one.name for one in SETS if one.post_quantum}
    assert quantum == {"pq", "keyless"}
    assert {layout.parameters.name for layout in layouts(1000, 32, post_quantum=False)} == {one.name for one in SETS}
    tight = layouts(1000, 32, post_quantum=False, largest_error=1.2e-4)
    assert {layout.parameters.name for layout in tight} == {"keyless", "keyless-small"}


@pytest.mark.parametrize(
    ("items", "dimensions", "error"), [(0, 8, 1.0), (10**9, 8, 1.0), (10, 0, 1.0), (10, 4096, 1.0), (10, 8, 1e-8)]
)
def test_what_no_layout_fits_is_refused(items: int, dimensions: int, error: float) -> None:
    with pytest.raises(ConfigError) as caught:
        layouts(items, dimensions, post_quantum=False, largest_error=error)
    assert "got" in caught.value.message
    assert "expected" in caught.value.message
    assert caught.value.hint


def test_every_size_is_the_real_one() -> None:
    """Of each kind of layout; 300 items, so that a last block is partly empty."""
    for kind, parameters, packing in (
        ("session", FAST, 0),
        ("keyless", KEYLESS, 4),
        ("keyless", KEYLESS_SMALL, 8),
        ("history", HISTORY, 1),
        ("history", HISTORY, 3),
    ):
        plan = predict(layout_of(kind, parameters, 300, 20, packing), made_up(), LINK, one_shot=True)
        tried = check(plan, made_up(), LINK, queries=1)
        assert tried.sound
        assert (tried.query_bytes, tried.key_bytes) == (plan.query_bytes, plan.key_bytes)
        assert (tried.response_bytes, tried.index_bytes) == (plan.response_bytes, plan.index_bytes)


@pytest.mark.parametrize(
    "layout",
    [
        layout_of("session", "fast", 3000, 16),
        layout_of("session", "exact", 2000, 16),
        layout_of("keyless", "keyless-small", 1000, 40, 16),
        layout_of("history", "history", 500, 16, 3),
    ],
    ids=lambda layout: layout.parameters.name,
)
def test_the_largest_error_of_a_trial_is_about_the_predicted_one(layout: Layout) -> None:
    plan = predict(layout, made_up(), LINK, one_shot=False)
    tried = check(plan, made_up(), LINK, queries=6, seed=3)
    assert tried.items == layout.items
    predicted = expected_largest(plan.error_deviation, 6 * plan.numbers)
    assert predicted / 1.6 < tried.largest_error < 1.5 * predicted
    assert plan.largest_error < plan.stated_error == stated_error(layout)
    assert 0 < tried.error_of_stated < 1.0


def test_a_stated_bound_is_seven_deviations_away_or_more() -> None:
    """For the layouts that `veil bench score-all` and the tests use, of up to a million items."""
    for parameters in SETS:
        for items, dimensions in ((4096, 128), (100_000, 64), (1_000_000, 64)):
            packing = 0 if parameters.special_bits else 4
            layout = layout_of("keyless" if packing else "session", parameters, items, dimensions, packing)
            assert SIGMAS * expected(layout) < stated_error(layout)
    for items, dimensions in ((100, 8), (3706, 128), (100_000, 64)):
        layout = layout_of("history", "history", items, dimensions, 3)
        assert SIGMAS * expected(layout, USER_NORM) < stated_error(layout)


def test_the_expected_largest_of_many_errors() -> None:
    largest = [np.abs(np.random.default_rng(seed).normal(size=10_000)).max() for seed in range(50)]
    assert expected_largest(1.0, 10_000) == pytest.approx(np.mean(largest), rel=0.15)
    assert expected_largest(0.0, 5) == 0.0


def test_plans_come_fastest_first_and_name_who_dominates_them() -> None:
    made = plans(layouts(4096, 32, post_quantum=False), COSTS, LINK, one_shot=False)
    assert [plan.total_ms for plan in made] == sorted(plan.total_ms for plan in made)
    by_name = {plan.name: plan for plan in made}
    assert len(by_name) == len(made)
    assert made[0].dominated_by is None
    # The same layout at twice the degree: more bytes for the same.
    assert by_name["pq"].dominated_by == "fast"
    for plan in made:
        if plan.dominated_by is not None:
            other = by_name[plan.dominated_by]
            assert other.dominates(plan)
            assert not plan.dominates(other)
            assert other.response_bytes <= plan.response_bytes
            assert other.server_ms <= plan.server_ms
    # Exactness is worth something that no size shows.
    assert by_name["exact"].dominated_by is None


def test_equal_plans_do_not_dominate_each_other() -> None:
    plan = plans(layouts(100, 8, post_quantum=True), COSTS, LINK, one_shot=False)[0]
    assert not plan.dominates(replace(plan))
    assert plan.dominates(replace(plan, response_bytes=plan.response_bytes + 1))


def test_one_shot_clients_pay_for_their_keys() -> None:
    layout = layout_of("session", "fast", 1000, 16)
    stays, once = (predict(layout, made_up(), LINK, one_shot) for one_shot in (False, True))
    keys_ms = 8000 * once.key_bytes / LINK.up
    assert once.total_ms - stays.total_ms == pytest.approx(keys_ms + 7.0)
    slow = Link(1e5, 1e8)
    best = plans(layouts(1000, 16, post_quantum=False), COSTS, slow, one_shot=True)[0]
    assert best.key_bytes == 0
    assert plans(layouts(100_000, 128, post_quantum=False), COSTS, LINK, one_shot=False)[0].key_bytes > 0


def test_server_time_follows_its_primitives() -> None:
    layout = layout_of("session", "fast", 4096, 128)
    base, rotations, products = (
        predict(layout, costs, LINK, one_shot=False).server_ms
        for costs in (made_up(rotation=0, accumulation=0), made_up(rotation=1, accumulation=0), made_up(rotation=0))
    )
    assert base == pytest.approx(2.0)  # one query read, one result packed
    assert rotations - base == pytest.approx(layout.rotations - 1 + layout.groups - 1)
    assert products - base == pytest.approx(4096 * 2 * 4 * 128 * 1e-6)


def test_a_history_is_folded_in_first() -> None:
    """Two query ciphertexts; every rotation and every byte of both parts is counted once."""
    layout = layout_of("history", "history", 10_000, 32, 3)
    assert isinstance(layout, HistoryLayout)
    base, rotations, products = (
        predict(layout, costs, LINK, one_shot=False).server_ms
        for costs in (made_up(rotation=0, accumulation=0), made_up(rotation=1, accumulation=0), made_up(rotation=0))
    )
    assert base == pytest.approx(2.0 + layout.blocks)
    steps, groups, (first, second) = layout.rotations - 1, layout.groups - 1, layout.fold_in.trace_steps
    folding = 2 * steps + groups + first - 1 + second - 1
    assert rotations - base == pytest.approx(folding + steps + groups * layout.blocks)
    fold_bytes, scored = 2 * 3 * 8192 * 4 * 32, layout.blocks * 2 * 8192 * 4 * 32
    assert products - base == pytest.approx((fold_bytes + scored) * 1e-6)
    assert predict(layout, made_up(), LINK, one_shot=False).index_bytes == fold_bytes + scored
    with pytest.raises(ConfigError, match="costs of vectors"):
        predict(layout, replace(made_up(), folding=None), LINK, one_shot=False)


def test_histories_are_planned_beside_vectors_when_asked_for() -> None:
    vectors = layouts(4096, 32, post_quantum=True)
    asked = layouts(4096, 32, post_quantum=True, history=True)
    assert asked[:-1] == vectors and asked[-1] == layout_of("history", "history", 4096, 32, 3)
    made = plans(asked, COSTS, LINK, one_shot=False)
    (folds,) = (plan for plan in made if plan.from_history)
    # More bytes and more time than for a vector, and still nothing that a vector could replace.
    assert folds.name == "history" and folds.dominated_by is None
    assert all(plan.dominated_by != "history" for plan in made)
    assert folds.numbers == 3 * 4096
    with pytest.raises(ConfigError, match=r"expected at least 0\.000125"):
        layouts(4096, 32, post_quantum=True, history=True, largest_error=1e-4)
    with pytest.raises(ConfigError, match="got 300000 items"):
        layouts(300_000, 32, post_quantum=True, history=True)
    with pytest.raises(ConfigError, match="got 2 dimensions"):
        layouts(4096, 2, post_quantum=True, history=True)


def test_a_line_through_two_measurements() -> None:
    line = Line((1, 3.0), (16, 18.0))
    assert [line(count) for count in (0, 1, 2, 16, 31)] == [0.0, 3.0, 4.0, 18.0, 33.0]
    assert Line((1, 3.0), (16, 2.0))(100) == 3.0  # noise never makes more work cheaper


def test_calibration_measures_every_primitive() -> None:
    costs = calibrate([named("fast"), named("exact"), KEYLESS_SMALL], runs=1, large_bytes=4 << 20)
    assert list(costs) == ["fast", "exact", "keyless-small"]
    for cost in costs.values():
        for name in ("accumulation", "packing", "reading", "encryption", "decryption"):
            line: Line = getattr(cost, name)
            assert line.first[1] > 0
            assert line.second[1] > 0
    # The same degree and primes: measured once, so that noise does not decide between them.
    assert costs["fast"].giant is costs["exact"].giant
    assert costs["fast"].decryption is not costs["exact"].decryption
    assert min(costs["fast"].baby, costs["fast"].giant(1), costs["fast"].keys) > 0
    assert costs["keyless-small"].baby == costs["keyless-small"].giant(5) == costs["keyless-small"].keys == 0.0
    assert all(cost.folding is None for cost in costs.values())


def test_calibration_measures_folding() -> None:
    cost = calibrate([HISTORY], runs=1, large_bytes=4 << 20)["history"]
    assert cost.folding is not None
    for line in (cost.folding.baby, cost.folding.accumulation, cost.giant, cost.accumulation, cost.packing):
        assert 0 < line.first[0] < line.second[0]
        assert min(line.first[1], line.second[1]) > 0
    assert min(cost.folding.trace, cost.baby, cost.keys) > 0


def test_a_large_plan_is_tried_with_fewer_items() -> None:
    layout = layout_of("keyless", KEYLESS_SMALL, 20_000, 8, 8)
    plan = predict(layout, made_up(), LINK, one_shot=False)
    tried = check(plan, made_up(), LINK, queries=2, trial_bytes=10 * plan.index_bytes // layout.blocks)
    assert tried.items == 10 * layout.block_items
    assert tried.plan.index_bytes == tried.index_bytes == 10 * plan.index_bytes // layout.blocks
    assert tried.sound
    assert not replace(tried, largest_error=1e-3).sound
    assert not replace(tried, error_of_stated=1.01).sound
    assert not replace(tried, response_bytes=1).sound


def test_a_large_history_is_tried_with_fewer_items() -> None:
    plan = predict(layout_of("history", HISTORY, 20_000, 8, 3), made_up(), LINK, one_shot=False)
    tried = check(plan, made_up(), LINK, queries=2, trial_bytes=plan.index_bytes // 3)
    assert 1000 < tried.items < 10_000
    assert tried.plan.index_bytes == tried.index_bytes < plan.index_bytes / 2
    assert tried.sound


def test_a_plan_is_named_by_what_a_reader_chooses() -> None:
    def name(layout: Layout) -> str:
        plan: Plan = predict(layout, made_up(), LINK, one_shot=False)
        return plan.name

    assert name(layout_of("session", "pq", 10, 8)) == "pq"
    assert name(layout_of("keyless", "keyless", 10, 8, 4)) == "keyless g=4"
    assert name(layout_of("history", "history", 10, 8, 3)) == "history"
