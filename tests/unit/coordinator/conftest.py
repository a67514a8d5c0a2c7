"""A consortium on disk, a running coordinator, and scripted parties that are real gRPC clients."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import pytest

from coordinator.__main__ import Coordinator
from coordinator.config import CoordinatorConfig, Deadlines
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.identity.trial import make_consortium
from veil.jobs import convert, signing
from veil.jobs.reports import Failure, Outcome, Progress
from veil.jobs.spec import Catalogue, JobSpec, Noise, Privacy, Release, SubspaceTrainer, digest
from veil.wire.channel import open_channel
from veil.wire.v1 import coordinator_pb2 as wire
from veil.wire.v1 import job_pb2
from veil.wire.v1.coordinator_pb2_grpc import CoordinatorServiceStub

CONSORTIUM = "trial"
PATIENCE_S = 20.0


@pytest.fixture(scope="session")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> dict[Identity, Path]:
    """Directories of credentials by identity; parties alpha, beta, gamma and delta."""
    return make_consortium(tmp_path_factory.mktemp("certs"), CONSORTIUM, ["alpha", "beta", "gamma", "delta"])


@pytest.fixture(scope="session")
def credentials(consortium: dict[Identity, Path]) -> Callable[..., Credentials]:
    """Loads credentials: `credentials("alpha")` of a party, `credentials("main", Role.OPERATOR)` of another role."""

    def load(name: str, role: Role = Role.PARTY) -> Credentials:
        return Credentials.load(consortium[Identity(CONSORTIUM, role, name)])

    return load


@pytest.fixture
def make_spec() -> Callable[..., JobSpec]:
    """Small valid jobs, each with a nonce of its own."""
    count = 0

    def make(*parties: str, name: str = "spring", consortium: str = CONSORTIUM) -> JobSpec:
        nonlocal count
        count += 1
        return JobSpec(
            name=name,
            nonce=f"{count:032x}",
            consortium=consortium,
            parties=parties or ("alpha", "beta"),
            dealer="main",
            catalogue=Catalogue(digest="sha256:" + "0" * 64, items=10, features=3),
            privacy=Privacy(epsilon=3.0, delta=1e-6, noise=Noise(source="dealer")),
            trainer=SubspaceTrainer(dimensions=2, content_dimensions=1, rounds=1, clip=0.5, popularity_power=0.2),
            releases=(
                Release(name="counts", shape=(10,), sensitivity=10, sigma=30),
                Release(name="round-1", shape=(10, 2), sensitivity=10, sigma=40),
            ),
            versions={"veil": "0.1.0"},
        )

    return make


@pytest.fixture
def config(consortium: dict[Identity, Path], tmp_path: Path) -> CoordinatorConfig:
    """Short waiting times, everything else as by default."""
    return CoordinatorConfig(
        listen="127.0.0.1:0",
        credentials=consortium[Identity(CONSORTIUM, Role.COORDINATOR, "main")],
        store=tmp_path / "state" / "jobs.sqlite",
        parties=("alpha", "beta", "gamma"),
        deadlines=Deadlines(heartbeat_interval_s=0.5, grace_s=600, settling_s=0.3),
    )


@pytest.fixture
def coordinator(config: CoordinatorConfig) -> Iterator[Coordinator]:
    """A coordinator that listens."""
    with Coordinator(config) as running:
        yield running


@dataclass
class FakeParty:
    """A party without data: a real stream under its own certificate, on which the test says what is said."""

    address: str
    credentials: Credentials
    outgoing: queue.SimpleQueue[wire.JoinRequest | None] = field(default_factory=queue.SimpleQueue)
    incoming: queue.SimpleQueue[wire.JoinResponse | grpc.RpcError | None] = field(default_factory=queue.SimpleQueue)

    def __post_init__(self) -> None:
        identity = self.credentials.identity
        self.name = identity.name
        expect = Identity(identity.consortium, Role.COORDINATOR, "main")
        self._channel = open_channel(self.address, self.credentials, expect)
        self._stream = CoordinatorServiceStub(self._channel).Join(iter(self.outgoing.get, None))
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        try:
            for response in self._stream:
                self.incoming.put(response)
            self.incoming.put(None)
        except grpc.RpcError as error:
            self.incoming.put(error)

    def say(self, **report: object) -> None:
        self.outgoing.put(wire.JoinRequest(**report))  # type: ignore[arg-type]

    def hello(self, *, version: int = 1, address: str = "") -> None:
        self.say(
            hello=wire.Hello(
                protocol_version=version, software_version="0.1.0", mesh_address=address or f"{self.name}:7100"
            )
        )

    def hear(self, kind: str) -> wire.JoinResponse:
        """The next command, which must be of that kind."""
        message = self.incoming.get(timeout=PATIENCE_S)
        assert isinstance(message, wire.JoinResponse), f"expected {kind}, got the end of the stream: {message}"
        assert message.WhichOneof("command") == kind
        return message

    def hear_end(self) -> grpc.RpcError | None:
        """How the stream ends, after any commands that are still under way."""
        while isinstance(message := self.incoming.get(timeout=PATIENCE_S), wire.JoinResponse):
            pass
        return message

    def join(self) -> FakeParty:
        self.hello()
        assert self.hear("welcome").welcome.heartbeat_interval_ms == 500
        return self

    def sign(self, job: job_pb2.Job, *, over: bytes | None = None) -> None:
        approval = signing.approve(self.credentials, over or digest(job.text))
        self.say(signed=wire.JobSigned(job_id=job.job_id, approval=convert.approval_to_wire(approval)))

    def consent(self) -> job_pb2.Job:
        """Waits for a proposal and signs it."""
        job = self.hear("propose").propose.job
        self.sign(job)
        return job

    def progress(self, job_id: str, step: str, done: int, total: int = 5) -> None:
        progress = convert.progress_to_wire(Progress(step, done, total, 10, 20, 3, 40))
        self.say(progress=wire.JobProgress(job_id=job_id, progress=progress))

    def done(self, job_id: str, manifest: bytes = b"m" * 32, epsilon_micro: int = 2_999_999) -> None:
        outcome = convert.outcome_to_wire(Outcome(manifest, epsilon_micro, "1e-06"))
        self.say(done=wire.JobDone(job_id=job_id, outcome=outcome))

    def failed(self, job_id: str, code: str, sentence: str, *culprits: str) -> None:
        failure = convert.failure_to_wire(Failure(code, sentence, culprits))
        self.say(failed=wire.JobFailed(job_id=job_id, failure=failure))

    def leave(self) -> None:
        """Ends the stream as a power cut would: without a word."""
        self._stream.cancel()
        self.outgoing.put(None)
        self._channel.close()
        self._thread.join(PATIENCE_S)


@pytest.fixture
def party_at(credentials: Callable[..., Credentials]) -> Iterator[Callable[..., FakeParty]]:
    """Makes scripted parties of the coordinator at an address, by name; they leave at the end."""
    made: list[FakeParty] = []

    def make(address: str, name: str, role: Role = Role.PARTY) -> FakeParty:
        made.append(FakeParty(address, credentials(name, role)))
        return made[-1]

    yield make
    for one in made:
        one.leave()


@pytest.fixture
def party(coordinator: Coordinator, party_at: Callable[..., FakeParty]) -> Callable[..., FakeParty]:
    """Makes scripted parties of the running coordinator, by name."""
    return lambda name, role=Role.PARTY: party_at(coordinator.address, name, role)
