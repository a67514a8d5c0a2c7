"""`veil job` against a coordinator that runs, with parties that are scripted streams."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from typer.testing import CliRunner

from cli.job import app
from cli.job_view import size
from coordinator.__main__ import Coordinator
from coordinator.config import CoordinatorConfig, Deadlines
from veil.errors import ConfigError, IdentityError, PeerLost, PolicyError, StateError
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.identity.trial import make_consortium
from veil.jobs import convert, signing
from veil.jobs.reports import Failure, Outcome, Progress
from veil.jobs.spec import digest, parse
from veil.recsys.catalogue import Catalogue, ItemTable
from veil.wire.channel import open_channel
from veil.wire.v1 import coordinator_pb2 as wire
from veil.wire.v1.coordinator_pb2_grpc import CoordinatorServiceStub

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def consortium(tmp_path_factory: pytest.TempPathFactory) -> dict[Identity, Path]:
    return make_consortium(tmp_path_factory.mktemp("certs"), "trial", ["alpha", "beta"])


@pytest.fixture(scope="module")
def coordinator(consortium: dict[Identity, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    config = CoordinatorConfig(
        listen="127.0.0.1:0",
        credentials=consortium[Identity("trial", Role.COORDINATOR, "main")],
        store=tmp_path_factory.mktemp("state") / "jobs.sqlite",
        deadlines=Deadlines(grace_s=600),
    )
    with Coordinator(config) as running:
        yield running


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    table = ItemTable(
        ids=tuple(f"i{number}" for number in range(60)),
        titles=tuple(f"Item {number}" for number in range(60)),
        categories=tuple(() for _ in range(60)),
    )
    features = np.random.default_rng(1).standard_normal((60, 12)).astype(np.float32)
    Catalogue(table, features).save(tmp_path / "catalogue")
    path = tmp_path / "job.toml"
    path.write_text(
        'name = "spring"\nparties = ["alpha", "beta"]\n[catalogue]\npath = "catalogue"\n'
        "[privacy]\nepsilon = 3.0\ndelta = 1e-6\n"
    )
    return path


class Script(threading.Thread):
    """A party that signs what it is shown and then does as it is told; any other end of its stream is an error."""

    def __init__(self, address: str, folder: Path, *, ending: str) -> None:
        super().__init__(daemon=True)
        self._credentials = Credentials.load(folder)
        self._ending = ending
        expect = Identity("trial", Role.COORDINATOR, "main")
        self._channel = open_channel(address, self._credentials, expect)
        self.error: grpc.RpcError | None = None
        self._said: list[wire.JoinRequest] = []
        self._more = threading.Condition()
        self.welcome = threading.Event()
        self._stream = CoordinatorServiceStub(self._channel).Join(self._requests())
        self._say(hello=wire.Hello(protocol_version=1, software_version="0.1.0", mesh_address="127.0.0.1:7100"))
        self.start()

    def _say(self, **report: object) -> None:
        with self._more:
            self._said.append(wire.JoinRequest(**report))  # type: ignore[arg-type]
            self._more.notify()

    def _requests(self) -> Iterator[wire.JoinRequest]:
        while True:
            with self._more:
                self._more.wait_for(lambda: bool(self._said))
                yield self._said.pop(0)

    def run(self) -> None:
        try:
            self._follow()
        except grpc.RpcError as error:
            self.error = error

    def _follow(self) -> None:
        for response in self._stream:
            match response.WhichOneof("command"):
                case "welcome":
                    self.welcome.set()
                case "propose":
                    self._decide(response.propose.job.job_id, response.propose.job.text)
                case "start":
                    self._work(response.start.job_id)
                case _:  # a stop of this or of an earlier test's job, or the confirmation
                    pass

    def _decide(self, job_id: str, text: str) -> None:
        if self._ending == "refuse":
            failure = convert.failure_to_wire(Failure("BUDGET", "the ledger allows epsilon 1"))
            self._say(refused=wire.JobRefused(job_id=job_id, failure=failure))
            return
        approval = convert.approval_to_wire(signing.approve(self._credentials, digest(text)))
        self._say(signed=wire.JobSigned(job_id=job_id, approval=approval))

    def _work(self, job_id: str) -> None:
        for number, step in enumerate(("load", "mesh", "counts", "round-1", "publish"), start=1):
            progress = convert.progress_to_wire(Progress(step, number, 5, 1_500_000 * number, 20, 3, 400))
            self._say(progress=wire.JobProgress(job_id=job_id, progress=progress))
        if self._ending == "fail":
            failure = convert.failure_to_wire(Failure("PEER_LOST", "lost beta in round-1", ("beta",)))
            self._say(failed=wire.JobFailed(job_id=job_id, failure=failure))
        elif self._ending == "done":
            outcome = convert.outcome_to_wire(Outcome(b"\xab" * 32, 2_987_654, "1e-06"))
            self._say(done=wire.JobDone(job_id=job_id, outcome=outcome))

    def end(self) -> None:
        """Leaves; raises what had ended the stream before that, if anything had."""
        early = self.error
        self._stream.cancel()
        self._channel.close()
        self.join(10)
        if early is not None:
            raise early


@pytest.fixture
def parties(coordinator: Coordinator, consortium: dict[Identity, Path]) -> Iterator[Callable[..., None]]:
    scripts: list[Script] = []

    def make(**endings: str) -> None:
        for name, ending in endings.items():
            folder = consortium[Identity("trial", Role.PARTY, name)]
            scripts.append(Script(coordinator.address, folder, ending=ending))
            assert scripts[-1].welcome.wait(20)

    yield make
    for script in scripts:
        script.end()


@pytest.fixture
def veil_job(coordinator: Coordinator, consortium: dict[Identity, Path]) -> Callable[..., str]:
    """Runs `veil job …`, address and credentials from the environment; returns what it prints, raises its errors."""
    environment = {
        "VEIL_COORDINATOR": coordinator.address,
        "VEIL_CREDENTIALS": str(consortium[Identity("trial", Role.OPERATOR, "main")]),
    }

    def run(*arguments: str) -> str:
        result = RUNNER.invoke(app, arguments, env=environment, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    return run


def test_dry_run(veil_job: Callable[..., str], job_file: Path) -> None:
    output = veil_job("submit", str(job_file), "--dry-run")
    lines = {line.split()[0]: line.split(maxsplit=1)[1] for line in output.splitlines()}
    spec = parse(lines["text"])
    assert digest(spec.text()).hex() == lines["digest"]
    for release in spec.releases:
        shape, sensitivity, sigma, multiplier = lines[release.name].split()
        assert shape == "x".join(map(str, release.shape))
        assert (int(sensitivity), int(sigma)) == (release.sensitivity, release.sigma)
        assert float(multiplier) == pytest.approx(release.sigma / release.sensitivity, abs=1e-4)
    assert "at delta 1e-06 (asked for: 3)" in lines["privacy"]
    assert "add-or-remove-one-user" in lines["privacy"]
    assert "no jobs" in veil_job("list")


def test_submit_and_watch(veil_job: Callable[..., str], job_file: Path, parties: Callable[..., None]) -> None:
    parties(alpha="done", beta="done")
    output = veil_job("submit", str(job_file), "--watch")
    (job_id,) = re.findall(r"^job +([0-9a-f]{32})$", output, re.MULTILINE)
    assert "started at alpha, beta" in output
    assert "beta: round-1 (4 of 5) (round-1 4/5, 6.0 MB sent, 20 B received, 0.4 s)" in output
    last = output.splitlines()[-1]
    assert "every party holds the same model" in last
    assert "epsilon 2.9877 at delta 1e-06" in last
    shown = veil_job("show", job_id[:10])
    assert "phase     done" in shown
    assert "signed by alpha, beta" in shown
    assert f"manifest sha256:{'ab' * 32}" in shown
    assert job_id in veil_job("list")
    assert "every party holds the same model" in veil_job("watch", job_id)
    assert veil_job("cancel", job_id) == "done\n"


def test_a_refused_job(veil_job: Callable[..., str], job_file: Path, parties: Callable[..., None]) -> None:
    parties(alpha="done", beta="refuse")
    with pytest.raises(PolicyError, match="allows epsilon 1") as caught:
        veil_job("submit", str(job_file), "--watch")
    assert caught.value.hint


def test_a_failed_job(veil_job: Callable[..., str], job_file: Path, parties: Callable[..., None]) -> None:
    parties(alpha="fail", beta="hang")
    with pytest.raises(PeerLost, match="lost beta") as caught:
        veil_job("submit", str(job_file), "--watch")
    assert caught.value.culprits == ("beta",)
    assert caught.value.hint


def test_a_cancelled_job(veil_job: Callable[..., str], job_file: Path) -> None:
    (job_id,) = re.findall(r"^job +([0-9a-f]{32})$", veil_job("submit", str(job_file)), re.MULTILINE)
    assert veil_job("cancel", job_id[:12]) == "cancelled\n"
    with pytest.raises(StateError, match="cancelled by main"):
        veil_job("watch", job_id)


def test_the_command_exits_with_culprits_and_hint(
    coordinator: Coordinator, consortium: dict[Identity, Path], job_file: Path, parties: Callable[..., None]
) -> None:
    parties(alpha="fail", beta="hang")
    folder = consortium[Identity("trial", Role.OPERATOR, "main")]
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from cli.main import main; main()", "job", "submit", str(job_file), "--watch"),
            *("--coordinator", coordinator.address, "--credentials", str(folder)),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "at fault: beta" in done.stderr
    assert "what to do: " in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_uses(veil_job: Callable[..., str], job_file: Path, consortium: dict[Identity, Path]) -> None:
    with pytest.raises(StateError, match="fits 0 recent jobs"):
        veil_job("show", "zzz")
    with pytest.raises(IdentityError, match="operator"):
        veil_job("list", "--credentials", str(consortium[Identity("trial", Role.PARTY, "alpha")]))
    with pytest.raises(IdentityError):
        veil_job("list", "--coordinator-name", "other")
    job_file.write_text(job_file.read_text().replace("epsilon", "epsilom"))
    with pytest.raises(ConfigError, match="epsilom"):
        veil_job("submit", str(job_file))


def test_without_a_coordinator_only_a_dry_run(job_file: Path, consortium: dict[Identity, Path]) -> None:
    folder = str(consortium[Identity("trial", Role.OPERATOR, "main")])
    environment = {"VEIL_COORDINATOR": "", "VEIL_CREDENTIALS": folder}
    assert RUNNER.invoke(app, ["submit", str(job_file), "--dry-run"], env=environment).exit_code == 0
    result = RUNNER.invoke(app, ["submit", str(job_file)], env=environment)
    assert result.exit_code == 2


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_500_000, "2.5 MB")])
def test_size(count: int, text: str) -> None:
    assert size(count) == text


def test_live_view_shows_every_party(capsys: pytest.CaptureFixture[str]) -> None:
    from cli.job_view import show_live
    from veil.wire.v1 import job_pb2

    def event(party: str, step: str, done: int) -> wire.WatchJobResponse:
        progress = job_pb2.Progress(step=step, done=done, total=5, bytes_sent=1_500_000)
        return wire.WatchJobResponse(
            sequence=1, phase=job_pb2.JOB_PHASE_RUNNING, party=party, line="x", progress=progress
        )

    line = wire.WatchJobResponse(sequence=1, phase=job_pb2.JOB_PHASE_STARTING, line="started at [alpha], beta")
    show_live([line, event("alpha", "load", 1), event("beta", "counts", 3), event("alpha", "publish", 5)])
    output = capsys.readouterr().out
    assert "started at [alpha], beta" in output
    assert re.search(r"alpha +publish .* 5/5 +1\.5 MB sent", output)
    assert re.search(r"beta +counts .* 3/5", output)
