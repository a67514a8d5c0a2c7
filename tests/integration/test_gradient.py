"""Gradient rounds with real processes: three parties train a module that each lists, and refuse any other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cli import job_client
from tests.integration.conftest import PARTIES, Trial
from veil.errors import PolicyError
from veil.identity.credentials import Credentials
from veil.identity.names import Role
from veil.jobs.spec import JobSpec
from veil.privacy import accountant
from veil.privacy.ledger import Ledger
from veil.trainers.gradient.facts import built, facts_of
from veil.trainers.gradient.publication import load_module
from veil.trainers.gradient.source import read_code

pytestmark = pytest.mark.integration

_TWO_TOWER = Path(__file__).parents[2] / "examples" / "two_tower.py"


def _plan(trial: Trial, file: Path) -> JobSpec:
    (trial.root / "gradient.toml").write_text(
        f'name = "towers"\nparties = {list(PARTIES)}\n[catalogue]\npath = "catalogue"\n'
        f"[privacy]\nepsilon = 4.0\ndelta = 1e-5\n"
        f'[trainer]\nkind = "gradient"\nmodule = "two-tower"\nmodule_file = "{file}"\n'
        f"rounds = 4\nsampling = 1.0\npopulation = 300\nmodule-dimensions = 4\n"
    )
    return job_client.plan_job(trial.root / "gradient.toml", "trial")


def test_three_parties_train_a_module(make_trial: Callable[[], Trial], tmp_path: Path) -> None:
    trial = make_trial()
    trial.consortium.start_coordinator()
    trial.consortium.start_dealer()
    for name in PARTIES:
        trial.start_party(name, modules={"two-tower": str(_TWO_TOWER)})

    spec = _plan(trial, _TWO_TOWER)
    job = job_client.submit_job(trial.desk, spec)
    lines = [event.line for event in job_client.watch_job(trial.desk, job.job_id)]
    assert "every party holds the same model" in lines[-1]

    # the same bytes at every party, signed by all, paid for by all
    authority = Credentials.load(trial.consortium.credentials(Role.OPERATOR)).authority_pem
    folders = [trial.state(party) / "models" / job.job_id for party in PARTIES]
    for file in sorted(folders[0].iterdir()):
        assert all((folder / file.name).read_bytes() == file.read_bytes() for folder in folders), file.name
    expected = accountant.epsilon(spec.releases, 1e-5)
    for party in PARTIES:
        ledger = Ledger(trial.state(party) / "ledger.sqlite", epsilon_limit=6.0, delta=1e-5)
        assert ledger.spent() == pytest.approx(expected, rel=1e-6)
        assert [entry.release.name for entry in ledger.entries()] == [release.name for release in spec.releases]

    # it loads, it is finite, and it is not what it was before
    module = load_module(folders[1], authority, _TWO_TOWER, trial.catalogue)
    code, _ = read_code(_TWO_TOWER, "two-tower")
    facts = facts_of(trial.catalogue, seed=0, options=dict(spec.trainer.options))  # type: ignore[union-attr]
    before = dict(built(code, facts).named_parameters())
    for name, parameter in module.named_parameters():
        assert torch.isfinite(parameter).all()
        assert not torch.equal(parameter, before[name]), name
    assert np.isfinite(module.scores(torch.ones(1, 4), torch.arange(trial.catalogue.items)).detach().numpy()).all()

    # a file that differs by a comment is another module: every party refuses it, nothing is spent
    other = tmp_path / "other.py"
    other.write_text(_TWO_TOWER.read_text() + "# of somebody else\n")
    with pytest.raises(PolicyError, match="two-tower"):
        again = job_client.submit_job(trial.desk, _plan(trial, other))
        for _ in job_client.watch_job(trial.desk, again.job_id):
            pass
    for party in PARTIES:
        ledger = Ledger(trial.state(party) / "ledger.sqlite", epsilon_limit=6.0, delta=1e-5)
        assert len(ledger.entries()) == len(spec.releases)
