"""Reports are within bounds, and the same after a trip over the wire."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veil import errors
from veil.errors import BudgetError, DataError, PeerLost, VeilError, WireError
from veil.jobs import convert
from veil.jobs.reports import Failure, Outcome, Progress, sentence
from veil.jobs.signing import Approval
from veil.wire.v1 import job_pb2

NAMES = st.from_regex(r"[a-z0-9][a-z0-9-]{0,47}", fullmatch=True)
COUNTS = st.integers(0, 2**63 - 1)


@given(NAMES, st.integers(0, 10_000), COUNTS, COUNTS)
def test_progress_over_the_wire(step: str, total: int, sent: int, elapsed_ms: int) -> None:
    progress = Progress(step, total // 2, total, sent, sent, sent, elapsed_ms)
    assert convert.progress_from_wire(convert.progress_to_wire(progress)) == progress


@given(st.binary(min_size=32, max_size=32), COUNTS, st.sampled_from(["1e-05", "0.000001", "1e-6"]))
def test_outcome_over_the_wire(manifest: bytes, epsilon_micro: int, delta: str) -> None:
    outcome = Outcome(manifest, epsilon_micro, delta)
    assert convert.outcome_from_wire(convert.outcome_to_wire(outcome)) == outcome


@given(st.text(max_size=3000), st.lists(NAMES, max_size=8))
def test_failure_over_the_wire(text: str, culprits: list[str]) -> None:
    failure = Failure("PEER_LOST", text, tuple(culprits))
    assert convert.failure_from_wire(convert.failure_to_wire(failure)) == failure


def test_approval_over_the_wire() -> None:
    approval = Approval("alpha", b"signature", b"certificate")
    assert convert.approval_from_wire(convert.approval_to_wire(approval)) == approval


@given(st.text())
def test_a_sentence_is_one_printable_line(text: str) -> None:
    line = sentence(text)
    assert len(line) <= 1024
    assert all(c.isprintable() for c in line)
    assert sentence(line) == line


@pytest.mark.parametrize(
    "make",
    [
        lambda: Progress("Load", 0, 1),
        lambda: Progress("load\n", 0, 1),
        lambda: Progress("", 0, 1),
        lambda: Progress("load", 2, 1),
        lambda: Progress("load", -1, 1),
        lambda: Progress("load", 0, 10_001),
        lambda: Progress("load", 0, 1, bytes_sent=2**63),
        lambda: Outcome(b"m" * 31, 0, "1"),
        lambda: Outcome(b"m" * 32, -1, "1"),
        lambda: Outcome(b"m" * 32, 0, "inf"),
        lambda: Outcome(b"m" * 32, 0, "1e-05\n"),
        lambda: Failure("", "why"),
        lambda: Failure("peer", "why"),
        lambda: Failure("PEER", "why", ("Alpha",)),
        lambda: Failure("PEER", "why", ("a",) * 33),
        lambda: convert.approval_from_wire(job_pb2.Approval(party="a", signature=b"s", certificate_pem="ü")),
        lambda: convert.approval_from_wire(job_pb2.Approval(signature=b"s", certificate_pem="c")),
    ],
)
def test_out_of_bounds(make: object) -> None:
    with pytest.raises(WireError):
        make()  # type: ignore[operator]


def test_every_error_survives_as_a_failure() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, VeilError)]
    assert len(kinds) > 10
    for kind in kinds:
        again = Failure.of(kind("got this, expected that"), otherwise=("alpha",)).error(hint="do this")
        assert type(again) is kind
        assert (again.message, again.hint) == ("got this, expected that", "do this")


def test_culprits_of_a_failure() -> None:
    assert Failure.of(PeerLost("lost", culprits=("beta",)), otherwise=("alpha",)).culprits == ("beta",)
    assert Failure.of(BudgetError("too much"), otherwise=("alpha",)).culprits == ("alpha",)
    error = Failure("PEER_LOST", "lost", ("beta",)).error()
    assert isinstance(error, PeerLost)
    assert error.culprits == ("beta",)
    assert type(Failure("FROM_THE_FUTURE", "what").error()) is VeilError
    assert Failure.of(DataError("bad rows", lines=[3])).code == "DATA"
