"""`veil party check`: what it says of the rows, and the report that it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.party import app
from veil.errors import ConfigError
from veil.recsys import synthetic
from veil.recsys.features import build_catalogue

_EXAMPLE = Path(__file__).parents[3] / "deploy" / "party.toml"
_SECRET = "alice-4711"
_USERS = """
[users]
source = "users.csv"
[users.read.columns]
user = "user_id"
[users.anonymity]
k = 3
[[users.attribute]]
name = "age"
role = "quasi-identifier"
steps = [{ bin = [30] }]
[[users.attribute]]
name = "mail"
role = "identifier"
steps = [{ drop = true }]
"""


@pytest.fixture
def config(tmp_path: Path, consortium: Path) -> Path:
    """The shipped example with attributes of users, and sources beside it."""
    catalogue = build_catalogue(synthetic.generate(50, 260, seed=5, negatives=9).table)
    catalogue.save(tmp_path / "catalogue")
    users = [f"{_SECRET}-{number}" for number in range(10)]
    lines = ["user_id,item_id,time", *(f"{user},{catalogue.ids[number]},7" for number, user in enumerate(users))]
    (tmp_path / "interactions.csv").write_text("\n".join(lines))
    lines = ["user_id,age,mail", *(f"{user},{20 + 3 * number},m{number}@x.org" for number, user in enumerate(users))]
    (tmp_path / "users.csv").write_text("\n".join(lines))
    text = _EXAMPLE.read_text().replace('"credentials"', json.dumps(str(consortium / "party-alpha")))
    path = tmp_path / "party.toml"
    path.write_text(text + _USERS)
    return path


@pytest.mark.parametrize("name", ["report.json", "report.md"])
def test_check_shows_and_writes_what_was_changed(config: Path, tmp_path: Path, name: str) -> None:
    result = CliRunner().invoke(app, ["check", "--config", str(config), "--report", str(tmp_path / name)])
    assert result.exit_code == 0, result.output
    assert "rows       10 read, 10 kept, 0 bad" in result.output
    assert "k = 3" in result.output and "not differential privacy" in result.output
    written = (tmp_path / name).read_text()
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    if name.endswith(".json"):
        document = json.loads(written)
        assert document == json.loads((tmp_path / "state" / "rows" / "deidentification.json").read_text())
        assert document["attributes"]["anonymity"]["prepared"]["smallest"] == 4  # ages 20 to 29 and 32 to 47
    else:
        assert "| age | quasi-identifier |" in written
    for shown in (result.output, written):
        assert _SECRET not in shown and "x.org" not in shown


def test_a_report_of_another_form_is_refused_before_anything_is_read(config: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["check", "--config", str(config), "--report", str(tmp_path / "report.txt")])
    assert isinstance(result.exception, ConfigError)
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("align", ["true", "false"])
def test_check_says_whether_ids_are_kept(config: Path, align: str) -> None:
    config.write_text(config.read_text().replace("align = false", f"align = {align}"))
    result = CliRunner().invoke(app, ["check", "--config", str(config)])
    assert result.exit_code == 0, result.output
    assert ("ids        of 10 users kept" in result.output) == (align == "true")
