"""Questions to a real consortium: three parties answer, all pay, what is too much is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cli import job_client
from tests.integration.conftest import PARTIES, Trial
from veil.errors import BudgetError
from veil.identity.names import Role
from veil.privacy import accountant
from veil.privacy.ledger import Ledger
from veil.queries.answers import load_answers

pytestmark = pytest.mark.integration

QUESTIONS = """
[[trainer.questions]]
name = "users-by-category"
by = "category"
groups_per_user = 100
[[trainer.questions]]
name = "users"
by = "nothing"
mechanism = "gaussian"
"""


def write_query(trial: Trial, epsilon: float, noise: str = "dealer") -> Path:
    trial.job_files += 1
    file = trial.root / f"query-{trial.job_files}.toml"
    file.write_text(
        f'name = "figures"\nparties = {list(PARTIES)}\n[catalogue]\npath = "catalogue"\n'
        f'[privacy]\nepsilon = {epsilon}\ndelta = 1e-5\nnoise = "{noise}"\n[trainer]\nkind = "query"\n{QUESTIONS}'
    )
    return file


def veil(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from cli.main import main; main()", "query", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )


def ledgers(trial: Trial) -> list[Ledger]:
    return [Ledger.existing(trial.state(party) / "ledger.sqlite") for party in PARTIES]


def test_three_parties_answer_and_pay(make_trial: Callable[[], Trial]) -> None:
    trial = make_trial()
    trial.start()
    desk = ["--coordinator", trial.desk.address, "--credentials", trial.consortium.credentials(Role.OPERATOR)]
    asked = veil("ask", write_query(trial, 4.0), *desk)
    assert asked.returncode == 0, asked.stderr
    job_id = asked.stdout.split()[1]

    # every party holds the same signed answers
    folders = [trial.state(party) / "models" / job_id for party in PARTIES]
    for file in sorted(folders[0].iterdir()):
        assert all((folder / file.name).read_bytes() == file.read_bytes() for folder in folders), file.name
    authority = trial.consortium.credentials(Role.OPERATOR) / "authority.pem"
    found = load_answers(folders[1], authority.read_bytes())
    histogram, users = found.answers

    # they are the truth but for the noise; no bound bites here
    train, categories = trial.dataset.train, trial.catalogue.categories
    truth = []
    for group in histogram.groups:
        items = np.array([group in names for names in categories])
        truth.append(int((train.keep(items[train.indices]).lengths() > 0).sum()))
    errors = np.abs(np.array(histogram.values) - truth)
    # Laplace noise exceeds 20 scales with probability e^-20 = 2e-9 a value, a Gaussian 7 standard deviations with 3e-12
    assert errors.max() <= 20 * histogram.noise_scale
    assert errors.max() > 0
    present = int((train.lengths() > 0).sum())
    assert abs(users.values[0] - present) <= 7 * users.noise_sd
    # ... and the noise is small against what is measured, so that this shows something
    assert users.noise_sd < present / 20

    # each ledger holds both releases, and the manifest says what they cost
    cost = accountant.epsilon(found.spec.releases, 1e-5)
    assert 3.8 < cost <= 4.0
    assert found.manifest.epsilon_micro == accountant.to_micro(cost)
    for ledger in ledgers(trial):
        assert ledger.spent() == pytest.approx(cost, rel=1e-9)
        assert [entry.release for entry in ledger.entries()] == list(found.spec.releases)

    # the answers shown are those, with signatures verified
    out, plot = trial.root / "answers.json", trial.root / "answers.png"
    shown = veil(
        "show", folders[2], "--authority", authority, "--signers", ",".join(PARTIES), "--json", out, "--plot", plot
    )
    assert shown.returncode == 0, shown.stderr
    assert f"epsilon {cost:.4f}" in shown.stdout
    assert f"± {histogram.interval_95:,.1f}" in shown.stdout
    assert tuple(json.loads(out.read_text())["answers"][0]["values"]) == histogram.values
    assert plot.read_bytes().startswith(b"\x89PNG")
    stranger = veil("show", folders[2], "--authority", authority, "--signers", "delta")
    assert stranger.returncode == 1
    assert "delta" in stranger.stderr

    # as much again is more than the 6 that each party allows: refused by the parties, nothing spent
    spec = job_client.plan_job(write_query(trial, 4.0, "parties"), "trial")
    job = job_client.submit_job(trial.desk, spec)
    with pytest.raises(BudgetError):
        list(job_client.watch_job(trial.desk, job.job_id))
    assert all(ledger.spent() == pytest.approx(cost, rel=1e-9) for ledger in ledgers(trial))

    # what is left of the budget still answers, with a draw by each party
    spec = job_client.plan_job(write_query(trial, 1.5, "parties"), "trial")
    job = job_client.submit_job(trial.desk, spec)
    list(job_client.watch_job(trial.desk, job.job_id))
    again, _ = load_answers(trial.state("alpha") / "models" / job.job_id, authority.read_bytes()).answers
    assert again.noise_draws == 3
    assert np.abs(np.array(again.values) - truth).max() <= 3 * 20 * again.noise_scale
