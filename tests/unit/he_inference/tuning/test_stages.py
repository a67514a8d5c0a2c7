"""Evaluators with a clock."""

from __future__ import annotations

import math

import numpy as np
import pytest

from he_inference.engine.compute import Compute
from he_inference.engine.history import HistoryCompute
from he_inference.layouts.catalogue import layout_of
from he_inference.layouts.seam import Layout
from he_inference.tuning.stages import FOLD_STAGES, STAGES, Stopwatch
from he_inference.tuning.subjects import Histories, subject_of
from he_inference.tuning.trial import Client, blocks_of, in_memory


def test_a_stage_does_not_count_what_is_timed_within_it() -> None:
    watch = Stopwatch(("outer", "inner"))
    with watch.stage("outer"):
        for _ in range(3):
            with watch.stage("inner"):
                sum(range(200_000))
    assert watch.seconds["inner"] > 10 * watch.seconds["outer"] > 0
    assert math.fsum(watch.shares().values()) == pytest.approx(1.0)
    with pytest.raises(ZeroDivisionError), watch.stage("inner"):
        raise ZeroDivisionError
    watch.forget()
    assert watch.seconds == {"outer": 0.0, "inner": 0.0} and watch.shares() == watch.seconds


@pytest.mark.parametrize(
    ("layout", "stages"),
    [
        (layout_of("session", "fast", 5000, 8), STAGES),
        (layout_of("history", "history", 1500, 8, 3), ("reading", *FOLD_STAGES, *STAGES[1:])),
    ],
    ids=["session", "history"],
)
def test_stages_sum_to_the_whole_and_results_do_not_depend_on_the_clock(
    layout: Layout, stages: tuple[str, ...]
) -> None:
    subject = subject_of(layout, 0)
    scene = in_memory(subject)
    compute, index = scene.compute, scene.index
    clients = [Client(compute) for _ in range(3)]
    questions = subject.questions(np.random.default_rng(0), 3)
    queries = [client.encrypt(subject.entries(one)) for client, one in zip(clients, questions, strict=True)]
    compute.clock.forget()
    together = compute.answer(index, queries, [client.keys for client in clients])
    assert tuple(compute.clock.shares()) == stages
    assert all(share > 0 for share in compute.clock.shares().values())
    assert math.fsum(compute.clock.shares().values()) == pytest.approx(1.0)
    for client, query, results in zip(clients, queries, together, strict=True):
        assert compute.answer(index, [query], [client.keys]) == [results]
    plain: Compute | HistoryCompute
    if isinstance(subject, Histories):
        plain = HistoryCompute(subject.layout, blocks_of(*subject.parts[0]))
    else:
        plain = Compute(layout)
    read = [plain.read_query(query) for query in queries]
    runs = list(plain.score(index, read, [client.keys for client in clients]))
    assert [[result for run in runs for result in run[number]] for number in range(3)] == together
