"""A small consortium with data on disk, for tests that start real processes, and a scoring server with clients."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cli import job_client
from cli.local import LocalConsortium, PartySite
from he_inference.client import ScoringClient
from he_inference.service.server import ScoringServer, start
from tests.integration.scoring_site import ANNA, EVE, SERVER, Connect, Site, make_model, publish
from veil.identity import certificates
from veil.identity.authority import sign_request
from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.identity.site import install, make_request
from veil.identity.trial import make_consortium
from veil.jobs.spec import JobSpec
from veil.recsys import synthetic
from veil.recsys.catalogue import Catalogue
from veil.recsys.dataset import Dataset
from veil.recsys.features import build_catalogue
from veil.recsys.parties import split_as_given, write_party_csv
from veil.wire.channel import open_channel
from veil.wire.v1 import inference_pb2_grpc

PARTIES = ("alpha", "beta", "gamma")


@dataclass
class Trial:
    """Three sites with their raw files, and the programs that a test starts."""

    root: Path
    consortium: LocalConsortium
    dataset: Dataset
    catalogue: Catalogue
    sites: dict[str, PartySite]
    job_files: int = field(default=0)

    @property
    def catalogue_folder(self) -> Path:
        return self.root / "catalogue"

    @property
    def desk(self) -> job_client.Desk:
        credentials = Credentials.load(self.consortium.credentials(Role.OPERATOR))
        return job_client.Desk(self.consortium.address("coordinator"), credentials)

    def start(self, *parties: str) -> None:
        """Coordinator, dealer and the named parties (all by default)."""
        self.consortium.start_coordinator()
        self.consortium.start_dealer()
        for name in parties or PARTIES:
            self.start_party(name)

    def start_party(self, name: str, **changes: object) -> None:
        self.consortium.start_party(self.sites[name], self.catalogue_folder, changes)

    def plan(self, *, epsilon: float = 4.0, noise: str = "dealer", rounds: int = 1) -> JobSpec:
        self.job_files += 1
        file = self.root / f"job-{self.job_files}.toml"
        file.write_text(
            f'name = "trial"\nparties = {list(PARTIES)}\n[catalogue]\npath = "catalogue"\n'
            f'[privacy]\nepsilon = {epsilon}\ndelta = 1e-5\nnoise = "{noise}"\n[trainer]\nrounds = {rounds}\n'
        )
        return job_client.plan_job(file, "trial")

    def state(self, party: str) -> Path:
        return self.root / f"party-{party}"

    def log(self, program: str) -> str:
        return self.consortium.processes[program].log.read_text()


@pytest.fixture
def make_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Trial]]:
    """Lays out a trial in the test's folder; every process that it starts is stopped at the end."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    started: list[Trial] = []

    def make() -> Trial:
        dataset = synthetic.generate(300, 320, seed=3)
        catalogue = build_catalogue(dataset.table)
        catalogue.save(tmp_path / "catalogue")
        sites = {}
        for name, part in zip(PARTIES, split_as_given(dataset), strict=True):
            source = tmp_path / "raw" / f"{name}.csv"
            users = [f"{name}-{user}" for user in part.users]
            write_party_csv(source, part.data.train, catalogue.ids, user_ids=users)
            columns = {"user": "user_id", "item": "item_id", "time": "time"}
            sites[name] = PartySite(name, source, {"columns": columns}, epsilon=6.0)
        trial = Trial(tmp_path, LocalConsortium(tmp_path, PARTIES), dataset, catalogue, sites)
        started.append(trial)
        return trial

    yield make
    for trial in started:
        trial.consortium.stop()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A published model, client "eve" beside the usual one; one site for each file of tests."""
    folder = tmp_path_factory.mktemp("scoring")
    members = make_consortium(folder / "certs", "trial", ["alpha", "beta"])
    authority, eve = folder / "certs" / "authority", folder / "certs" / "client-eve"
    request = make_request(eve, EVE).read_bytes()
    authority_pem = certificates.read_pem(authority / "authority.pem")
    install(eve, sign_request(authority, request, role=Role.CLIENT, name="eve"), authority_pem)
    members[EVE] = eve
    model = make_model(1)
    return Site(folder, members, model, publish(members, model, folder / "model", ("alpha", "beta")))


@pytest.fixture(scope="module")
def server(site: Site) -> Iterator[ScoringServer]:
    """A scoring server of that model."""
    with start(site.config(site.folder)) as running:
        yield running


@pytest.fixture
def connect(site: Site, server: ScoringServer, tmp_path: Path) -> Iterator[Connect]:
    """Clients of the server, closed at the end."""
    opened: list[ScoringClient] = []

    def make(
        who: Identity = ANNA, address: str | None = None, keys: Path | None = None, **more: object
    ) -> ScoringClient:
        folder = keys or tmp_path / f"keys-{who.name}"
        client = ScoringClient(address or server.address, site.credentials(who), SERVER, folder, **more)  # type: ignore[arg-type]
        opened.append(client)
        return client

    yield make
    for client in opened:
        client.close()


@pytest.fixture
def stub(site: Site, server: ScoringServer) -> Iterator[inference_pb2_grpc.InferenceServiceStub]:
    """Plain gRPC under anna's certificate."""
    with open_channel(server.address, site.credentials(ANNA), SERVER) as channel:
        yield inference_pb2_grpc.InferenceServiceStub(channel)


def alive(pid: int) -> bool:
    """Whether a process of that number runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
