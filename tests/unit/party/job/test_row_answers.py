"""Answers that tell something of rows are counted, on disk, before they are given."""

from __future__ import annotations

import queue
from pathlib import Path

import pytest

from baseline.evaluate import simulation_spec
from party.config import PartyConfig
from party.daemon import Daemon
from party.job.row_answers import DAY_S, FILE, RowAnswers, looks_at_rows
from tests.unit.party.test_consent import catalogue as catalogue
from tests.unit.trainers.columns.clicks import BANK, job, section, write_tables
from veil.errors import StateError
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.identity.trial import make_consortium
from veil.jobs.columns import ColumnsTrainer
from veil.jobs.spec import digest as job_digest
from veil.recsys.catalogue import Catalogue
from veil.wire.v1 import coordinator_pb2, job_pb2


def digest(number: int) -> bytes:
    return number.to_bytes(32, "big")


def at(state: Path, now: list[float], most: int = 3) -> RowAnswers:
    return RowAnswers(state, most, clock=lambda: now[0])


def test_so_many_different_jobs_within_a_day_also_across_restarts(tmp_path: Path) -> None:
    now = [1e9]
    answers = at(tmp_path, now)
    assert [answers.admit(digest(n)) for n in (1, 2, 2, 1, 3, 4)] == [True] * 5 + [False]
    now[0] += DAY_S / 2
    again = at(tmp_path, now)
    assert [again.admit(digest(n)) for n in (3, 4, 5)] == [True, False, False]
    now[0] += DAY_S / 2 - 1
    assert not again.admit(digest(4))
    now[0] += 2
    assert [again.admit(digest(n)) for n in (4, 5, 6, 1)] == [True, True, True, False]
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600


def test_a_clock_that_is_set_back_frees_nothing(tmp_path: Path) -> None:
    now = [1e9]
    answers = at(tmp_path, now, most=1)
    assert answers.admit(digest(1))
    now[0] -= 10 * DAY_S
    assert not answers.admit(digest(2))


def test_nothing_is_admitted_that_could_not_be_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("No space left on device")

    answers = at(tmp_path, [1e9], most=1)
    with monkeypatch.context() as patched:
        patched.setattr("party.job.row_answers.write_atomic", full)
        with pytest.raises(OSError, match="No space"):
            answers.admit(digest(1))
    assert answers.admit(digest(2)) and not answers.admit(digest(1))


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"00": 1}', b'{"' + b"0" * 64 + b'": "x"}', b"\xff"])
def test_a_record_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(StateError, match=FILE):
        at(tmp_path, [1e9])


def test_jobs_on_columns_look_at_rows_and_others_do_not(catalogue: Catalogue) -> None:
    assert looks_at_rows(job())
    assert not looks_at_rows(simulation_spec(catalogue, epsilon=3.0, delta=1e-5))


def test_more_jobs_on_columns_than_that_wait_for_a_person(tmp_path: Path) -> None:
    """Whether 149 rows or 150 are there is found by asking; by rules alone it is answered so many times."""
    folders = make_consortium(tmp_path / "certs", "trial", [BANK])
    own = folders[Identity("trial", Role.PARTY, BANK)]
    config = PartyConfig.model_validate(
        {
            "listen": "127.0.0.1:0",
            "advertise": "127.0.0.1:1",
            "credentials": own,
            "state": tmp_path / "state",
            "coordinator": {"address": "127.0.0.1:1"},
            "dealer": {"address": "127.0.0.1:1", "name": "main"},
            "columns": section(BANK, write_tables(tmp_path)[BANK]),
            "budget": {"epsilon": 100.0, "delta": 1e-5},
            "approval": {"mode": "policy", "max_epsilon_per_job": 10.0, "row_answers_a_day": 2},
        }
    )
    daemon = Daemon(config, Credentials.load(own))

    def asked(number: int) -> str | None:
        rows = 150 if number % 2 == 0 else 149  # the party has 150
        spec = job()
        assert isinstance(spec.trainer, ColumnsTrainer)
        alignment = spec.trainer.alignment.model_copy(update={"sizes": (rows, 150)})
        trainer = spec.trainer.model_copy(update={"alignment": alignment})
        text = spec.model_copy(update={"nonce": f"{number:032x}", "trainer": trainer}).text()
        shown = job_pb2.Job(job_id=f"{number:032x}", text=text, digest=job_digest(text))
        daemon._handle(coordinator_pb2.JoinResponse(propose=coordinator_pb2.ProposeJob(job=shown)))
        try:
            return str(daemon.link._outgoing.get_nowait().WhichOneof("report"))
        except queue.Empty:
            return None

    assert [asked(number) for number in (0, 1, 1, 2, 3)] == ["signed", "refused", "refused", None, None]
    assert [one.job_id for one in daemon.pending()] == [f"{2:032x}", f"{3:032x}"]
    daemon.approve(f"{2:032x}", daemon.pending()[0].digest)
    assert daemon.link._outgoing.get_nowait().WhichOneof("report") == "signed"
