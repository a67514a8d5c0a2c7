"""`veil serve` and `veil recommend`: what they read and what they refuse, without a server."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cli.recommend import read_history
from cli.serve import serve
from veil.errors import ArtifactError, ConfigError, IdentityError, InputError


@pytest.mark.parametrize("text", ["7\n\n 8 \nnine\n", '["7", 8, "nine"]', '\n ["7", "8", "nine"]', "7\r\n8\r\nnine"])
def test_a_history_is_lines_or_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "history").write_text(text, newline="")
    assert read_history(str(tmp_path / "history")) == ["7", "8", "nine"]
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))
    assert read_history("-") == ["7", "8", "nine"]


@pytest.mark.parametrize("data", [b"\xff\xfe", b"[1, 2", b"[[1]]", b"[true]", b'[{"id": 1}]', b"x" * (5 << 20)])
def test_a_history_that_is_something_else_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "history").write_bytes(data)
    with pytest.raises(InputError):
        read_history(str(tmp_path / "history"))
    with pytest.raises(InputError, match="no readable file"):
        read_history(str(tmp_path / "absent"))


def test_serve_names_the_options_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--credentials, --listen, --signers"):
        serve(model=tmp_path)
    with pytest.raises((IdentityError, ArtifactError, InputError)):
        serve(
            model=tmp_path, credentials=tmp_path, listen="127.0.0.1:0", signers="alpha", state=tmp_path / "s", threads=1
        )
