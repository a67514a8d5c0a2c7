"""`veil bench score --engine cuda`: the same figures with a GPU, or the processor in its place; refused without one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from cli.bench_score import score
from cli.score_case import Case, measure
from he_inference.engine import gpu
from he_inference.service import process
from veil.errors import ConfigError

_NO_CUDA = not torch.cuda.is_available()


@pytest.mark.skipif(not _NO_CUDA, reason="there is a CUDA device")
def test_without_a_device_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no CUDA device"):
        score(items=300, dim=8, params="fast", queries=1, engine="cuda", json_file=tmp_path / "score.json")
    assert not (tmp_path / "score.json").exists()


@pytest.mark.parametrize("engine", ["cpu", "ray", "cuda:1", ""])
def test_another_engine_is_refused(engine: str) -> None:
    with pytest.raises(ConfigError, match="expected process or cuda"):
        measure(Case(300, 8, "fast", queries=1, engine=engine))


@pytest.mark.parametrize(
    "where", ["processor", pytest.param("device", marks=pytest.mark.skipif(_NO_CUDA, reason="no CUDA device"))]
)
@pytest.mark.parametrize("params", ["fast", "history"])
def test_the_figures_are_the_same_ones(
    where: str, params: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = measure(Case(3000, 8, params, clients=2, queries=2))
    if where == "processor":
        monkeypatch.setattr(gpu, "cuda_device", lambda _number: torch.device("cpu"))
        monkeypatch.setattr(process, "_WORKER", "tests.unit.he_inference.service.worker_on_processor")
    score(items=3000, dim=8, params=params, clients=2, queries=2, engine="cuda", json_file=tmp_path / "score.json")
    figures = json.loads((tmp_path / "score.json").read_text())
    assert figures.keys() == plain.keys()
    assert figures["throughput"].keys() == plain["throughput"].keys()
    assert (plain["engine"], figures["engine"]) == ("process", "cuda")
    assert figures["throughput"]["same_bytes"]
    assert figures["max_abs_error"] < figures["max_abs_error_stated"]
    for key in ("query_bytes", "response_bytes", "key_bytes", "index_bytes"):
        assert figures[key] == plain[key]
