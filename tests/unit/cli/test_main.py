from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from cli import main as veil
from veil import __version__
from veil.errors import ConfigError, DataError, PeerLost, VeilError

ROOT = Path(__file__).parents[3]
_HEAVY = {"torch", "crypten", "tenseal", "polars", "matplotlib", "grpc"}


@pytest.fixture(autouse=True)
def unchanged_process() -> Iterator[None]:
    """`veil` sets up logging and gRPC's verbosity for its own process."""
    handlers, level, environment = logging.root.handlers[:], logging.root.level, dict(os.environ)
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    os.environ.clear()
    os.environ.update(environment)


def _call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str | int | None:
    """What `veil ARGUMENTS` leaves to the system: a status, or the text that stands for status 1."""
    monkeypatch.setattr(sys, "argv", ["veil", *arguments])
    try:
        veil.main()
    except SystemExit as end:
        return end.code
    return 0


def _leaves() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name in veil._COMMANDS:
        command = get_command(veil.application(name))
        below = getattr(command, "commands", {})
        found += [(name, inner) for inner in below] or [(name,)]
    return found


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",), ("-v",)])
def test_overview_names_every_command(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _call(monkeypatch, *arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in veil._COMMANDS:
        assert any(line.split()[:1] == [name] for line in lines), name
    assert any("veil demo --out" in line for line in lines)


def test_overview_loads_no_program() -> None:
    script = "import sys; sys.argv = ['veil']; from cli.main import main; main(); print('|', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not _HEAVY & set(done.stdout.rpartition("|")[2].split())


def test_output_survives_a_terminal_without_unicode() -> None:
    script = "import sys; sys.argv = ['veil', 'certs', 'issue', '--help']; from cli.main import main; main()"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "120"}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"veil {__version__}\n"


@pytest.mark.parametrize("word", ["trian", "--nope", "x" * 500])
def test_unknown_command_is_refused(
    word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _call(monkeypatch, word) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert word[:40] in captured.err
    assert "expected one of demo, certs" in captured.err
    assert len(captured.err) < 400


@pytest.mark.parametrize("words", _leaves(), ids=" ".join)
def test_help_of_every_command_has_an_example(words: tuple[str, ...]) -> None:
    runner = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"})
    result = runner.invoke(veil.application(words[0]), [*words[1:], "--help"], prog_name=f"veil {words[0]}")
    assert result.exit_code == 0, result.output
    assert f"Example: veil {' '.join(words)}" in " ".join(result.output.split()), result.output


def test_wrong_option_exits_with_two(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _call(monkeypatch, "privacy", "plan", "--epsilon", "much", "--items", "5") == 2
    assert "--epsilon" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ("coordinator", "--config", "absent.toml"),
        ("party", "check", "--config", "absent.toml"),
        ("certs", "show", "--dir", "absent"),
        ("catalogue", "show", "absent"),
        ("privacy", "ledger", "--config", "absent.toml"),
        ("demo", "--epsilon", "-1", "--out", "absent"),
    ],
    ids=" ".join,
)
def test_missing_input_is_one_paragraph(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    said = _call(monkeypatch, *arguments)
    assert isinstance(said, str)
    assert said.startswith("veil: got ")
    assert "\n  code: " in said
    assert list(tmp_path.iterdir()) == []


def test_what_the_system_refuses_is_one_paragraph(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = _call(monkeypatch, "demo", "--out", str(tmp_path / "file"))
    assert said == f"veil: the system says: File exists at {tmp_path / 'file'}\n  code: SYSTEM"


def test_unknown_log_level_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VEIL_LOG", "LOUD")
    said = _call(monkeypatch, "--version")
    assert isinstance(said, str)
    assert "VEIL_LOG='LOUD'" in said


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (VeilError("got a, expected b"), ["veil: got a, expected b", "  code: {code}"]),
        (
            ConfigError("got a, expected b", hint="do c"),
            ["veil: got a, expected b", "  what to do: do c", "  code: {code}"],
        ),
        (PeerLost("beta is gone", culprits=("beta",)), ["veil: beta is gone", "  at fault: beta", "  code: {code}"]),
        (DataError("got 2 bad rows", lines=(3, 7)), ["veil: got 2 bad rows", "  lines: 3, 7", "  code: {code}"]),
    ],
    ids=["plain", "hint", "culprits", "lines"],
)
def test_description_says_who_where_and_what_to_do(error: VeilError, lines: list[str]) -> None:
    assert veil.describe(error).splitlines() == [line.format(code=error.code) for line in lines]
