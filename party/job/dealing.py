"""Which jobs call the dealer, and how one is called for a job."""

from __future__ import annotations

from veil.identity.credentials import Credentials
from veil.identity.names import Identity, Role
from veil.jobs.columns import ColumnsTrainer
from veil.jobs.predictions import PredictionsTrainer
from veil.jobs.side import SideTrainer
from veil.jobs.spec import JobSpec
from veil.mpc.dealer_client import DealerClient


def needs_dealer(spec: JobSpec) -> bool:
    """Whether correlated randomness, or noise, comes from the dealer."""
    trainer = spec.trainer
    if isinstance(trainer, PredictionsTrainer):
        return trainer.correlated and trainer.triples == "dealer"
    return not (isinstance(trainer, ColumnsTrainer | SideTrainer) and trainer.triples == "he")


def dealer_of(spec: JobSpec, job_id: str, digest: bytes, address: str, credentials: Credentials) -> DealerClient | None:
    """The job's dealer, not yet called; None for a job that needs none."""
    if not needs_dealer(spec):
        return None
    return DealerClient(
        address,
        credentials,
        Identity(spec.consortium, Role.DEALER, spec.dealer),
        job_id=job_id,
        job_text=spec.text(),
        job_digest=digest,
    )
