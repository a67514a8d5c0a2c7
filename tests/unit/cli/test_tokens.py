"""`veil tokens`: a token is shown once, and nothing else that opens anything ever."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.main import application
from he_inference.service.tokens import TokenFile
from veil.errors import ConfigError, IdentityError

runner = CliRunner()


def run(*arguments: str) -> tuple[str, str]:
    result = runner.invoke(application("tokens"), list(arguments))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def test_from_making_to_revoking(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    out, said = run("add", "--file", str(file), "--name", "app1", "--days", "30")
    token = out.strip()
    # the token alone on standard output, once; what is said about it does not repeat it
    assert token.count("\n") == 0 and token.startswith("veil_") and token not in said
    assert TokenFile(file).name_of(token) == "app1"
    second, _ = run("add", "--file", str(file), "--name", "app2")
    listed, _ = run("list", "--file", str(file))
    assert "app1" in listed and "app2" in listed and listed.count("valid") == 2
    hashes = [part for part in file.read_text().split('"') if len(part) == 64]
    assert hashes and not any(secret in listed for secret in (token, second.strip(), *hashes))
    out, _ = run("revoke", "--file", str(file), "app1")
    assert out == "1 valid token revoked\n"
    with pytest.raises(IdentityError):
        TokenFile(file).name_of(token)
    listed, _ = run("list", "--file", str(file))
    assert "revoked" in listed and listed.count("valid") == 1


def test_mistakes_are_told(tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    with pytest.raises(ConfigError, match="no file of tokens"):
        run("list", "--file", str(file))
    with pytest.raises(ConfigError, match="expected 1 to 48 of a-z"):
        run("add", "--file", str(file), "--name", "App One")
    run("add", "--file", str(file), "--name", "app1")
    with pytest.raises(ConfigError, match="veil tokens list"):
        run("revoke", "--file", str(file), "app2")
