"""Compiled code on the disk: in a folder of its own for each version of its sources, where one may be written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numba
import pytest

from veil import jit

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_folder_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)


def test_the_setting_of_the_process_is_put_back(tmp_path: Path) -> None:
    config: Any = numba.config
    before = config.CACHE_DIR

    def twice(number: int) -> int:
        return 2 * number

    assert jit.Compiler(tmp_path / "kernels").kernel(twice)(21) == 42
    assert before == config.CACHE_DIR
    assert list((tmp_path / "kernels").rglob("*.nbi"))


def test_code_of_other_sources_lies_in_another_folder(tmp_path: Path) -> None:
    """Numba itself would go on with a kernel whose own file did not change, whatever that kernel calls."""
    one, other = tmp_path / "one.py", tmp_path / "other.py"
    one.write_text("a")
    other.write_text("b")
    folder = jit.compiler(tmp_path, "kernels", [one, other]).folder
    assert folder == jit.compiler(tmp_path, "kernels", [other, one]).folder
    assert folder is not None and folder.parent == tmp_path / "__pycache__"
    other.write_text("c")
    assert folder != jit.compiler(tmp_path, "kernels", [one, other]).folder
    assert folder != jit.compiler(tmp_path, "kernels", [one]).folder


def test_where_code_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "package"
    (package / "__pycache__").mkdir(parents=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    readonly = {package / "__pycache__"}
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) not in readonly and access(path, mode))

    def place() -> Path | None:
        folder = jit.compiler(package, "kernels", []).folder
        return None if folder is None else folder.parent

    assert place() == tmp_path / "own" / "veil"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert place() == tmp_path / ".cache" / "veil"
    monkeypatch.delenv("HOME")
    assert place() is None
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "given"))
    assert place() == tmp_path / "given"
    readonly.add(tmp_path)
    assert place() is None  # what was asked for or nothing


def test_a_cache_that_others_may_write_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled code is run as it lies there."""
    package = tmp_path / "package"
    package.write_text("no folder, so that nothing is kept beside the sources")
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(home))

    def kept() -> bool:
        return jit.compiler(package, "kernels", []).folder is not None

    assert kept()
    home.chmod(0o1777)  # as /tmp: another user can make .cache first
    assert not kept()
    (home / ".cache" / "veil").mkdir(parents=True, mode=0o700)
    assert kept()
    (home / ".cache" / "veil").chmod(0o777)
    assert not kept()
    (home / ".cache" / "veil").chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: home.stat().st_uid + 1)
    assert not kept()


def test_without_a_folder_kernels_are_made_all_the_same() -> None:
    def thrice(number: int) -> int:
        return 3 * number

    assert jit.Compiler(None).kernel(thrice)(14) == 42


@pytest.mark.parametrize(
    ("module", "folders"),
    [
        ("he_inference.ring.jit", ("he_inference/ring", "he_inference/engine")),
        ("veil.mpc.he.jit", ("veil/mpc/he",)),
    ],
)
def test_every_file_with_kernels_is_among_the_sources(module: str, folders: tuple[str, ...]) -> None:
    for path in (*ROOT.glob("he_inference/**/*.py"), *ROOT.glob("veil/**/*.py")):
        if f"from {module} import" in path.read_text() and "kernel" in path.read_text():
            assert str(path.parent.relative_to(ROOT)) in folders, path
