"""Second names of index files: they name one index, outlive its replacement, and go when it is wanted no more."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from he_inference import parameters
from he_inference.engine.pinned import pin
from he_inference.engine.shard import index_digest
from he_inference.index.build import build, update
from he_inference.index.store import Index
from he_inference.layouts.keyless import KeylessLayout

LAYOUT = KeylessLayout(parameters.KEYLESS_SMALL, 40, 7, packing=64)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "items.index"
    build(found, LAYOUT, np.full((40, 7), 0.1), item_norm=1.0, model_digest=bytes(32), item_ids_digest=bytes(32))
    return found


def pins(path: Path) -> list[Path]:
    return sorted(path.parent.glob(".*.pin"))


def test_a_pin_outlives_the_file_and_goes_when_it_is_wanted_no_more(path: Path) -> None:
    with Index.open(path) as old:
        (found,) = pin([(old, path)])
        assert found != path and found.samefile(path)
        assert pin([(old, path)]) == [found]
        update(path, {3: np.zeros(7)})
        assert pin([(old, path)]) == [found] and not found.samefile(path)
        with Index.open(found) as kept, Index.open(path) as new:
            assert kept.generation == old.generation == new.generation - 1
            assert index_digest(kept.front) == index_digest(old.front) != index_digest(new.front)
            both = pin([(new, path), (old, path)])
            assert both[1] == found and pins(path) == sorted(both)
            assert pin([(new, path)]) == both[:1] == pins(path)
    assert path.exists()


def test_a_pin_is_never_made_of_another_index(path: Path) -> None:
    with Index.open(path) as old:
        update(path, {3: np.zeros(7)})
        assert pin([(old, path)]) == [path]
        assert not pins(path)


def test_a_name_that_is_taken_by_something_else_is_put_right(path: Path) -> None:
    with Index.open(path) as index:
        (found,) = pin([(index, path)])
        found.unlink()
        found.write_bytes(b"something else")
        assert pin([(index, path)]) == [found] and found.samefile(path)


def test_files_of_others_stay(path: Path) -> None:
    others = [path.with_name(name) for name in (".items.index.pin", f".other.index.{'0' * 32}.pin", "notes.txt")]
    for other in others:
        other.write_text("mine")
    with Index.open(path) as index:
        pin([(index, path)])
    assert all(other.read_text() == "mine" for other in others)


def test_where_no_link_can_be_made_the_file_itself_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with Index.open(path) as index:
        assert pin([(index, path)]) == [path]
