from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.catalogue import app
from veil.errors import ArtifactError, ConfigError, DataError, StateError
from veil.recsys.catalogue import Catalogue

ROWS = "code;name;kinds\na;Heat (1995);Crime\nb;Alien (1979);Horror,Space\nc;Brazil (1985);Space\n"
OPTIONS = ["--id", "code", "--title", "name", "--categories", "kinds", "--category-separator", ",", "--separator", ";"]


def items(tmp_path: Path, text: str = ROWS) -> str:
    (tmp_path / "items.txt").write_text(text)
    return str(tmp_path / "items.txt")


def test_build_and_show(tmp_path: Path) -> None:
    out = tmp_path / "catalogue"
    built = CliRunner().invoke(
        app, ["build", "--items", items(tmp_path), *OPTIONS, "--encoder", "none", "--out", str(out)]
    )
    assert built.exit_code == 0, built.output
    catalogue = Catalogue.load(out)
    assert catalogue.ids == ("a", "b", "c") and catalogue.categories[1] == ("Horror", "Space")
    assert [block.name for block in catalogue.blocks] == ["categories", "years", "constant"]
    assert catalogue.digest in built.output
    shown = CliRunner().invoke(app, ["show", str(out), "--digest", catalogue.digest])
    assert shown.exit_code == 0 and "Space (2)" in shown.output and "Heat (1995)" in shown.output
    refused = CliRunner().invoke(app, ["show", str(out), "--digest", "sha256:" + "0" * 64])
    assert isinstance(refused.exception, ArtifactError)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--id", "nothing", "--separator", ";"], DataError),
        (["--id", "code"], ConfigError),
        ([*OPTIONS, "--encoding", "ebcdic"], ConfigError),
        ([*OPTIONS, "--encoder", "/no/such/folder"], ConfigError),
    ],
)
def test_wrong_options_leave_nothing_behind(tmp_path: Path, arguments: list[str], error: type[Exception]) -> None:
    out = tmp_path / "catalogue"
    if "--encoder" not in arguments:
        arguments = [*arguments, "--encoder", "none"]
    result = CliRunner().invoke(app, ["build", "--items", items(tmp_path), *arguments, "--out", str(out)])
    assert isinstance(result.exception, error)
    assert [path.name for path in tmp_path.iterdir()] == ["items.txt"]


def test_an_existing_directory_is_kept(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["build", "--items", items(tmp_path), *OPTIONS, "--encoder", "none", "--out", str(tmp_path)]
    )
    assert isinstance(result.exception, StateError)
