"""Whose fault it was, whatever the order in which the others tell of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from coordinator.blame import judge
from coordinator.states import Report
from veil.jobs.reports import Failure

PARTIES = ("alpha", "beta", "gamma", "delta", "epsilon")


def lost(party: str, *culprits: str) -> Report:
    return Report(party, Failure("PEER_LOST", f"{party} lost {', '.join(culprits)}", culprits))


def gone(party: str) -> Report:
    return Report(party, Failure("PEER_LOST", f"{party} is gone", (party,)), gone=True)


def own(party: str) -> Report:
    return Report(party, Failure("DATA", f"{party} broke"))


@st.composite
def deaths(draw: st.DrawFn) -> tuple[str, list[Report]]:
    """One party dies; the others give up one after the other, each blaming some of those who gave up before it or died.

    Their reports, and perhaps the end of the dead party's stream, arrive in any order.
    """
    order = draw(st.permutations(PARTIES))
    reports = []
    for number, survivor in enumerate(order[1:], start=1):
        blamed = draw(st.lists(st.sampled_from(order[:number]), min_size=1, unique=True))
        reports.append(lost(survivor, *blamed))
    if draw(st.booleans()):
        reports.append(gone(order[0]))
    return order[0], draw(st.permutations(reports))


@given(deaths())
def test_the_dead_party_and_nobody_else(case: tuple[str, list[Report]]) -> None:
    dead, reports = case
    assert judge(reports, PARTIES).failure.culprits == (dead,)


@given(deaths(), st.data())
def test_what_is_settled_early_is_right(case: tuple[str, list[Report]], data: st.DataObject) -> None:
    dead, reports = case
    verdict = judge(reports[: data.draw(st.integers(1, len(reports)))], PARTIES)
    if verdict.settled:
        assert verdict.failure.culprits == (dead,)


@given(
    st.lists(
        st.builds(lambda p, c: lost(p, *c), st.sampled_from(PARTIES), st.lists(st.sampled_from(PARTIES), max_size=8))
    )
)
def test_any_accounts_have_a_verdict(reports: list[Report]) -> None:
    if reports:
        verdict = judge(reports, PARTIES)
        assert set(verdict.failure.culprits) <= set(PARTIES)
        assert verdict == judge(reports, PARTIES)


def test_a_confession_counts_at_once() -> None:
    verdict = judge([own("beta")], PARTIES)
    assert verdict.settled
    assert verdict.failure == Failure("DATA", "beta broke", ("beta",))


def test_a_confession_explains_an_accusation() -> None:
    verdict = judge([lost("gamma", "beta"), own("beta")], PARTIES)
    assert verdict.settled
    assert verdict.failure == Failure("DATA", "beta broke", ("beta",))


def test_a_late_confession_of_the_unsuspected_is_a_reaction() -> None:
    verdict = judge([lost("gamma", "beta"), own("delta")], PARTIES)
    assert verdict.failure.culprits == ("beta",)
    assert not verdict.settled


def test_a_slow_party_blames_those_who_gave_up_on_it() -> None:
    verdict = judge([lost("gamma", "beta"), lost("alpha", "gamma"), lost("beta", "gamma", "alpha")], PARTIES)
    assert verdict.failure.culprits == ("beta",)
    assert verdict.settled


def test_nobody_can_tell() -> None:
    verdict = judge([lost("gamma")], PARTIES)
    assert verdict.failure.culprits == ()
    assert not verdict.settled
    assert judge([lost("gamma"), gone("alpha")], PARTIES).failure.culprits == ("alpha",)


def test_several_deaths() -> None:
    verdict = judge([lost("gamma", "beta"), gone("alpha"), gone("beta")], PARTIES)
    assert verdict.settled
    assert verdict.failure.culprits == ("alpha", "beta")


def test_the_dealer_is_not_waited_for() -> None:
    verdict = judge([lost("gamma", "main")], PARTIES)
    assert verdict.settled
    assert verdict.failure.culprits == ("main",)
