"""`veil predict`: rows held whole or by the parties, never half of each; job files of other kinds are not submitted."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cli import main as veil
from cli.job_view import plan_lines
from tests.unit.party.worker.test_predictions import Site
from veil.errors import ConfigError
from veil.identity.names import Identity, Role
from veil.identity.trial import make_consortium


def status(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str | int | None:
    monkeypatch.setattr(sys, "argv", ["veil", "predict", *arguments])
    try:
        veil.main()
    except SystemExit as end:
        return end.code
    return 0


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--model", "models/JOB"),
        ("--model", "models/JOB", "--data", "rows.csv"),
        ("--job", "job.toml"),
        ("--job", "job.toml", "--coordinator", "localhost:1"),
        ("--job", "job.toml", "--model", "models/JOB"),
        ("--job", "job.toml", "--coordinator", "localhost:1", "--credentials", ".", "--out", "scores.csv"),
    ],
)
def test_it_is_one_way_or_the_other(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VEIL_COORDINATOR", "VEIL_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    assert status(monkeypatch, *arguments) == 2


def test_a_job_of_another_kind_is_not_submitted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = make_consortium(tmp_path / "certs", "trial", ["alpha"])[Identity("trial", Role.OPERATOR, "main")]
    root = Path(__file__).parents[3]
    job = tmp_path / "job.toml"
    schema = root / "deploy" / "columns.toml"
    job.write_text((root / "deploy" / "job-columns.toml").read_text().replace('"columns.toml"', f'"{schema}"'))
    given = ("--job", str(job), "--coordinator", "localhost:1", "--credentials", str(folder))
    said = status(monkeypatch, *given)
    assert isinstance(said, str) and "expected predictions" in said


def test_a_plan_says_what_opens_to_whom_and_what_it_costs(tmp_path: Path) -> None:
    spec = Site(tmp_path).job("towers", mode="hidden")
    text = "\n".join(plan_lines(spec))
    assert "opens     scores of 300 slots to shop alone" in text
    assert "no noise, nothing spent" in text
    with pytest.raises(ConfigError):
        _ = spec.privacy
