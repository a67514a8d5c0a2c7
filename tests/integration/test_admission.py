"""Who is let in: wrong and missing certificates, oversize messages, and a coordinator that lies."""

from __future__ import annotations

import queue
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from cli import job_client
from tests.integration.conftest import PARTIES, Trial
from veil import __version__
from veil.errors import IdentityError, StateError, WireError
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.identity.trial import make_consortium
from veil.jobs import convert, signing
from veil.jobs.spec import digest
from veil.wire.channel import Service, open_channel, serve
from veil.wire.status import translated
from veil.wire.v1 import coordinator_pb2, coordinator_pb2_grpc, job_pb2

pytestmark = pytest.mark.integration


def _join(address: str, credentials: Credentials, consortium: str) -> coordinator_pb2.JoinResponse:
    expect = Identity(consortium, Role.COORDINATOR, "main")
    hello = coordinator_pb2.Hello(protocol_version=1, software_version=__version__, mesh_address="127.0.0.1:1")
    with translated("coordinator"), open_channel(address, credentials, expect) as channel:
        stub = coordinator_pb2_grpc.CoordinatorServiceStub(channel)
        return next(stub.Join(iter([coordinator_pb2.JoinRequest(hello=hello)]), timeout=20))


def test_wrong_role_and_foreign_authority_are_refused_on_both_sides(
    make_trial: Callable[[], Trial], tmp_path: Path
) -> None:
    trial = make_trial()
    address = trial.consortium.start_coordinator().address

    client = Credentials.load(trial.consortium.credentials(Role.CLIENT))
    with pytest.raises(IdentityError, match="veil://trial/client/main") as refused:
        _join(address, client, "trial")
    assert "party" in str(refused.value)
    assert "veil://trial/client/main" in trial.log("coordinator")

    foreign = make_consortium(tmp_path / "foreign", "trial", ["alpha"])
    stranger = Credentials.load(foreign[Identity("trial", Role.PARTY, "alpha")])
    with pytest.raises(IdentityError):
        _join(address, stranger, "trial")

    # a caller that expects somebody else learns whom it met, and the one it met learns that too
    party = Credentials.load(trial.consortium.credentials(Role.PARTY, "alpha"))
    expect = Identity("trial", Role.COORDINATOR, "other")
    with (
        pytest.raises(IdentityError, match="veil://trial/coordinator/main"),
        translated("coordinator"),
        open_channel(address, party, expect) as channel,
    ):
        coordinator_pb2_grpc.CoordinatorServiceStub(channel).ListJobs(coordinator_pb2.ListJobsRequest())
    assert "veil://trial/coordinator/other" in trial.log("coordinator")

    # without a certificate there is no connection at all
    roots = grpc.ssl_channel_credentials(party.authority_pem)
    options = [("grpc.ssl_target_name_override", Identity("trial", Role.COORDINATOR, "main").dns)]
    with grpc.secure_channel(address, roots, options) as bare, pytest.raises(grpc.RpcError) as unavailable:
        coordinator_pb2_grpc.CoordinatorServiceStub(bare).ListJobs(coordinator_pb2.ListJobsRequest(), timeout=10)
    assert unavailable.value.code() is grpc.StatusCode.UNAVAILABLE

    # the good party still gets in
    assert _join(address, party, "trial").WhichOneof("command") == "welcome"


def test_a_daemon_with_a_certificate_of_another_role_does_not_start(make_trial: Callable[[], Trial]) -> None:
    trial = make_trial()
    with pytest.raises(StateError, match="expected one of role party"):
        trial.start_party("alpha", credentials=str(trial.consortium.credentials(Role.CLIENT)))
    key = trial.root / "loose"
    shutil.copytree(trial.consortium.credentials(Role.PARTY, "alpha"), key)
    (key / "key.pem").chmod(0o644)
    with pytest.raises(StateError, match=r"0?600"):
        trial.start_party("alpha", credentials=str(key))


def test_an_oversize_message_is_refused_and_the_coordinator_lives(make_trial: Callable[[], Trial]) -> None:
    trial = make_trial()
    trial.consortium.start_coordinator()
    with trial.desk.stub() as stub, pytest.raises(WireError) as refused, translated("coordinator"):
        stub.SubmitJob(coordinator_pb2.SubmitJobRequest(text="x" * (5 * 2**20)))
    assert "4194304" in str(refused.value) or "MiB" in str(refused.value) or "expected" in str(refused.value)
    assert job_client.list_jobs(trial.desk) == []
    assert trial.consortium.processes["coordinator"].alive


class _LyingCoordinator(coordinator_pb2_grpc.CoordinatorServiceServicer):
    """Holds the coordinator's certificate and says to one party whatever a test wants."""

    def __init__(self) -> None:
        self.commands: queue.Queue[coordinator_pb2.JoinResponse] = queue.Queue()
        self.reports: queue.Queue[coordinator_pb2.JoinRequest] = queue.Queue()

    def Join(
        self, request_iterator: Iterator[coordinator_pb2.JoinRequest], context: grpc.ServicerContext
    ) -> Iterator[coordinator_pb2.JoinResponse]:
        def read() -> None:
            try:
                for request in request_iterator:
                    if request.WhichOneof("report") not in ("heartbeat", "hello"):
                        self.reports.put(request)
            except grpc.RpcError:
                return

        threading.Thread(target=read, daemon=True).start()
        yield coordinator_pb2.JoinResponse(welcome=coordinator_pb2.Welcome(heartbeat_interval_ms=1000))
        while context.is_active():
            try:
                yield self.commands.get(timeout=0.2)
            except queue.Empty:
                continue


def test_a_lying_coordinator_gets_nothing_started(make_trial: Callable[[], Trial]) -> None:
    trial = make_trial()
    liar = _LyingCoordinator()
    service = Service(
        "veil.wire.v1.CoordinatorService",
        lambda server: coordinator_pb2_grpc.add_CoordinatorServiceServicer_to_server(liar, server),
        frozenset({Role.PARTY}),
    )
    credentials = Credentials.load(trial.consortium.credentials(Role.COORDINATOR))
    with serve(trial.consortium.address("coordinator"), credentials, [service]):
        trial.start_party("alpha")
        text = trial.plan().text()
        honest = digest(text)

        # another digest than the text's: the party computes its own and refuses
        wrong = bytes(32)
        job = job_pb2.Job(job_id="a" * 32, text=text, digest=wrong)
        liar.commands.put(coordinator_pb2.JoinResponse(propose=coordinator_pb2.ProposeJob(job=job)))
        refusal = liar.reports.get(timeout=60).refused
        assert refusal.failure.code == "CONFIG" and "digest" in refusal.failure.sentence

        # alpha signs an honest proposal; beta's signature is over another text: alpha does not run and names beta
        job = job_pb2.Job(job_id="b" * 32, text=text, digest=honest)
        liar.commands.put(coordinator_pb2.JoinResponse(propose=coordinator_pb2.ProposeJob(job=job)))
        assert liar.reports.get(timeout=60).signed.approval.party == "alpha"
        approvals = []
        for party in PARTIES:
            own = Credentials.load(trial.consortium.credentials(Role.PARTY, party))
            signed = digest(trial.plan().text()) if party == "beta" else honest
            approvals.append(convert.approval_to_wire(signing.approve(own, signed)))
        peers = [coordinator_pb2.PeerAddress(party=party, address="127.0.0.1:1") for party in PARTIES]
        start = coordinator_pb2.StartJob(job_id="b" * 32, approvals=approvals, peers=peers)
        liar.commands.put(coordinator_pb2.JoinResponse(start=start))
        failure = liar.reports.get(timeout=60).failed.failure
        assert list(failure.culprits) == ["beta"] and "signature" in failure.sentence

        # a job that nobody signed cannot be started at all
        start = coordinator_pb2.StartJob(job_id="c" * 32, approvals=approvals, peers=peers)
        liar.commands.put(coordinator_pb2.JoinResponse(start=start))
        assert "has not signed" in liar.reports.get(timeout=60).failed.failure.sentence
        assert trial.consortium.processes["alpha"].alive
        assert not list(trial.state("alpha").glob("models/*"))
