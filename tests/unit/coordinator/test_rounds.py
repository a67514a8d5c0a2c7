"""What the state machine says of the end of a job; how it gets there is in tests/protocol."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from coordinator import messages as m
from coordinator.rounds import step
from coordinator.schema import plan_of
from coordinator.states import Rules, Running, State
from tests.unit.trainers.columns.test_prediction import spec_of, trainer_of
from veil.jobs.reports import SCORING, Outcome
from veil.jobs.spec import JobSpec


def ends(spec: JobSpec) -> list[str]:
    """The lines of a job's history once all parties have reported the same outcome."""
    plan = plan_of("a" * 32, spec, submitted_ms=0)
    state = State(rules=Rules(), jobs={plan.job_id: Running(plan=plan, approvals=(), progress={}, started_ms=0)})
    lines = []
    for party in plan.parties:
        state, commands = step(state, m.Finished(party, plan.job_id, Outcome(bytes(32), 0, "0")), 1)
        lines += [one.line for one in commands if isinstance(one, m.Record)]
    return lines


def test_scores_are_not_said_to_be_a_model() -> None:
    spec = spec_of(trainer_of("logistic", 2), 2)
    assert plan_of("a" * 32, spec, 0).rounds == SCORING
    assert ends(spec)[1:] == ["party-1 has finished", "the scores are with their recipient"]


@pytest.mark.parametrize("names", [("predict", "reveal"), ("align", "predict")])
def test_a_job_is_not_on_predictions_for_the_names_of_its_releases(
    make_spec: Callable[..., JobSpec], names: tuple[str, ...]
) -> None:
    """The names of questions, say, which whoever asks them chooses."""
    spec = make_spec()
    releases = tuple(one.model_copy(update={"name": name}) for one, name in zip(spec.releases, names, strict=True))
    assert ends(spec.model_copy(update={"releases": releases}))[-1] == "every party holds the same model"
