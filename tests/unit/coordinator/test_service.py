"""The coordinator as its callers meet it: over mutual TLS, with parties that are real clients."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import grpc
import pytest

from cli.job_client import Desk, cancel_job, get_job, list_jobs, submit_job, watch_job
from coordinator.__main__ import Coordinator
from coordinator.config import CoordinatorConfig, Deadlines
from veil.errors import (
    ConfigError,
    IdentityError,
    InputError,
    PeerLost,
    PolicyError,
    SignatureError,
    StateError,
    VeilError,
    WireError,
)
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.jobs import convert
from veil.jobs.reports import Failure
from veil.jobs.spec import JobSpec, digest
from veil.wire.channel import open_channel
from veil.wire.status import from_rpc, translated
from veil.wire.v1 import coordinator_pb2 as wire
from veil.wire.v1 import job_pb2
from veil.wire.v1.coordinator_pb2_grpc import CoordinatorServiceStub


@pytest.fixture
def desk(coordinator: Coordinator, credentials: Callable[..., Credentials]) -> Desk:
    return Desk(coordinator.address, credentials("main", Role.OPERATOR))


@contextmanager
def calling(coordinator: Coordinator, caller: Credentials) -> Iterator[CoordinatorServiceStub]:
    expect = Identity(caller.identity.consortium, Role.COORDINATOR, "main")
    with translated("coordinator"), open_channel(coordinator.address, caller, expect) as channel:
        yield CoordinatorServiceStub(channel)


def started(desk: Desk, party: Callable, make_spec: Callable[..., JobSpec], *names: str) -> tuple[job_pb2.Job, list]:
    """A job that its parties have been told to start."""
    members = [party(name).join() for name in names]
    job = submit_job(desk, make_spec(*names))
    for member in members:
        member.consent()
    for member in members:
        member.hear("start")
    return job, members


def ending(desk: Desk, job_id: str) -> VeilError:
    with pytest.raises(VeilError) as caught:
        list(watch_job(desk, job_id))
    return caught.value


def test_happy_path(desk: Desk, party: Callable, make_spec: Callable[..., JobSpec], coordinator: Coordinator) -> None:
    names = ("alpha", "beta", "gamma")
    members = {name: party(name).join() for name in names}
    spec = make_spec(*names)
    job = submit_job(desk, spec)
    assert job.text == spec.text()
    assert job.digest == digest(spec.text())
    for member in members.values():
        proposed = member.consent()
        assert proposed == job
    for member in members.values():
        start = member.hear("start").start
        assert [peer.party for peer in start.peers] == list(names)
        assert [peer.address for peer in start.peers] == [f"{name}:7100" for name in names]
        assert [approval.party for approval in start.approvals] == list(names)
    for member in members.values():
        member.progress(job.job_id, "load", 1)
        member.progress(job.job_id, "counts", 2)
        member.done(job.job_id)
    for member in members.values():
        assert member.hear("confirmed").confirmed.job_id == job.job_id
    events = list(watch_job(desk, job.job_id))
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert events[-1].phase == job_pb2.JOB_PHASE_DONE
    assert events[-1].outcome.manifest_digest == b"m" * 32
    assert {event.party for event in events if event.HasField("progress")} == set(names)
    record = get_job(desk, job.job_id[:8])
    assert record.phase == job_pb2.JOB_PHASE_DONE
    assert list(record.signed_by) == list(names)
    assert [(each.party, each.progress.step) for each in record.progress] == [(name, "counts") for name in names]
    assert record.outcome.epsilon_micro == 2_999_999
    assert record.ended_ms >= record.submitted_ms > 0
    assert [each.job.job_id for each in list_jobs(desk)] == [job.job_id]


def test_watch_is_live(desk: Desk, party: Callable, make_spec: Callable[..., JobSpec]) -> None:
    job, (alpha, beta) = started(desk, party, make_spec, "alpha", "beta")
    events = watch_job(desk, job.job_id)
    seen = [next(events)]
    while seen[-1].line != "started at alpha, beta":
        seen.append(next(events))
    alpha.progress(job.job_id, "counts", 2)
    event = next(events)
    assert (event.party, event.progress.step, event.progress.bytes_sent) == ("alpha", "counts", 10)
    # the same step again: newer numbers, no new line of the history
    alpha.progress(job.job_id, "counts", 2)
    again = next(events)
    assert (again.sequence, again.line, again.progress.step) == (event.sequence, "", "counts")
    alpha.done(job.job_id)
    beta.done(job.job_id)
    rest = list(events)
    assert rest[-1].phase == job_pb2.JOB_PHASE_DONE


def test_refusal_reaches_everybody(desk: Desk, party: Callable, make_spec: Callable[..., JobSpec]) -> None:
    alpha, beta = party("alpha").join(), party("beta").join()
    job = submit_job(desk, make_spec("alpha", "beta"))
    alpha.consent()
    beta.hear("propose")
    refusal = Failure("BUDGET", "the ledger of beta allows epsilon 1 at most")
    beta.say(refused=wire.JobRefused(job_id=job.job_id, failure=convert.failure_to_wire(refusal)))
    stop = alpha.hear("stop").stop
    assert stop.failure.sentence == refusal.sentence
    error = ending(desk, job.job_id)
    assert isinstance(error, PolicyError)
    assert error.hint
    assert list(get_job(desk, job.job_id).failure.culprits) == ["beta"]


def test_signature_over_another_digest(desk: Desk, party: Callable, make_spec: Callable[..., JobSpec]) -> None:
    alpha, beta = party("alpha").join(), party("beta").join()
    job = submit_job(desk, make_spec("alpha", "beta"))
    alpha.consent()
    # the two streams are read side by side: alpha's word must have arrived before beta's ends the job
    until = time.monotonic() + 20
    while list(get_job(desk, job.job_id).signed_by) != ["alpha"]:
        assert time.monotonic() < until
        time.sleep(0.02)
    beta.sign(beta.hear("propose").propose.job, over=digest(make_spec("alpha", "beta").text()))
    alpha.hear("stop")
    assert isinstance(ending(desk, job.job_id), SignatureError)
    record = get_job(desk, job.job_id)
    assert list(record.failure.culprits) == ["beta"]
    assert list(record.signed_by) == ["alpha"]


def test_signature_of_somebody_else(desk: Desk, party: Callable, make_spec: Callable[..., JobSpec]) -> None:
    alpha, beta = party("alpha").join(), party("beta").join()
    job = submit_job(desk, make_spec("alpha", "beta"))
    beta.credentials = alpha.credentials
    beta.consent()
    assert isinstance(ending(desk, job.job_id), SignatureError)
    assert list(get_job(desk, job.job_id).failure.culprits) == ["beta"]


def test_party_lost_in_mid_round_is_named(desk: Desk, party: Callable, make_spec: Callable[..., JobSpec]) -> None:
    job, (alpha, beta, gamma) = started(desk, party, make_spec, "alpha", "beta", "gamma")
    alpha.progress(job.job_id, "counts", 2)
    # the survivors' reports come first, one of them blames a survivor
    gamma.failed(job.job_id, "PEER_LOST", "lost beta", "beta")
    beta.failed(job.job_id, "PEER_LOST", "lost alpha", "alpha")
    alpha.leave()
    error = ending(desk, job.job_id)
    assert isinstance(error, PeerLost)
    assert error.culprits == ("alpha",)
    assert list(beta.hear("stop").stop.failure.culprits) == ["alpha"]
    assert list(gamma.hear("stop").stop.failure.culprits) == ["alpha"]
    # it comes back and is told to stop
    assert party("alpha").join().hear("stop").stop.job_id == job.job_id


def test_different_models(desk: Desk, party: Callable, make_spec: Callable[..., JobSpec]) -> None:
    job, (alpha, beta, gamma) = started(desk, party, make_spec, "alpha", "beta", "gamma")
    alpha.done(job.job_id)
    beta.done(job.job_id, b"x" * 32)
    gamma.done(job.job_id)
    assert "different models" in str(ending(desk, job.job_id))
    assert list(get_job(desk, job.job_id).failure.culprits) == ["beta"]


def test_cancel(desk: Desk, party: Callable, make_spec: Callable[..., JobSpec]) -> None:
    job, (alpha, _) = started(desk, party, make_spec, "alpha", "beta")
    assert cancel_job(desk, job.job_id) == "cancelled"
    assert cancel_job(desk, job.job_id) == "cancelled"
    assert alpha.hear("stop").stop.failure.sentence == "cancelled by main"
    assert isinstance(ending(desk, job.job_id), StateError)


def test_a_newer_stream_replaces_the_older(desk: Desk, party: Callable, make_spec: Callable[..., JobSpec]) -> None:
    older = party("alpha").join()
    newer = party("alpha").join()
    error = older.hear_end()
    assert isinstance(error, grpc.RpcError)
    assert "newer stream" in str(from_rpc(error, "coordinator"))
    submit_job(desk, make_spec("alpha", "beta"))
    newer.hear("propose")


def test_late_join(desk: Desk, party: Callable, make_spec: Callable[..., JobSpec]) -> None:
    job = submit_job(desk, make_spec("alpha", "beta"))
    alpha = party("alpha").join()
    alpha.consent()
    beta = party("beta").join()
    beta.consent()
    assert alpha.hear("start").start.job_id == beta.hear("start").start.job_id == job.job_id


@pytest.mark.parametrize(
    ("first", "says"),
    [
        (wire.JoinRequest(heartbeat=wire.Heartbeat()), "expected Hello"),
        (wire.JoinRequest(), "expected Hello"),
        (wire.JoinRequest(hello=wire.Hello(protocol_version=2, mesh_address="a:1")), "protocol version 2"),
        (wire.JoinRequest(hello=wire.Hello(protocol_version=1, mesh_address="a:0")), "port 0"),
        (wire.JoinRequest(hello=wire.Hello(protocol_version=1, mesh_address="http://a/")), "mesh address"),
        (wire.JoinRequest(hello=wire.Hello(protocol_version=1)), "mesh address"),
    ],
)
def test_bad_hello(party: Callable, first: wire.JoinRequest, says: str) -> None:
    alpha = party("alpha")
    alpha.outgoing.put(first)
    error = alpha.hear_end()
    assert isinstance(error, grpc.RpcError)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    assert says in str(from_rpc(error, "coordinator"))


def _progress(job_id: str, step: str, done: int, total: int) -> wire.JoinRequest:
    progress = job_pb2.Progress(step=step, done=done, total=total)
    return wire.JoinRequest(progress=wire.JobProgress(job_id=job_id, progress=progress))


@pytest.mark.parametrize(
    "make",
    [
        lambda job_id: _progress("../../etc", "load", 1, 5),
        lambda job_id: _progress(job_id, "round-9", 1, 5),
        lambda job_id: _progress(job_id, "\x1b[2J", 1, 5),
        lambda job_id: _progress(job_id, "load", 6, 5),
        lambda job_id: _progress(job_id, "load", 1, 2**31),
        lambda job_id: wire.JoinRequest(done=wire.JobDone(job_id=job_id, outcome=job_pb2.Outcome(delta="1e-6"))),
        lambda job_id: wire.JoinRequest(
            done=wire.JobDone(job_id=job_id, outcome=job_pb2.Outcome(manifest_digest=b"m" * 32, delta="nan"))
        ),
        lambda job_id: wire.JoinRequest(failed=wire.JobFailed(job_id=job_id)),
        lambda job_id: wire.JoinRequest(signed=wire.JobSigned(job_id=job_id)),
        lambda job_id: wire.JoinRequest(
            signed=wire.JobSigned(
                job_id=job_id,
                approval=job_pb2.Approval(party="alpha", signature=b"s" * 10_000, certificate_pem="x"),
            )
        ),
        lambda job_id: wire.JoinRequest(hello=wire.Hello(protocol_version=1, mesh_address="alpha:7100")),
        lambda job_id: wire.JoinRequest(),
    ],
)
def test_bad_report_ends_the_stream_and_names_the_party(
    desk: Desk, party: Callable, make_spec: Callable[..., JobSpec], make: Callable[[str], wire.JoinRequest]
) -> None:
    job, (alpha, beta) = started(desk, party, make_spec, "alpha", "beta")
    alpha.outgoing.put(make(job.job_id))
    error = alpha.hear_end()
    assert isinstance(error, grpc.RpcError)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    assert list(beta.hear("stop").stop.failure.culprits) == ["alpha"]
    # the coordinator lives
    party("alpha").join()


def test_report_on_a_job_that_names_others(desk: Desk, party: Callable, make_spec: Callable[..., JobSpec]) -> None:
    job, (alpha, _) = started(desk, party, make_spec, "alpha", "beta")
    gamma = party("gamma").join()
    gamma.failed(job.job_id, "PEER_LOST", "lost alpha", "alpha")
    error = gamma.hear_end()
    assert isinstance(error, grpc.RpcError)
    assert "does not name it" in str(from_rpc(error, "coordinator"))
    alpha.progress(job.job_id, "counts", 2)
    assert get_job(desk, job.job_id).phase in (job_pb2.JOB_PHASE_STARTING, job_pb2.JOB_PHASE_RUNNING)


def test_report_on_an_unknown_job_is_answered_with_a_stop(party: Callable) -> None:
    alpha = party("alpha").join()
    alpha.progress("f" * 32, "load", 1)
    assert alpha.hear("stop").stop.job_id == "f" * 32


def test_long_and_colourful_sentences_are_cut(desk: Desk, party: Callable, make_spec: Callable[..., JobSpec]) -> None:
    job, (alpha, _) = started(desk, party, make_spec, "alpha", "beta")
    alpha.say(
        failed=wire.JobFailed(
            job_id=job.job_id, failure=job_pb2.Failure(code="DATA", sentence="\x1b[2Jgone\n" + "x" * 100_000)
        )
    )
    ending(desk, job.job_id)
    sentence = get_job(desk, job.job_id).failure.sentence
    assert sentence.startswith("[2Jgone x")
    assert len(sentence) == 1024
    assert sentence.isprintable()


def test_who_may_join(party: Callable) -> None:
    stranger = party("delta")
    stranger.hello()
    error = stranger.hear_end()
    assert isinstance(error, grpc.RpcError)
    assert isinstance(from_rpc(error, "coordinator"), IdentityError)
    operator = party("main", Role.OPERATOR)
    operator.hello()
    error = operator.hear_end()
    assert isinstance(error, grpc.RpcError)
    assert isinstance(from_rpc(error, "coordinator"), IdentityError)


@pytest.mark.parametrize(
    "call",
    [
        lambda stub: stub.SubmitJob(wire.SubmitJobRequest(text="{}")),
        lambda stub: stub.GetJob(wire.GetJobRequest(job_id="0" * 32)),
        lambda stub: stub.ListJobs(wire.ListJobsRequest()),
        lambda stub: list(stub.WatchJob(wire.WatchJobRequest(job_id="0" * 32))),
        lambda stub: stub.CancelJob(wire.CancelJobRequest(job_id="0" * 32)),
    ],
)
def test_parties_are_no_operators(
    coordinator: Coordinator,
    credentials: Callable[..., Credentials],
    call: Callable[[CoordinatorServiceStub], object],
) -> None:
    with calling(coordinator, credentials("alpha")) as stub, pytest.raises(grpc.RpcError) as caught:
        call(stub)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED  # type: ignore[attr-defined]


@pytest.mark.parametrize("role", [Role.DEALER, Role.CLIENT, Role.SCORING])
def test_other_roles_are_refused(coordinator: Coordinator, credentials: Callable[..., Credentials], role: Role) -> None:
    with pytest.raises(IdentityError), calling(coordinator, credentials("main", role)) as stub:
        stub.ListJobs(wire.ListJobsRequest())


def test_bad_submissions(desk: Desk, make_spec: Callable[..., JobSpec]) -> None:
    with pytest.raises(ConfigError, match="roster"):
        submit_job(desk, make_spec("alpha", "delta"))
    with pytest.raises(ConfigError, match="consortium"):
        submit_job(desk, make_spec(consortium="another"))
    with desk.stub() as stub:
        for text in ("", "{}", make_spec().text() + " ", "[" * 100_000, "x" * 300_000, "\ud7ff"):
            with pytest.raises(grpc.RpcError) as caught:
                stub.SubmitJob(wire.SubmitJobRequest(text=text))
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    assert list_jobs(desk) == []


def test_bad_questions(desk: Desk) -> None:
    with pytest.raises(InputError, match="registered"):
        get_job(desk, "0" * 32)
    with pytest.raises(InputError, match="registered"):
        list(watch_job(desk, "0" * 32))
    with pytest.raises(WireError, match="32 lower-case hex"):
        get_job(desk, "G" * 32)
    with pytest.raises(WireError, match="limit"):
        list_jobs(desk, 501)
    with pytest.raises(StateError, match="fits 0 recent jobs"):
        get_job(desk, "abc")


def test_the_same_text_again_is_the_same_job(desk: Desk, make_spec: Callable[..., JobSpec]) -> None:
    spec = make_spec()
    job = submit_job(desk, spec)
    assert submit_job(desk, spec).job_id == job.job_id
    cancel_job(desk, job.job_id)
    with pytest.raises(StateError, match="has ended"):
        submit_job(desk, spec)


def test_open_jobs_are_bounded(config: CoordinatorConfig, desk: Desk, make_spec: Callable[..., JobSpec]) -> None:
    jobs = [submit_job(desk, make_spec()) for _ in range(config.limits.open_jobs)]
    with pytest.raises(StateError, match="open at once"):
        submit_job(desk, make_spec())
    cancel_job(desk, jobs[0].job_id)
    submit_job(desk, make_spec())
    assert len(list_jobs(desk, 5)) == 5


def test_restart(
    config: CoordinatorConfig,
    credentials: Callable[..., Credentials],
    make_spec: Callable[..., JobSpec],
    party_at: Callable,
) -> None:
    operator = credentials("main", Role.OPERATOR)
    with Coordinator(config) as first:
        desk = Desk(first.address, operator)
        alpha, beta = (party_at(first.address, name).join() for name in ("alpha", "beta"))
        running = submit_job(desk, make_spec("alpha", "beta"))
        alpha.consent()
        beta.consent()
        alpha.hear("start")
        proposed = submit_job(desk, make_spec("alpha", "gamma"))
        alpha.consent()
        while not get_job(desk, proposed.job_id).signed_by:
            time.sleep(0.01)
    # a clean stop tells the parties before it ends their streams
    assert alpha.hear("stop").stop.job_id == running.job_id
    alpha.leave()
    beta.leave()
    with Coordinator(config) as second:
        desk = Desk(second.address, operator)
        assert get_job(desk, running.job_id).phase == job_pb2.JOB_PHASE_FAILED
        assert list(get_job(desk, proposed.job_id).signed_by) == ["alpha"]
        alpha, gamma = (party_at(second.address, name).join() for name in ("alpha", "gamma"))
        alpha.hear("propose")
        gamma.consent()
        assert alpha.hear("start").start.job_id == proposed.job_id
        alpha.leave()
        gamma.leave()


def test_one_coordinator_per_store(coordinator: Coordinator, config: CoordinatorConfig) -> None:
    with pytest.raises(StateError, match="another coordinator"):
        Coordinator(config)


def test_store_is_private(coordinator: Coordinator, config: CoordinatorConfig) -> None:
    for path in config.store.parent.iterdir():
        assert path.stat().st_mode & 0o077 == 0, path


def test_only_a_coordinator_may_coordinate(config: CoordinatorConfig, consortium: dict[Identity, object]) -> None:
    other = config.model_copy(update={"credentials": consortium[Identity("trial", Role.PARTY, "alpha")]})
    with pytest.raises(StateError, match="role coordinator"):
        Coordinator(other)


def test_a_full_disk_changes_nothing(
    coordinator: Coordinator, desk: Desk, make_spec: Callable[..., JobSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise StateError("got disk full from the store")

    switchboard = coordinator._switchboard
    with monkeypatch.context() as broken:
        broken.setattr(switchboard._store, "commit", refuse)
        with pytest.raises(StateError, match="disk full"):
            submit_job(desk, make_spec())
    assert list_jobs(desk) == []
    submit_job(desk, make_spec())


def test_sqlite_is_threadsafe() -> None:
    # the store is used from the threads of the server, one at a time
    assert sqlite3.threadsafety == 3


def test_a_silent_party_is_hung_up_on(config: CoordinatorConfig, party_at: Callable) -> None:
    short = config.model_copy(update={"deadlines": Deadlines(heartbeat_interval_s=0.5, grace_s=1.0)})
    with Coordinator(short) as running:
        alpha = party_at(running.address, "alpha").join()
        error = alpha.hear_end()
        assert isinstance(error, grpc.RpcError)
        assert "no sign of life" in str(from_rpc(error, "coordinator"))


def test_streams_of_one_party_are_bounded(party: Callable) -> None:
    silent = [party("alpha") for _ in range(5)]
    while not (refused := [one for one in silent if not one.incoming.empty()]):
        time.sleep(0.01)
    error = refused[0].hear_end()
    assert isinstance(error, grpc.RpcError)
    assert "more than 4 streams" in str(from_rpc(error, "coordinator"))
    for one in silent:
        one.leave()
    party("beta").join()
