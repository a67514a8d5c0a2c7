"""A run of a job, before it meets anybody: what stops it then."""

from __future__ import annotations

import threading
from importlib import metadata
from pathlib import Path
from typing import cast

from baseline.evaluate import simulation_spec
from party.config import PartyConfig
from party.review import Reviewed
from party.run import JobRun
from veil import __version__
from veil.errors import StateError, VeilError
from veil.identity.credentials import Credentials
from veil.identity.trial import make_consortium
from veil.jobs import signing
from veil.jobs.spec import digest
from veil.mpc.grpc_mesh import MeshServicer
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
