"""Which engine a compute process has: a GPU's answers are those of the processors; without a GPU nothing starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from he_inference.layouts.catalogue import layout_of
from he_inference.parameters import FAST, KEYLESS
from he_inference.service import process
from he_inference.service.pool import WorkerPool
from he_inference.service.process import IndexFile
from he_inference.service.setting import Setting
from tests.unit.he_inference.engine.random_messages import a_query, some_keys
from tests.unit.he_inference.serving import Asker, make_index, unit_rows
from veil.errors import ConfigError

ITEMS, DIMENSIONS = 5000, 8
LAYOUTS = [
    layout_of("session", FAST, ITEMS, DIMENSIONS),
    layout_of("keyless", KEYLESS, ITEMS, DIMENSIONS, 4),
]
ROWS = unit_rows(ITEMS, DIMENSIONS)
NO_CUDA = not torch.cuda.is_available()
ON_DEVICE = Setting(threads=1, cuda=0)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[IndexFile]]:
    folder = tmp_path_factory.mktemp("index")
    made = [make_index(folder / layout.kind, layout, ROWS) for layout in LAYOUTS]
    yield made
    for one in made:
        one.close()


def answered(pool: WorkerPool, file: IndexFile) -> list[list[bytes]]:
    keys = some_keys(file.layout, 7) if file.layout.galois_elements else b""
    name = file.layout.kind if keys else ""
    return [pool.score(file, name, a_query(file.layout, seed), lambda: keys).results for seed in range(2)]


@pytest.mark.parametrize(
    "where", ["processor", pytest.param("device", marks=pytest.mark.skipif(NO_CUDA, reason="GPU"))]
)
def test_a_process_with_a_device_answers_as_one_without(
    where: str, files: list[IndexFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    with WorkerPool(setting=Setting(threads=1)) as pool:
        pool.serve(files)
        want = [answered(pool, file) for file in files]
    if where == "processor":
        monkeypatch.setattr(process, "_WORKER", "tests.unit.he_inference.service.worker_on_processor")
    with WorkerPool(setting=ON_DEVICE) as pool:
        pool.serve(files)
        assert [answered(pool, file) for file in files] == want
        for file in files:
            Asker(pool, file, ROWS).ask()
        (pid,) = pool.pids
        table = Path(f"/proc/{pid}/limits")
        if table.exists():
            limits = {line[:26].strip(): line[26:].split() for line in table.read_text().splitlines()}
            assert limits["Max address space"][0] == "unlimited", "a driver reserves addresses whenever it likes"
            assert limits["Max data size"][0] != "unlimited" and limits["Max file size"][0] != "unlimited"
            assert limits["Max core file size"][:2] == ["0", "0"]


@pytest.mark.skipif(not NO_CUDA, reason="there is a CUDA device")
def test_without_a_device_nothing_starts(files: list[IndexFile]) -> None:
    for number in (0, 3):
        with (
            WorkerPool(setting=Setting(threads=1, cuda=number)) as pool,
            pytest.raises(ConfigError, match=f"engine cuda, device {number}.*no CUDA device") as error,
        ):
            pool.serve(files)
        assert error.value.hint is not None and "CUDA build of torch" in error.value.hint
        assert pool.pids == []


def test_a_process_with_a_device_learns_which_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("VEIL_SECRET", "word")
    bare = Setting(threads=1, kernels=tmp_path).environment()
    assert not [name for name in bare if name.startswith(("CUDA_", "TRITON_", "RAY_", "HOME"))]
    made = Setting(threads=1, kernels=tmp_path, cuda=0).environment()
    assert {name: made[name] for name in set(made) - set(bare)} == {
        "CUDA_VISIBLE_DEVICES": "1",
        "CUDA_CACHE_PATH": str(tmp_path / "cuda"),
        "TRITON_CACHE_DIR": str(tmp_path / "triton"),
    }
    assert "VEIL_SECRET" not in made
