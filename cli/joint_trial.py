"""A joint training job on this machine, from a data set in one place: for the demo and the benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from cli import job_client
from cli.local import LocalConsortium, PartySite
from cli.training_log import TrainingLog
from veil.identity.credentials import Credentials
from veil.identity.names import Role
from veil.jobs.spec import JobSpec
from veil.recsys.catalogue import Catalogue
from veil.recsys.dataset import Dataset
from veil.recsys.parties import Part, split_as_given, split_parties, write_party_csv

DELTA = 1e-5
# Unequal on purpose: joint training is for organisations of different sizes.
_SHARES = {2: (0.65, 0.35), 3: (0.55, 0.30, 0.15)}


def split_over(dataset: Dataset, parties: int) -> list[Part]:
    """Users over organisations of unequal size; as the data set itself says where it does (the synthetic one)."""
    if dataset.name == "synthetic" and parties == 3:
        return split_as_given(dataset)
    shares = _SHARES.get(parties) or tuple(2 * (rank + 1) / (parties * (parties + 1)) for rank in range(parties))
    return split_parties(dataset, shares, seed=1)


def start_programs(consortium: LocalConsortium, parts: list[Part], catalogue: Catalogue, root: Path) -> None:
    """Writes each party's raw file and starts coordinator, dealer and parties. The catalogue lies in root/catalogue."""
    consortium.start_coordinator()
    consortium.start_dealer()
    for name, part in zip(consortium.parties, parts, strict=True):
        source = root / "raw" / f"{name}.csv"
        write_party_csv(source, part.data.train, catalogue.ids, user_ids=[f"{name}-{user}" for user in part.users])
        columns = {"user": "user_id", "item": "item_id"}
        if part.data.train.time is not None:
            columns["time"] = "time"
        consortium.start_party(PartySite(name, source, {"columns": columns}), root / "catalogue")


def run_job(
    consortium: LocalConsortium, root: Path, epsilon: float, noise: str, console: Console, trainer: str = "subspace"
) -> tuple[JobSpec, str, dict[str, Any]]:
    """Submits a job, shows its progress, and returns its text, its identifier and the report's `train` part."""
    job_file = root / "job.toml"
    job_file.write_text(
        f'name = "trial"\nparties = {list(consortium.parties)}\ndealer = "main"\n[catalogue]\npath = "catalogue"\n'
        f'[privacy]\nepsilon = {epsilon}\ndelta = {DELTA}\nnoise = "{noise}"\n[trainer]\nkind = "{trainer}"\n'
    )
    credentials = Credentials.load(consortium.credentials(Role.OPERATOR))
    desk = job_client.Desk(consortium.address("coordinator"), credentials)
    spec = job_client.plan_job(job_file, consortium.consortium)
    job = job_client.submit_job(desk, spec)
    log = TrainingLog(console, spec)
    with log:
        for event in job_client.watch_job(desk, job.job_id):
            log.add(event)
    return spec, job.job_id, log.summary(job.digest)
