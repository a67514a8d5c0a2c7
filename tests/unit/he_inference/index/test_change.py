"""Changes: after any of them the blocks are those of an index built afresh."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from he_inference import parameters
from he_inference.index.build import RebuildRequired, append, build, remove, sync, update
from he_inference.index.rows import next_path, rows_path
from he_inference.index.store import Index
from he_inference.layouts.seam import Floats
from he_inference.layouts.session import SessionLayout
from veil.errors import ArtifactError, ConfigError, InputError, StateError

from .conftest import DIGEST, IDS, Make, random_rows, small_layout

SETTINGS = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def same_as_fresh(path: Path, rows: Floats) -> None:
    """Blocks, checksums and rows of the index are those of one built from `rows`; compared with the file itself."""
    fresh = path.with_name("fresh.index")
    with Index.open(path) as index:
        layout = index.layout
        build(fresh, layout, rows, item_norm=index.item_norm, model_digest=DIGEST, item_ids_digest=IDS)
        with Index.open(fresh) as other:
            np.testing.assert_array_equal(index.blocks, other.blocks)
            np.testing.assert_array_equal(index.front.checks, other.front.checks)
            np.testing.assert_array_equal(index.front.row_checks, other.front.row_checks)
    if rows_path(path).exists():
        assert rows_path(path).read_bytes() == rows_path(fresh).read_bytes()


@given(data=st.data())
@SETTINGS
def test_any_sequence_of_changes_equals_a_fresh_build(make: Make, data: st.DataObject) -> None:
    items = data.draw(st.integers(1, 100))
    rows = random_rows(items)
    path = make(rows)
    removed: set[int] = set()
    generation = Index.open(path, verify=False).generation
    for step in range(data.draw(st.integers(1, 5))):
        seed = data.draw(st.integers(0, 100))
        living = [number for number in range(len(rows)) if number not in removed]
        what = data.draw(st.sampled_from(["update", "append", "remove", "sync"]))
        if what in ("update", "remove") and not living:
            continue
        if what == "update":
            chosen = data.draw(st.sets(st.sampled_from(living), min_size=1, max_size=3))
            fresh = random_rows(len(chosen), seed=seed)
            update(path, dict(zip(sorted(chosen), fresh, strict=True)))
            rows[sorted(chosen)] = fresh
        elif what == "append":
            added = random_rows(data.draw(st.integers(1, 40)), seed=seed)
            reuse = data.draw(st.booleans())
            free = sorted(removed)[: len(added)] if reuse else []
            numbers = append(path, added, reuse=reuse)
            assert numbers == [*free, *range(len(rows), len(rows) + len(added) - len(free))]
            rows = np.concatenate([rows, np.zeros((len(added) - len(free), rows.shape[1]))])
            rows[numbers] = added
            removed -= set(free)
        elif what == "remove":
            chosen = data.draw(st.sets(st.sampled_from(living), min_size=1, max_size=3))
            remove(path, chosen)
            rows[sorted(chosen)] = 0.0
            removed |= chosen
        else:
            keep = data.draw(st.integers(1, len(rows) + 20))
            rows = np.concatenate([rows, random_rows(20, seed=seed)])[:keep].copy()
            rows[data.draw(st.integers(0, keep - 1))] = random_rows(1, seed=seed)[0]
            removed = {number for number in removed if number < keep}
            sync(path, rows.copy(), model_digest=bytes([step]) * 32)
            rows[sorted(removed)] = 0.0
        generation += 1
        with Index.open(path) as index:
            assert index.generation == generation and index.removed.tolist() == sorted(removed)
    same_as_fresh(path, rows)


def test_only_touched_blocks_are_encoded(make: Make) -> None:
    path = make(random_rows(200))
    encoded: list[tuple[int, int]] = []
    update(path, {0: np.zeros(7), 31: np.zeros(7), 100: np.zeros(7)}, progress=lambda *at: encoded.append(at))
    assert encoded == [(1, 2), (2, 2)]
    rows = random_rows(200)
    rows[[0, 31, 100]] = 0.0
    assert sync(path, rows, model_digest=IDS) == (0, 7)
    rows[150] = 0.5 * rows[150]
    assert sync(path, rows) == (1, 7)
    same_as_fresh(path, rows)


def test_sync_writes_nothing_when_nothing_differs(make: Make) -> None:
    path = make(random_rows(70))
    before = os.stat(path)
    assert sync(path, random_rows(70), model_digest=DIGEST) == (0, 3)
    assert os.stat(path) == before
    assert sync(path, random_rows(70), model_digest=IDS) == (0, 3)
    with Index.open(path) as index:
        assert index.generation == 2 and index.model_digest == IDS


def test_negative_zero_is_zero(make: Make) -> None:
    rows = random_rows(40)
    rows[3] = 0.0
    path = make(rows)
    rows[3] = -0.0
    assert sync(path, rows) == (0, 2)
    same_as_fresh(path, rows)


def test_removed_items_stay_out_until_they_are_taken_up(make: Make) -> None:
    rows = random_rows(70)
    path = make(rows)
    remove(path, [5, 64])
    assert sync(path, rows) == (0, 3)
    with Index.open(path) as index:
        assert index.removed.tolist() == [5, 64]
    for numbers in ([5], [70], [-1]):
        with pytest.raises(InputError, match="expected one of an item in the index"):
            remove(path, numbers)
    with pytest.raises(InputError):
        update(path, {5: rows[5]})
    assert sync(path, rows, removed=()) == (2, 3)
    same_as_fresh(path, rows)


def test_more_items_may_want_another_layout(tmp_path: Path) -> None:
    # With a block more, a session query may be rotated more often and sums less: then every block changes.
    dimensions = 33
    layouts = [SessionLayout(parameters.FAST, 4096 * blocks, dimensions) for blocks in range(1, 20)]
    blocks = next(at for at in range(1, 19) if layouts[at].rotations != layouts[at - 1].rotations)
    items = 4096 * blocks
    rows = random_rows(items + 1, dimensions)
    path = tmp_path / "items.index"
    build(path, layouts[blocks - 1], rows[:items], item_norm=1.0, model_digest=DIGEST, item_ids_digest=IDS)
    encoded: list[tuple[int, int]] = []
    assert append(path, rows[items], progress=lambda *at: encoded.append(at)) == [items]
    assert encoded[-1] == (blocks + 1, blocks + 1)
    same_as_fresh(path, rows)
    assert sync(path, rows[:items], keep_rows=False) == (blocks, blocks)
    same_as_fresh(path, rows[:items])


def test_a_longer_row_says_to_rebuild_and_changes_nothing(make: Make) -> None:
    path = make(random_rows(40))
    before = path.read_bytes()
    long = np.full(7, 0.5)
    for attempt in (
        lambda: update(path, {3: long}),
        lambda: append(path, long),
        lambda: sync(path, np.concatenate([random_rows(39), long[None]])),
    ):
        with pytest.raises(RebuildRequired, match="build"):
            attempt()
    assert path.read_bytes() == before


@pytest.mark.parametrize("row", [np.zeros(6), np.zeros((1, 7)), np.full(7, np.nan), np.array(0.0)])
def test_rows_of_another_shape_are_refused(make: Make, row: np.ndarray) -> None:
    path = make(random_rows(40))
    with pytest.raises(InputError):
        update(path, {3: row})
    with pytest.raises(ConfigError, match="shape"):
        sync(path, np.zeros((40, 6)))


def test_without_rows_only_sync_works(make: Make) -> None:
    path = make(random_rows(40), keep_rows=False)
    with pytest.raises(StateError, match="got no rows of the index"):
        update(path, {3: np.zeros(7)})
    changed = random_rows(40)
    changed[3] = 0.0
    assert sync(path, changed) == (1, 2)
    # That wrote the rows again.
    update(path, {4: np.zeros(7)})
    changed[4] = 0.0
    same_as_fresh(path, changed)


def test_rows_of_another_index_are_not_used(make: Make) -> None:
    path, other = make(random_rows(40)), make(random_rows(40, seed=9), name="other.index")
    os.replace(rows_path(other), rows_path(path))
    with pytest.raises(StateError, match="got no rows of the index"):
        remove(path, [1])


def test_damaged_rows_are_noticed_where_they_are_needed(make: Make) -> None:
    path = make(random_rows(40))
    data = bytearray(rows_path(path).read_bytes())
    data[-1] ^= 1
    rows_path(path).write_bytes(data)
    update(path, {0: np.zeros(7)})
    with pytest.raises(ArtifactError, match="damaged rows of block 1"):
        update(path, {39: np.zeros(7)})


def test_rows_are_found_when_their_writer_was_stopped_before_it_named_them(make: Make) -> None:
    path = make(random_rows(40))
    stale = rows_path(path).read_bytes()
    update(path, {0: np.zeros(7)})
    os.replace(rows_path(path), next_path(path))
    rows_path(path).write_bytes(stale)
    update(path, {1: np.zeros(7)})
    wanted = random_rows(40)
    wanted[:2] = 0.0
    same_as_fresh(path, wanted)
    assert not next_path(path).exists()


def test_rows_of_a_writer_that_was_stopped_earlier_are_ignored(make: Make) -> None:
    path = make(random_rows(40))
    next_path(path).write_bytes(rows_path(make(random_rows(40, seed=3), name="b")).read_bytes())
    update(path, {0: np.zeros(7)})
    wanted = random_rows(40)
    wanted[0] = 0.0
    same_as_fresh(path, wanted)


def test_a_damaged_block_is_not_made_good_by_a_change_of_another(make: Make) -> None:
    path = make(random_rows(70))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    update(path, {0: np.zeros(7)})
    with pytest.raises(ArtifactError, match="first is 2 of 3"):
        Index.open(path)


def test_what_is_no_index_cannot_be_changed(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="veil index build"):
        update(tmp_path / "absent", {0: np.zeros(7)})
    (tmp_path / "text").write_text("x" * 5000)
    with pytest.raises(ArtifactError, match="no index of Veil"):
        sync(tmp_path / "text", np.zeros((1, 7)))


def test_nothing_changed_is_a_new_generation_of_the_same(make: Make) -> None:
    path = make(random_rows(40))
    assert append(path, np.zeros((0, 7))) == []
    with Index.open(path) as index:
        assert index.generation == 2 and index.layout == small_layout(40)
    same_as_fresh(path, random_rows(40))
