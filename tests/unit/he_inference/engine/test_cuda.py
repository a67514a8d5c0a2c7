"""The engine of a GPU, with the processor in its place and on a GPU where one is: the bytes of the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from he_inference.engine import cuda, gpu
from he_inference.engine.blocks import Blocks
from he_inference.engine.history import HistoryEngine
from he_inference.engine.local import LocalEngine
from he_inference.engine.seam import Engine
from he_inference.index.build import build
from he_inference.index.store import Index
from he_inference.layouts.history import HistoryLayout
from he_inference.layouts.keyless import KeylessLayout
from he_inference.layouts.seam import Layout
from he_inference.layouts.session import SessionLayout
from he_inference.parameters import EXACT, FAST, HISTORY, KEYLESS_SMALL, PQ
from he_inference.ring.moduli import Words
from tests.unit.he_inference.engine.random_messages import a_query, some_keys
from veil.errors import CiphertextError, ConfigError, StateError

NO_CUDA = not torch.cuda.is_available()
LAYOUTS: list[Layout] = [
    SessionLayout(FAST, 9000, 20),
    SessionLayout(PQ, 100, 8),
    SessionLayout(EXACT, 5000, 8),
    KeylessLayout(KEYLESS_SMALL, 150, 7, 64),
    HistoryLayout(HISTORY, 5000, 8, 3),
]


@pytest.fixture(params=["cpu", pytest.param("cuda:0", marks=pytest.mark.skipif(NO_CUDA, reason="no CUDA device"))])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the engine finds when it looks for its device."""
    monkeypatch.setattr(gpu, "cuda_device", lambda _number: torch.device(request.param))


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def parts_of(layout: Layout, folder: Path, opened: ExitStack) -> list[Index]:
    parts: list[Layout] = [layout.fold_in, layout.output] if isinstance(layout, HistoryLayout) else [layout]
    indexes = []
    for number, part in enumerate(parts):
        rows = np.random.default_rng(number).standard_normal((part.items, part.dimensions))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        path = folder / f"{number}.index"
        build(path, part, rows, item_norm=1.0, model_digest=bytes(32), item_ids_digest=bytes(32), keep_rows=False)
        indexes.append(opened.enter_context(Index.open(path)))
    return indexes


def answers(engine: Engine[Words, Words], queries: Sequence[bytes], keys: Sequence[bytes]) -> list[list[bytes]]:
    results: list[list[bytes]] = [[] for _ in queries]
    held = [engine.read_keys(one) if one else None for one in keys]
    for run in engine.score([engine.read_query(query) for query in queries], held):
        for gathered, one in zip(results, run, strict=True):
            gathered.extend(one)
    return results


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.kind}-{layout.parameters.name}")
@pytest.mark.usefixtures("device")
def test_answers_are_the_bytes_of_the_engine_without_a_device(
    layout: Layout, tmp_path: Path, opened: ExitStack
) -> None:
    parts = parts_of(layout, tmp_path, opened)
    local: Engine[Words, Words] = HistoryEngine(parts[0], parts[1]) if len(parts) == 2 else LocalEngine(parts[0])
    (subject,) = cuda.engines([parts], 0)
    assert subject.layout == local.layout == layout
    queries = [a_query(layout, seed) for seed in range(3)]
    keys = [some_keys(layout, seed) if layout.galois_elements else b"" for seed in (7, 8, 7)]
    together = answers(subject, queries, keys)
    assert together == answers(local, queries, keys)
    assert [len(one) for one in together] == [layout.blocks] * 3
    assert answers(subject, queries[1:2], keys[1:2]) == together[1:2]
    with pytest.raises(CiphertextError):
        subject.read_query(queries[0][:-1])


@pytest.mark.usefixtures("device")
def test_an_index_is_moved_once(tmp_path: Path, opened: ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[tuple[int, ...]] = []
    real = gpu.DeviceBlocks.moved

    def counted(index: Words, q: NDArray[np.uint64], device: torch.device) -> Blocks:
        moved.append(index.shape)
        return real(index, q, device)

    monkeypatch.setattr(gpu.DeviceBlocks, "moved", counted)
    (index,) = parts_of(LAYOUTS[1], tmp_path, opened)
    (subject,) = cuda.engines([[index]], 0)
    shape = index.blocks.shape
    index.close()
    for seed in range(3):
        answers(subject, [a_query(LAYOUTS[1], seed)], [some_keys(LAYOUTS[1], 7)])
    assert moved.count(shape) == 1


@pytest.mark.usefixtures("device")
def test_a_closed_engine_says_so(tmp_path: Path, opened: ExitStack) -> None:
    (subject,) = cuda.engines([parts_of(LAYOUTS[1], tmp_path, opened)], 0)
    query = subject.read_query(a_query(LAYOUTS[1], 0))
    subject.close()
    subject.close()
    with pytest.raises(StateError, match="closed"):
        list(subject.score([query], [None]))
    assert subject.layout == LAYOUTS[1]


@pytest.mark.usefixtures("device")
def test_a_batch_without_room_is_an_error_of_the_batch(
    tmp_path: Path, opened: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    (subject,) = cuda.engines([parts_of(LAYOUTS[3], tmp_path, opened)], 0)
    queries = [a_query(LAYOUTS[3], 0)]
    before = answers(subject, queries, [b""])

    def full(*_: object) -> Iterator[Words]:
        raise torch.OutOfMemoryError("full")

    with monkeypatch.context() as patch:
        patch.setattr(gpu.DeviceBlocks, "sums", full)
        with pytest.raises(StateError, match="1 queries that the device has no memory for"):
            answers(subject, queries, [b""])
    assert answers(subject, queries, [b""]) == before


@pytest.mark.skipif(not NO_CUDA, reason="there is a CUDA device")
def test_without_a_device_there_is_no_engine(tmp_path: Path, opened: ExitStack) -> None:
    with pytest.raises(ConfigError, match="no CUDA device"):
        cuda.engines([parts_of(LAYOUTS[1], tmp_path, opened)], 0)
