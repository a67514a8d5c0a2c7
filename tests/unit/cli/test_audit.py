"""`veil audit`: exit status, report, options."""

from __future__ import annotations

import functools
import html
import json
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from cli.main import application
from veil.errors import ConfigError, VeilError
from veil.recsys import datasets

SMALL = [
    "--data",
    "synthetic:150",
    "--runs",
    "2",
    "--canaries",
    "32",
    "--users",
    "120",
    "--models",
    "4",
    "--targets",
    "16",
    "--no-text",
]


@pytest.fixture(autouse=True)
def few_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """The synthetic data set over 310 items instead of 2,000: its size is not what is tested here."""
    monkeypatch.setattr(datasets, "generate", functools.partial(datasets.generate, items=310))


def run(tmp_path: Path, *arguments: str, fails: type[VeilError] | None = None) -> Result:
    app: typer.Typer = application("audit")
    result = CliRunner().invoke(app, ["--out", str(tmp_path / "audit"), "--seed", "3", *arguments])
    if fails is not None:
        assert isinstance(result.exception, fails)
    return result


def test_a_sound_mechanism_passes_and_leaves_a_report(tmp_path: Path) -> None:
    figures_file = tmp_path / "figures.json"
    result = run(tmp_path, *SMALL, "--epsilon", "5", "--json", str(figures_file))
    assert result.exit_code == 0, result.output
    assert "no violation found" in result.output and "below the claim in 2 of 2 runs" in result.output
    figures = json.loads((tmp_path / "audit" / "report.json").read_text())
    assert figures == json.loads(figures_file.read_text())
    assert figures["passed"] and len(figures["controls"]) == 5
    assert all(control["caught_by"] for control in figures["controls"])
    page = (tmp_path / "audit" / "report.html").read_text()
    assert page.count("<svg") == 4 and "no violation found" in page and "NOT CAUGHT" not in page
    assert not re.search(r"(src|href)=\"(http|//)", page), "the page refers to nothing outside"
    for control in figures["controls"]:
        assert control["title"] in html.unescape(page)


def test_a_broken_mechanism_exits_with_1_and_says_why(tmp_path: Path) -> None:
    result = run(tmp_path, *SMALL, "--models", "0", "--sabotage", "noise-off")
    assert result.exit_code == 1
    assert "VIOLATION" in result.output and "failed: noise spread, run 1, counts" in result.output
    assert "violation" in (tmp_path / "audit" / "report.html").read_text()


@pytest.mark.parametrize("arguments", [["--runs", "0"], ["--sabotage", "nothing"], ["--data", "nowhere"]])
def test_wrong_options(tmp_path: Path, arguments: list[str]) -> None:
    run(tmp_path, *arguments, fails=ConfigError)
    assert not (tmp_path / "audit").exists()
