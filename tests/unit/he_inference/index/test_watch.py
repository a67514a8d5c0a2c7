"""An index exchanged while it is used."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from he_inference.index.build import update
from he_inference.index.watch import IndexWatch
from veil.errors import ArtifactError, StateError

from .conftest import Make, random_rows


def test_a_replaced_file_is_taken_up_and_the_old_one_kept_for_who_uses_it(make: Make) -> None:
    path = make(random_rows(40))
    watch = IndexWatch(path)
    assert not watch.check() and watch.generation == 1
    with watch.lease() as old, watch.lease() as same:
        assert same is old
        blocks = old.blocks.copy()
        update(path, {0: np.zeros(7)})
        assert watch.generation == 1
        assert watch.check() and watch.generation == 2
        assert not watch.check()
        with watch.lease() as new:
            assert new.generation == 2 and new is not old
        np.testing.assert_array_equal(old.blocks, blocks)
        assert new.blocks.shape == blocks.shape
    with pytest.raises(StateError, match="closed"):
        _ = old.blocks
    watch.close()
    with pytest.raises(StateError, match="closed"):
        _ = new.blocks
    with pytest.raises(StateError, match="closed watch"), watch.lease():
        pass
    assert not watch.check()


def test_a_lease_outlives_the_watch(make: Make) -> None:
    watch = IndexWatch(make(random_rows(40)))
    with watch.lease() as index:
        watch.close()
        assert index.blocks.size
    with pytest.raises(StateError):
        _ = index.blocks


def test_a_damaged_file_is_refused_once_and_the_old_one_stays(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    path = make(random_rows(40))
    data = bytearray(path.read_bytes())
    watch = IndexWatch(path)
    data[-1] ^= 1
    broken = path.with_name("broken")
    broken.write_bytes(data)
    os.replace(broken, path)
    with caplog.at_level(logging.ERROR, "veil.index"):
        assert not watch.check() and not watch.check()
    assert len(caplog.records) == 1 and "damaged blocks" in caplog.text
    path.unlink()
    assert not watch.check()
    with watch.lease() as index:
        assert index.generation == 1 and index.blocks.size
    make(random_rows(50))
    assert watch.check()
    with watch.lease() as index:
        assert index.layout.items == 50
    watch.close()


def test_a_watch_needs_a_sound_file_to_begin_with(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        IndexWatch(tmp_path / "absent")


def test_requests_go_on_while_the_index_changes(make: Make) -> None:
    path = make(random_rows(300))
    watch = IndexWatch(path)
    stop, done, failures = threading.Event(), list[int](), list[BaseException]()

    def serve() -> None:
        try:
            while not stop.is_set():
                with watch.lease() as index:
                    before = index.generation
                    assert int(index.blocks.max()) > 0 and index.generation == before
                    done.append(before)
        except BaseException as error:  # noqa: BLE001 - handed to the test
            failures.append(error)

    threads = [threading.Thread(target=serve) for _ in range(3)]
    follower = threading.Thread(target=watch.follow, args=(stop, 0.01))
    for thread in [*threads, follower]:
        thread.start()
    for number in range(10):
        update(path, {number: np.zeros(7)})
    while watch.generation < 11 and not failures:
        pass
    stop.set()
    for thread in [*threads, follower]:
        thread.join()
    watch.close()
    assert not failures and len(set(done)) > 1
