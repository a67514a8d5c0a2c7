"""What consent covers: one run, the party's own delta, its own choice of parties; and what the coordinator hears."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from baseline.evaluate import simulation_spec
from party.config import Approval, PartyConfig
from party.daemon import Daemon
from party.job.review import review
from veil import __version__
from veil.errors import DataError, InputError, PolicyError, StateError
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.identity.trial import make_consortium
from veil.jobs.spec import JobSpec, digest
from veil.privacy.ledger import Ledger
from veil.recsys import synthetic
from veil.recsys.catalogue import Catalogue
from veil.recsys.features import build_catalogue
from veil.wire.v1 import coordinator_pb2, job_pb2

_JOB_ID = "0123456789abcdef" * 2
_ME = Identity("simulation", Role.PARTY, "party-0")


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return build_catalogue(synthetic.generate(50, 320, seed=5).table)


def _spec(catalogue: Catalogue, *, delta: float = 1e-5) -> JobSpec:
    spec = simulation_spec(catalogue, epsilon=3.0, delta=delta)
    return spec.model_copy(
        update={"versions": {"veil": __version__, "dp-accounting": metadata.version("dp-accounting")}}
    )


def _review(spec: JobSpec, catalogue: Catalogue, ledger: Ledger, rules: Approval) -> Any:
    text = spec.text()
    return review(text, digest(text), me=_ME, dealer="dealer", catalogue=catalogue, ledger=ledger, rules=rules)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.sqlite", epsilon_limit=20.0, delta=1e-5)


def test_a_larger_delta_does_not_buy_a_larger_job(catalogue: Catalogue, ledger: Ledger) -> None:
    rules = Approval(max_epsilon_per_job=5.0)
    assert _review(_spec(catalogue), catalogue, ledger, rules).epsilon <= 3.0
    with pytest.raises(PolicyError, match=r"delta 0.009, expected at most 1e-05"):
        _review(_spec(catalogue, delta=0.009), catalogue, ledger, rules)


def test_a_party_chooses_with_whom_it_trains(catalogue: Catalogue, ledger: Ledger) -> None:
    _review(_spec(catalogue), catalogue, ledger, Approval(max_epsilon_per_job=5.0, parties=_spec(catalogue).parties))
    with pytest.raises(PolicyError, match="a job with party-2, expected parties"):
        _review(_spec(catalogue), catalogue, ledger, Approval(max_epsilon_per_job=5.0, parties=("party-0", "party-1")))


def test_a_job_on_record_is_not_signed_again_under_any_name(catalogue: Catalogue, ledger: Ledger) -> None:
    spec = _spec(catalogue)
    ledger.record("another-id", digest(spec.text()), spec.releases[0])
    with pytest.raises(StateError, match="has run here before"):
        _review(spec, catalogue, ledger, Approval(max_epsilon_per_job=5.0))


@pytest.fixture
def make_daemon(tmp_path: Path, catalogue: Catalogue) -> Callable[..., Daemon]:
    """A daemon that is not connected to anybody: commands are handed to it, reports stay in its queue."""
    folders = make_consortium(tmp_path / "certs", "simulation", ["party-0"])
    catalogue.save(tmp_path / "catalogue")
    rows = [f"user-{user},{catalogue.ids[user % 7]}" for user in range(20)]
    (tmp_path / "rows.csv").write_text("\n".join(["user,item", *rows]) + "\n")

    def make(mode: str = "policy") -> Daemon:
        config = PartyConfig.model_validate(
            {
                "listen": "127.0.0.1:0",
                "advertise": "127.0.0.1:1",
                "credentials": folders[_ME],
                "state": tmp_path / "state",
                "catalogue": tmp_path / "catalogue",
                "coordinator": {"address": "127.0.0.1:1"},
                "dealer": {"address": "127.0.0.1:1", "name": "dealer"},
                "data": {
                    "source": tmp_path / "rows.csv",
                    "pseudonym_key": tmp_path / "state" / "pseudonym.key",
                    "read": {"columns": {"user": "user", "item": "item"}},
                },
                "budget": {"epsilon": 20.0, "delta": 1e-5},
                "approval": {"mode": mode, "max_epsilon_per_job": 5.0},
            }
        )
        return Daemon(config, Credentials.load(folders[_ME]))

    return make


def _propose(spec: JobSpec, job_id: str = _JOB_ID) -> coordinator_pb2.JoinResponse:
    job = job_pb2.Job(job_id=job_id, text=spec.text(), digest=digest(spec.text()))
    return coordinator_pb2.JoinResponse(propose=coordinator_pb2.ProposeJob(job=job))


def _start(job_id: str = _JOB_ID) -> coordinator_pb2.JoinResponse:
    return coordinator_pb2.JoinResponse(start=coordinator_pb2.StartJob(job_id=job_id))


def _report(daemon: Daemon) -> coordinator_pb2.JoinRequest:
    return daemon.link._outgoing.get(timeout=30)


def test_an_approval_serves_one_start(make_daemon: Callable[..., Daemon], catalogue: Catalogue) -> None:
    daemon, spec = make_daemon("manual"), _spec(catalogue)
    daemon._handle(_propose(spec))
    daemon.approve(_JOB_ID, digest(spec.text()))
    assert _report(daemon).WhichOneof("report") == "signed"
    # a start without the others' signatures fails, and has used the approval up
    daemon._handle(_start())
    assert "no signature" in _report(daemon).failed.failure.sentence
    daemon._handle(_propose(spec))
    assert [job.job_id for job in daemon.pending()] == [_JOB_ID], "a person is asked again"
    daemon._handle(_start())
    assert "has not signed" in _report(daemon).failed.failure.sentence
    assert daemon.ledger.entries() == []


def test_an_approval_that_comes_too_late_is_told_to_the_coordinator(
    make_daemon: Callable[..., Daemon], catalogue: Catalogue
) -> None:
    daemon, spec = make_daemon("manual"), _spec(catalogue)
    daemon._handle(_propose(spec))
    daemon.ledger.record("meanwhile", digest(spec.text()), spec.releases[0])
    with pytest.raises(StateError, match="has run here before"):
        daemon.approve(_JOB_ID, digest(spec.text()))
    assert "has run here before" in _report(daemon).refused.failure.sentence


def test_rows_are_looked_at_after_a_person_has_approved(
    make_daemon: Callable[..., Daemon], catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[bool] = []
    original = review

    def reviewing(*arguments: Any, consented: bool, **more: Any) -> Any:
        looked.append(consented)
        return original(*arguments, consented=consented, **more)

    monkeypatch.setattr("party.daemon.review", reviewing)
    daemon, spec = make_daemon("manual"), _spec(catalogue)
    daemon._handle(_propose(spec))
    daemon._handle(_propose(spec))
    assert looked == [False, False]
    daemon.approve(_JOB_ID, digest(spec.text()))
    daemon._handle(_propose(spec))  # the coordinator shows it again, and the approval stands
    assert looked == [False, False, True, False, True]


def test_signatures_that_are_never_used_do_not_pile_up(
    make_daemon: Callable[..., Daemon], catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("party.daemon._MOST_PENDING", 2)
    daemon = make_daemon()
    for number in range(4):
        daemon._handle(_propose(_spec(catalogue), f"{number:032x}"))
    assert list(daemon._signed) == [f"{2:032x}", f"{3:032x}"]


@pytest.mark.parametrize("job_id", ["../../../etc/x", "a/b", "", "A" * 32, "0" * 31, "0" * 32 + "\n"])
def test_job_ids_never_become_paths(make_daemon: Callable[..., Daemon], catalogue: Catalogue, job_id: str) -> None:
    daemon = make_daemon()
    before = sorted(daemon.config.state.parent.rglob("*"))
    daemon._handle(_propose(_spec(catalogue), job_id))
    daemon._handle(_start(job_id))
    stop = coordinator_pb2.StopJob(job_id=job_id, failure=job_pb2.Failure(code="STATE", sentence="x"))
    daemon._handle(coordinator_pb2.JoinResponse(stop=stop))
    assert sorted(path for path in daemon.config.state.parent.rglob("*") if path.is_file()) == [
        path for path in before if path.is_file()
    ]


def test_whatever_a_command_does_the_next_one_is_heard(
    make_daemon: Callable[..., Daemon], catalogue: Catalogue, caplog: pytest.LogCaptureFixture
) -> None:
    daemon = make_daemon()
    # a disk that refuses writes is an OSError, not a VeilError
    (daemon.config.state / "approved").write_text("in the way")
    with caplog.at_level(logging.ERROR, logger="veil.party"):
        daemon._handle(_propose(_spec(catalogue)))
    assert "command propose broke" in caplog.text
    (daemon.config.state / "approved").unlink()
    daemon._handle(_propose(_spec(catalogue)))
    assert _report(daemon).WhichOneof("report") == "signed"


def test_the_coordinator_hears_nothing_of_rows_and_folders(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    daemon._report_failure(_JOB_ID, DataError("got NaN in rows at positions [17, 4711], expected numbers", lines=[17]))
    failure = _report(daemon).failed.failure
    assert failure.code == "DATA" and list(failure.culprits) == ["party-0"]
    assert not any(character.isdigit() for character in failure.sentence.replace("party-0", ""))
    path = daemon.prepared.path
    daemon._report_failure(_JOB_ID, InputError(f"got no readable file at {path}: no such file"))
    sentence = _report(daemon).failed.failure.sentence
    assert "rows.safetensors" in sentence and str(path.parent) not in sentence


def test_a_state_folder_that_is_open_or_lost_its_ledger_is_refused(make_daemon: Callable[..., Daemon]) -> None:
    state = make_daemon().config.state
    state.chmod(0o750)
    with pytest.raises(StateError, match="mode 0750"):
        make_daemon()
    state.chmod(0o700)
    (state / "models" / _JOB_ID).mkdir(parents=True)
    for file in state.glob("ledger.sqlite*"):
        file.unlink()
    with pytest.raises(StateError, match=r"without ledger\.sqlite"):
        make_daemon()
    assert not (state / "ledger.sqlite").exists()


def test_a_half_written_copy_of_the_rows_does_not_stay(make_daemon: Callable[..., Daemon]) -> None:
    rows = make_daemon().prepared.path
    leftover = rows.with_name(f".{rows.name}.abcdef.tmp")
    leftover.write_bytes(b"rows")
    make_daemon()
    assert not leftover.exists() and rows.stat().st_mode & 0o777 == 0o600
