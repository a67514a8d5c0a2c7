"""The result: right by the algebra of sets, in one order that says nothing, of the declared size."""

from __future__ import annotations

import random
from collections import Counter
from itertools import permutations
from typing import Any, Literal
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.align.company import DIGEST, aligned, communicators, run, together
from tests.unit.mpc.operations import no_torch_randomness
from veil.align import exchange
from veil.align.protocol import Alignment, AlignmentPlan, align
from veil.errors import DataError, InputError, PolicyError, ProtocolMismatch

MOST = 9
IDS = [f"user-{number}" for number in range(12)]
OWN = st.lists(st.sampled_from(IDS), unique=True, max_size=MOST)
EXAMPLES = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def companies(draw: st.DrawFn) -> tuple[list[list[str]], bool, int]:
    size = draw(st.sampled_from([2, 2, 3, 4]))
    return [draw(OWN) for _ in range(size)], draw(st.booleans()), draw(st.integers(0, size - 1))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "BATCH_ROWS", 4)


@EXAMPLES
@given(companies())
def test_revealed_rows_are_those_of_all(company: tuple[list[list[str]], bool, int]) -> None:
    lists, padded, collector = company
    plan = AlignmentPlan("reveal", (MOST,) * len(lists), MOST, padded=padded, collector=collector)
    rows = aligned(lists, run(lists, plan))
    assert all(len(set(row)) == 1 for row in rows)
    assert sorted(str(row[0]) for row in rows) == sorted(set(lists[0]).intersection(*lists[1:]))


@EXAMPLES
@given(companies())
def test_hidden_rows_are_the_union(company: tuple[list[list[str]], bool, int]) -> None:
    lists, padded, collector = company
    total = MOST * len(lists)
    plan = AlignmentPlan("hidden", (MOST,) * len(lists), total, padded=padded, collector=collector)
    rows = aligned(lists, run(lists, plan))
    assert len(rows) == total
    filled = [{each for each in row if each is not None} for row in rows]
    assert all(len(names) <= 1 for names in filled)
    assert sorted(next(iter(names)) for names in filled if names) == sorted(set().union(*lists))
    for rank, own in enumerate(lists):  # every own row once, and a zero where there is none
        assert sorted(str(row[rank]) for row in rows if row[rank] is not None) == sorted(own)


def test_five_parties_of_unequal_sizes() -> None:
    rng = random.Random(5)
    sizes = (40, 1, 13, 30, 5)
    lists = [[*rng.sample(range(60), size - 1), 99] for size in sizes]
    named = [[str(number) for number in own] for own in lists]
    for collector in (0, 3):
        results = run(named, AlignmentPlan("reveal", sizes, 1, collector=collector))
        assert aligned(named, results) == [("99",) * 5]
        results = run(named, AlignmentPlan("hidden", sizes, sum(sizes), collector=collector))
        rows = aligned(named, results)
        assert sum(all(row) for row in rows) == 1
        assert len([row for row in rows if any(row)]) == len(set().union(*lists))


def test_tables_line_up() -> None:
    """What follows an alignment: sums over rows that all hold, from zeros and bits, equal those of the join."""
    lists = [["a", "b", "c", "d"], ["c", "x", "a"]]
    tables = [np.array([1.0, 2.0, 4.0, 8.0]), np.array([10.0, 100.0, 1000.0])]
    results = run(lists, AlignmentPlan("hidden", (4, 3), 7))
    weights = results[0].members & results[1].members
    product = (results[0].take(tables[0]) * results[1].take(tables[1]) * weights).sum()
    assert product == 1 * 1000 + 4 * 10


def test_two_threads_compute_the_same() -> None:
    lists = [["a", "b", "c"], ["c", "b", "x"]]
    assert sorted(aligned(lists, run(lists, AlignmentPlan("reveal", (3, 3), 3), workers=2))) == [("b",) * 2, ("c",) * 2]


@pytest.mark.parametrize("mode", ["reveal", "hidden"])
def test_the_order_is_uniform(mode: Literal["reveal", "hidden"]) -> None:
    lists = [["a", "b", "c"], ["c", "a", "b"]]
    plan = AlignmentPlan(mode, (3, 3), 3, padded=True)
    runs = 120
    counts = Counter("".join(str(row[0]) for row in aligned(lists, run(lists, plan))) for _ in range(runs))
    expected = runs / 6
    statistic = sum((counts["".join(order)] - expected) ** 2 / expected for order in permutations("abc"))
    assert statistic < 40  # chi-square with 5 degrees of freedom: exceeded once in 10^7 runs


@pytest.mark.parametrize(("least", "most", "fits"), [(0, 3, False), (0, 4, True), (4, 4, True), (5, 6, False)])
@pytest.mark.parametrize("collector", [0, 1])
def test_a_result_out_of_bounds_stops_all(least: int, most: int, fits: bool, collector: int) -> None:
    lists = [["a", "b", "c", "d", "e", "f"], ["c", "d", "e", "f", "g", "h"]]
    results = run(lists, AlignmentPlan("reveal", (6, 6), most, least=least, collector=collector))
    expected = Alignment if fits else PolicyError
    assert [type(result) for result in results] == [expected] * 2
    assert fits or "got 4" not in str(results[1 - collector])  # the number stays with the collector


@pytest.mark.parametrize("parties", [2, 3])
def test_a_union_out_of_bounds_stops_all(parties: int) -> None:
    lists = [[f"{rank}-{row}" for row in range(4)] for rank in range(parties)]
    sizes = (4,) * parties
    results = run(lists, AlignmentPlan("hidden", sizes, 4 * parties - 1, padded=False))
    assert [type(result) for result in results] == [PolicyError] * parties
    same = [lists[0]] * parties
    assert len(aligned(same, run(same, AlignmentPlan("hidden", sizes, 4, padded=False)))) == 4


def test_own_ids_are_checked_before_anything_is_sent() -> None:
    parties, recorders = communicators(2)
    for ids, error in ((["a", "a"], DataError), ([""], DataError), (["a", "b", "c", "d"], InputError)):
        with pytest.raises(error):
            align(parties[0], ids, AlignmentPlan("reveal", (3, 3), 3), DIGEST)
    with pytest.raises(InputError, match="plan for 3 parties"):
        align(parties[0], ["a"], AlignmentPlan("reveal", (3, 3, 3), 3), DIGEST)
    with pytest.raises(InputError, match="digest"):
        align(parties[0], ["a"], AlignmentPlan("reveal", (3, 3), 3), b"short")
    assert recorders[0].sent == []


def test_another_plan_or_job_is_named() -> None:
    plans = [AlignmentPlan("reveal", (3, 3), 3), AlignmentPlan("reveal", (3, 3), 2)]
    results = together(communicators(2)[0], lambda party: align(party, ["a"], plans[party.rank], DIGEST))
    assert [result.culprits for result in results] == [("beta",), ("alpha",)]
    digests = [DIGEST, bytes(32)]
    results = together(communicators(2)[0], lambda party: align(party, ["a"], plans[0], digests[party.rank]))
    assert all(isinstance(result, ProtocolMismatch) for result in results)


@pytest.mark.parametrize("mode", ["reveal", "hidden"])
def test_progress_reaches_the_total_of_every_stage(mode: Literal["reveal", "hidden"]) -> None:
    seen: dict[int, list[tuple[str, int, int]]] = {0: [], 1: [], 2: []}
    lists = [["a", "b", "c", "d", "e"], ["e", "d", "c"], ["c", "q", "d"]]
    plan = AlignmentPlan(mode, (5, 4, 3), 12 if mode == "hidden" else 3)

    def act(party: Any) -> Any:
        return align(party, lists[party.rank], plan, DIGEST, progress=lambda *step: seen[party.rank].append(step))

    aligned(lists, together(communicators(3)[0], act))
    for steps in seen.values():
        for stage in {name for name, _, _ in steps}:
            done = [count for name, count, _ in steps if name == stage]
            totals = {total for name, _, total in steps if name == stage}
            assert done == sorted(done) and totals == {done[-1]}
        assert {name for name, _, _ in steps} == {"mix", "unwrap" if mode == "reveal" else "convert"}


@pytest.mark.parametrize("mode", ["reveal", "hidden"])
def test_only_the_cryptographic_source_is_drawn_from(mode: Literal["reveal", "hidden"]) -> None:
    lists = [["a", "b", "c"], ["c", "b", "x"]]
    with (
        no_torch_randomness(),
        mock.patch.object(np.random, "default_rng", side_effect=AssertionError),
        mock.patch.object(random, "random", side_effect=AssertionError),
    ):
        aligned(lists, run(lists, AlignmentPlan(mode, (3, 3), 6 if mode == "hidden" else 3)))
