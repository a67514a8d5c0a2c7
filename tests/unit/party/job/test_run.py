"""A run of a job, before it meets anybody: what stops it then."""

from __future__ import annotations

import errno
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from baseline.evaluate import simulation_spec
from party.config import Mesh, PartyConfig
from party.job import report
from party.job import run as runs
from party.job.review import Reviewed
from party.job.run import JobRun
from party.rows.columns import scratch
from tests.unit.party.job.test_report import measured
from tests.unit.trainers.columns.clicks import BANK, job
from veil import __version__
from veil.errors import PeerLost, RevealError, StateError, VeilError, WireError
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.identity.trial import make_consortium
from veil.jobs import signing
from veil.jobs.reports import Progress
from veil.jobs.spec import digest
from veil.mpc.dealer_client import DealerClient
from veil.mpc.grpc_mesh import GrpcMesh, MeshServicer
from veil.mpc.relay_divided import NoPeers
from veil.mpc.transport import ListeningTransport, Meter
from veil.privacy.ledger import Ledger
from veil.recsys import synthetic
from veil.recsys.features import build_catalogue


def test_one_signature_is_for_one_run_whatever_the_job_is_called(tmp_path: Path) -> None:
    """A coordinator that shows one text as two jobs gets two signatures before the first of them pays."""
    catalogue = build_catalogue(synthetic.generate(50, 320, seed=5).table)
    spec = simulation_spec(catalogue, epsilon=3.0, delta=1e-5, parties=2).model_copy(
        update={"versions": {"veil": __version__, "dp-accounting": metadata.version("dp-accounting")}}
    )
    folders = make_consortium(tmp_path / "certs", "simulation", list(spec.parties))
    signers = {
        identity.name: Credentials.load(folder) for identity, folder in folders.items() if identity.role == "party"
    }
    ledger = Ledger(tmp_path / "ledger.sqlite", epsilon_limit=20.0, delta=1e-5)
    own = digest(spec.text())

    def failure_of(job_id: str) -> VeilError:
        found: list[VeilError] = []
        over = threading.Event()

        def failed(error: VeilError) -> None:
            found.append(error)
            over.set()

        run = JobRun(
            job_id=job_id,
            reviewed=Reviewed(spec, own, 3.0),
            approvals=[signing.approve(signers[party], own) for party in spec.parties],
            addresses={},
            config=cast(PartyConfig, None),  # not looked at so early
            credentials=signers[spec.parties[0]],
            rows=tmp_path / "rows",
            ledger=ledger,
            mesh=MeshServicer(),
            predecessors=[],
            on_progress=lambda progress: None,
            on_done=lambda outcome: None,
            on_failed=failed,
        )
        run.start()
        assert over.wait(30)
        return found[0]

    assert "no address" in failure_of("a" * 32).message
    ledger.record("a" * 32, own, spec.releases[0])
    refused = failure_of("b" * 32)
    assert isinstance(refused, StateError)
    assert "has run here under another name" in refused.message


def columns_run(
    folder: Path,
    on_progress: Callable[[Progress], None],
    on_failed: Callable[[VeilError], None] = lambda error: None,
) -> JobRun:
    """A run of a job on columns that has not begun."""
    spec = job()
    folders = make_consortium(folder / "certs", "trial", list(spec.parties))
    return JobRun(
        job_id="a" * 32,
        reviewed=Reviewed(spec, digest(spec.text()), 1.0),
        approvals=[],
        addresses={},
        config=cast(PartyConfig, None),  # not looked at here
        credentials=Credentials.load(folders[Identity("trial", Role.PARTY, BANK)]),
        rows=folder / "rows" / "rows.safetensors",
        columns=folder / "rows" / "columns.parquet",
        ledger=Ledger(folder / "ledger.sqlite", epsilon_limit=20.0, delta=1e-5),
        mesh=MeshServicer(),
        predecessors=[],
        on_progress=on_progress,
        on_done=lambda outcome: None,
        on_failed=on_failed,
    )


def test_a_killed_worker_leaves_no_correlations_behind(tmp_path: Path) -> None:
    run = columns_run(tmp_path, lambda progress: None)
    folder = scratch(tmp_path / "rows", digest(job().text()))
    folder.mkdir(parents=True)
    (folder / "items").write_bytes(b"shares of masks")
    run._clean_up()
    assert folder.exists()  # a run that has started no worker touches nobody else's
    run._worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    run._worker.kill()
    run._clean_up()
    assert not folder.exists()


def test_nothing_that_is_reported_shows_how_many_users_are_common(tmp_path: Path) -> None:
    """Two runs whose alignments took different numbers of bytes, and the rest of which did not."""
    told: list[list[Progress]] = []
    for number, common in enumerate((100, 101)):
        reports: list[Progress] = []
        run = columns_run(tmp_path / str(number), reports.append)
        meter = Meter()
        run._mesh = cast(GrpcMesh, SimpleNamespace(meter=meter))
        run._progress("mesh", 2)
        for size_bytes in (32 * common, 8):
            meter.sent(1, size_bytes)
            meter.received(1, size_bytes)
            run._progress("align" if size_bytes > 8 else "statistics-bank", 3)
        told.append(reports)
    counts = [[(one.bytes_sent, one.bytes_received, one.messages_sent) for one in reports] for reports in told]
    assert counts[0] == counts[1] == [(0, 0, 0), (0, 0, 0), (8, 8, 1)]


def test_releases_are_permitted_together_or_none_and_each_once(tmp_path: Path) -> None:
    run = columns_run(tmp_path, lambda progress: None)
    names = [release.name for release in job().releases]
    ledger = Ledger.existing(tmp_path / "ledger.sqlite")
    assert run._answer("permit", {"releases": names[:2]}) == {}
    for refused, error in ((names[1:3], RevealError), ([names[2], "other"], VeilError), ([], VeilError)):
        with pytest.raises(error):
            run._answer("permit", {"releases": refused})
    assert [entry.release.name for entry in ledger.entries()] == names[:2]
    run._answer("permit", {"releases": names[2:4]})
    assert [entry.release.name for entry in ledger.entries()] == names[:4]


def test_a_job_whose_carriers_do_not_connect_leaves_no_socket_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[socket.socket] = []
    pair = socket.socketpair

    def watched() -> tuple[socket.socket, socket.socket]:
        made = pair()
        ends.extend(made)
        return made

    def unreachable(run: JobRun, mesh: object) -> ListeningTransport:
        raise PeerLost("got no gloo connection")

    run = columns_run(tmp_path, lambda progress: None)
    run._addresses = dict.fromkeys(job().parties, "127.0.0.1:1")
    run._config = cast(PartyConfig, SimpleNamespace(mesh=Mesh()))
    mesh = SimpleNamespace(connect=lambda timeout_s: None, transport=NoPeers, close=lambda: None)
    monkeypatch.setattr(JobRun, "_open_dealer", lambda run: None)
    monkeypatch.setattr(runs, "GrpcMesh", lambda *arguments, **options: mesh)
    monkeypatch.setattr(socket, "socketpair", watched)
    with monkeypatch.context() as only:
        only.setattr(JobRun, "_carried", unreachable)
        with pytest.raises(PeerLost):
            run._take_part()
    mesh.connect = lambda timeout_s: run.stop(StateError("stopped meanwhile"))  # before its worker is started
    with pytest.raises(StateError, match="meanwhile"):
        run._take_part()
    assert [end.fileno() for end in ends] == [-1, -1]


def test_a_failure_is_reported_before_the_dealer_forgets_the_job(tmp_path: Path) -> None:
    """The others' requests fail from then on: whoever meets that first must not be taken for the culprit."""
    order: list[str] = []
    run = columns_run(tmp_path, lambda progress: None, lambda error: order.append(error.code))
    run._dealer = cast(DealerClient, SimpleNamespace(close=lambda: order.append("forgotten"), bytes_received=0))
    run._run()
    assert order == ["POLICY", "forgotten"]


def test_a_disk_without_room_for_the_report_ends_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, data: bytes, *, mode: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    failures: list[VeilError] = []
    run = columns_run(tmp_path, lambda progress: None, failures.append)
    run._config = cast(PartyConfig, SimpleNamespace(state=tmp_path))
    monkeypatch.setattr(report, "write_atomic", full)
    assert run._answer("measured", measured()) == {}
    run._answer("published", {"manifest_digest": "00" * 32})
    run._report()
    assert not failures and run._outcome is not None
    (told,) = [one.message for one in caplog.records if one.name == "veil.party.report"]
    assert "its report is not kept: No space left on device" in told and str(tmp_path) not in told
    with pytest.raises(WireError):  # a worker that says what is no report is another matter
        run._answer("measured", {})
