"""What a program's place measures, and what it does not show."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from veil.errors import InputError
from veil.mpc.communicator import TensorCommunicator
from veil.mpc.loopback import loopback
from veil.mpc.seat import Measured, Seat


def seats(**changes: Any) -> list[Seat]:
    given: dict[str, Any] = {
        "job_text": "{}",
        "job_digest": bytes(32),
        "seed": b"s" * 32,
        "correct": None,
        "triples": "dealer",
        "folder": Path("."),
        "options": {"steps": 4.0, "learning_rate": 0.5},
    }
    names = ("alpha", "beta")
    return [
        Seat(communicator=TensorCommunicator(transport, names, timeout_s=10), **(given | changes))
        for transport in loopback(2)
    ]


def test_bytes_and_rounds_are_of_one_step_and_leave_the_barriers_out() -> None:
    done: list[tuple[int, int]] = []

    def act(seat: Seat) -> Measured:
        def step(number: int) -> None:
            done.append((seat.rank, number))
            seat.communicator.all_reduce(torch.ones(100, dtype=torch.int64))

        return seat.measure(step, seat.number("steps"))

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(act, seats()))
    for measured in found:
        assert measured.rounds == 1
        assert 800 < measured.bytes_sent < 900
        assert len(measured.step_ms) == 4
        assert 0 < sum(measured.step_ms) <= measured.total_ms
        assert measured.document()["step_ms"] == list(measured.step_ms)
    assert sorted(done) == [(rank, number) for rank in range(2) for number in range(4)]


def test_what_it_refuses_and_what_it_does_not_show() -> None:
    seat = seats()[0]
    assert (seat.rank, seat.parties) == (0, 2)
    assert repr(seat) == "Seat(rank=0, triples='dealer')"
    with pytest.raises(InputError, match="learning_rate"):
        seat.number("learning_rate")
    with pytest.raises(InputError, match="elements"):
        seat.number("elements")
    with pytest.raises(InputError, match="0 steps"):
        seat.measure(lambda _: None, 0)
