"""Pauses before a peer is dialled again: they grow, they end, they are not the same for everybody."""

from __future__ import annotations

import itertools

from veil.mpc.pauses import FIRST_S, MOST_S, STEADY_S, Pauses

LONGEST = [0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0]


def taken(pauses: Pauses, count: int = len(LONGEST)) -> list[float]:
    return [pauses.next_s() for _ in range(count)]


def test_pauses_double_up_to_a_bound_between_half_and_the_whole() -> None:
    assert taken(Pauses(lambda below: below - 1)) == LONGEST
    assert taken(Pauses(lambda below: 0)) == [longest / 2 for longest in LONGEST]
    for _ in range(50):
        for pause, longest in zip(taken(Pauses()), LONGEST, strict=True):
            assert longest / 2 <= pause <= longest <= MOST_S


def test_two_parties_that_lost_each_other_at_once_come_back_at_different_times() -> None:
    ends = {tuple(itertools.accumulate(taken(Pauses()))) for _ in range(20)}
    assert len(ends) == 20


def test_a_stream_that_held_makes_the_next_dial_immediate() -> None:
    pauses = Pauses(lambda below: below - 1)
    taken(pauses)
    pauses.lasted(STEADY_S - 0.01)
    assert pauses.next_s() == MOST_S
    pauses.lasted(STEADY_S)
    assert taken(pauses, 2) == [0.0, FIRST_S]
