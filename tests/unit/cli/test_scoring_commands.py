"""`veil serve`, `veil recommend` and `veil bench score`: what they read and what they refuse, without a server."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cli.bench_score import measure, score
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
            model=tmp_path, credentials=tmp_path, listen="127.0.0.1:0", signers="alpha", state=tmp_path / "s", workers=1
        )


def test_the_benchmark_measures_both_and_writes_json(tmp_path: Path) -> None:
    score(items=300, dim=8, params="session-4096", queries=2, peers=True, json_file=tmp_path / "score.json")
    result = json.loads((tmp_path / "score.json").read_text())
    ours, theirs = result, result["peers"]["tenseal_matmul"]
    for side in (ours, theirs):
        assert side["max_abs_error"] < result["max_abs_error_stated"]
        assert side["top10_overlap"] == 1.0
        assert min(side["server_ms_p50"], side["client_ms_p50"], side["queries_per_s"]) > 0
    for key in ("query_bytes", "response_bytes", "key_bytes"):
        assert 0 < ours[key] < theirs[key]
    assert measure(10, 4, "session-8192", queries=1, peer_queries=0)["peers"] == {}
