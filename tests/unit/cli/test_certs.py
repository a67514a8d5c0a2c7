"""`veil certs`: the whole life of a consortium by commands alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from cli.certs import FROM_ENVIRONMENT, app
from veil.errors import ConfigError, IdentityError, StateError, VeilError
from veil.identity.credentials import Credentials


def run(*arguments: str | Path, given: str | None = None, fails: type[VeilError] | None = None) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=given)
    if fails is None:
        assert result.exit_code == 0, result.output
    else:
        assert isinstance(result.exception, fails)
    return result


def test_a_trial_consortium_by_one_command(tmp_path: Path) -> None:
    result = run("init", "--dir", tmp_path, "--consortium", "trial", "--parties", "alpha, beta,gamma")
    assert "veil://trial/party/beta" in result.output
    for folder in ("party-alpha", "party-gamma", "coordinator-main", "dealer-main", "scoring-main", "client-main"):
        assert Credentials.load(tmp_path / folder).identity.folder == folder
    shown = run("show", "--dir", tmp_path / "party-alpha").output
    assert "veil://trial/party/alpha" in shown and "SHA-256" in shown and "valid:" in shown
    key = (tmp_path / "party-alpha" / "key.pem").read_text().splitlines()[1]
    assert key not in shown and "PRIVATE" not in shown
    run("show", "--dir", tmp_path / "party-alpha" / "key.pem", fails=IdentityError)


def test_between_organisations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FROM_ENVIRONMENT, raising=False)
    office, site = tmp_path / "office", tmp_path / "site"
    twice = "correct horse\ncorrect horse\n"
    run("init", "--dir", office, "--consortium", "acme", "--passphrase", given=twice)
    run("init", "--dir", office, "--consortium", "acme", fails=StateError)

    run("issue", "--dir", site, "--consortium", "acme", "--role", "party", "--name", "alpha")
    sign = ["sign", "--dir", office / "authority", "--request", site / "request.pem", "--role", "party"]
    run(*sign, "--name", "beta", "--out", tmp_path / "beta.pem", given="correct horse\n", fails=IdentityError)
    assert not (tmp_path / "beta.pem").exists()
    run(*sign, "--name", "alpha", "--out", tmp_path / "alpha.pem", given="wrong horse\n", fails=IdentityError)
    run(*sign, "--name", "alpha", "--out", tmp_path / "alpha.pem", given="correct horse\n")
    run(*sign, "--name", "alpha", "--out", tmp_path / "alpha.pem", fails=ConfigError)  # never over an existing file

    authority = office / "authority" / "authority.pem"
    run("issue", "--dir", site, "--cert", tmp_path / "alpha.pem", "--authority", authority)
    first = Credentials.load(site)
    assert first.identity.uri == "veil://acme/party/alpha"

    monkeypatch.setenv(FROM_ENVIRONMENT, "correct horse")
    assert "request: veil://acme/party/alpha" in run("renew", "--dir", site).output + run("show", "--dir", site).output
    run(*sign, "--name", "alpha", "--days", "30", "--out", tmp_path / "second.pem")
    run("renew", "--dir", site, "--cert", tmp_path / "second.pem")
    second = Credentials.load(site)
    assert second.identity == first.identity and second.certificate_pem != first.certificate_pem
    assert second.key_pem() != first.key_pem()


def test_half_an_issue_is_refused(tmp_path: Path) -> None:
    run("issue", "--dir", tmp_path / "site", "--consortium", "acme", fails=ConfigError)
    run(
        "issue",
        "--dir",
        tmp_path / "site",
        "--consortium",
        "acme",
        "--role",
        "king",
        "--name",
        "a",
        fails=IdentityError,
    )
    run(
        "issue", "--dir", tmp_path / "site", "--consortium", "..", "--role", "party", "--name", "a", fails=IdentityError
    )
    assert not (tmp_path / "site").exists()


@pytest.mark.parametrize("command", ["init", "issue", "sign", "show", "renew"])
def test_every_command_has_an_example(command: str) -> None:
    assert f"Example: veil certs {command}" in " ".join(run(command, "--help").output.split())
