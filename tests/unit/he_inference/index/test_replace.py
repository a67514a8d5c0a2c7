"""A file is the old one or the new one: for readers, for writers that are killed, and for two writers."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from he_inference.index.build import update
from he_inference.index.replace import Pending, copy_range, writing
from he_inference.index.store import Index
from veil.errors import StateError

from .conftest import Make, random_rows

KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from he_inference.index import build as indexes
from he_inference.index.store import Index

path, rows = Path(sys.argv[1]), np.load(sys.argv[2])
changed = rows.copy()
changed[[0, 100]] = 0.5 * rows[[0, 100]]
CALLS = ("pwrite", "copy_file_range", "posix_fallocate", "fsync", "replace", "unlink")


def forked(work):
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1]


def dies_before(step):
    # Counts calls that change files, in the order in which they are made.
    made = 0

    def counted(call):
        def run(*arguments, **options):
            nonlocal made
            made += 1
            if made == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return run

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))
    indexes.update(path, {0: changed[0], 100: changed[100]})


def goes_on():
    # A change of other rows needs all rows of the blocks that were being written.
    indexes.update(path, {1: rows[1], 101: rows[101]})
    with Index.open(path) as index:
        found = index.blocks.copy()
    indexes.build(path.with_name("fresh"), index.layout, wanted, item_norm=2.0, model_digest=bytes(32),
                  item_ids_digest=bytes(32))
    with Index.open(path.with_name("fresh")) as fresh:
        assert np.array_equal(found, fresh.blocks)
    names = {entry.name for entry in path.parent.iterdir() if "fresh" not in entry.name}
    assert names == {"." + path.name + ".lock", path.name, path.name + ".rows"}, names


# Once before there are children, so that not each of them loads the kernels.
indexes.sync(path, changed)
outcomes = []
for step in range(1, 200):
    assert forked(lambda: indexes.sync(path, rows)) == 0
    with Index.open(path) as index:
        before = index.generation
    status = forked(lambda: dies_before(step))
    with Index.open(path) as index:
        new = index.generation - before
    wanted = changed if new else rows
    assert new in (0, 1) and forked(goes_on) == 0, step
    outcomes.append(new)
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL
assert status == 0 and outcomes == sorted(outcomes), outcomes
print(outcomes.count(0), outcomes.count(1))
"""


def test_a_writer_that_is_killed_at_any_step_leaves_a_sound_file(make: Make, tmp_path: Path) -> None:
    rows = random_rows(150)
    path = make(rows)
    # A folder of its own: what is left in it is looked at.
    folder = tmp_path / "own"
    folder.mkdir()
    for name in (path.name, f"{path.name}.rows"):
        os.replace(path.with_name(name), folder / name)
    np.save(tmp_path / "rows.npy", rows)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder / path.name), str(tmp_path / "rows.npy")],
        capture_output=True,
        timeout=240,
        env={**os.environ, "NUMBA_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr.decode()
    before, after = map(int, done.stdout.split())
    assert before >= 10 and after >= 2


def test_readers_meet_whole_files_while_they_are_replaced(make: Make) -> None:
    path = make(random_rows(600))
    stop, seen, failures = threading.Event(), set[int](), list[BaseException]()

    def read() -> None:
        try:
            while not stop.is_set():
                with Index.open(path) as index:
                    seen.add(index.generation)
        except BaseException as error:  # noqa: BLE001 - handed to the test
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    with Index.open(path) as first:
        before = first.blocks.copy()
        for round in range(12):
            update(path, {round * 50: np.zeros(7)})
        first.verify()
        np.testing.assert_array_equal(first.blocks, before)
    stop.set()
    for reader in readers:
        reader.join()
    assert not failures and len(seen) > 1


def test_there_is_one_writer_at_a_time(make: Make) -> None:
    path = make(random_rows(40))
    with writing(path), pytest.raises(StateError, match="another process is writing"):
        update(path, {0: np.zeros(7)})
    update(path, {0: np.zeros(7)})


def test_leftovers_of_this_file_alone_are_cleared(tmp_path: Path) -> None:
    own = [tmp_path / ".a.0123456789ab.tmp", tmp_path / ".a.rows.next.0123456789ab.tmp"]
    others = [tmp_path / ".a.b.0123456789ab.tmp", tmp_path / ".a.x.tmp", tmp_path / "a.0123456789ab.tmp"]
    for path in own + others:
        path.touch()
    with writing(tmp_path / "a"):
        assert not any(path.exists() for path in own) and all(path.exists() for path in others)


def test_permissions_stay_as_they_were_set(make: Make) -> None:
    path = make(random_rows(40))
    beside = path.with_name("items.index.rows")
    assert [stat.S_IMODE(file.stat().st_mode) for file in (path, beside)] == [0o600, 0o600]
    path.chmod(0o644)
    update(path, {0: np.zeros(7)})
    assert [stat.S_IMODE(file.stat().st_mode) for file in (path, beside)] == [0o644, 0o600]


def test_what_is_not_committed_vanishes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), Pending(path, 10) as pending:
        pending.write(b"0123456789", 0)
        raise RuntimeError("stopped")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"] and path.read_bytes() == b"old"
    with Pending(path, 10) as pending:
        pending.write(b"56789", 5)
        pending.write(b"01234", 0)
        pending.commit()
    assert path.read_bytes() == b"0123456789"


@pytest.mark.parametrize("elsewhere", [None, Path("/dev/shm")])
def test_ranges_are_copied_within_and_between_file_systems(tmp_path: Path, elsewhere: Path | None) -> None:
    if elsewhere is not None and not os.access(elsewhere, os.W_OK):
        pytest.skip("no second file system to copy from")
    source = (elsewhere or tmp_path) / f"veil-copy-{os.getpid()}"
    data = np.random.default_rng(0).bytes(20_000_000)
    source.write_bytes(data)
    try:
        with source.open("rb") as file, Pending(tmp_path / "out", 100) as pending:
            copy_range(file.fileno(), 1, pending.descriptor, 3, len(data) - 1)
            pending.commit()
            assert (tmp_path / "out").read_bytes() == b"\0\0\0" + data[1:]
            with pytest.raises(StateError, match="ends early"):
                copy_range(file.fileno(), len(data) - 5, pending.descriptor, 0, 6)
    finally:
        source.unlink()


def test_a_kernel_that_cannot_copy_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: object) -> int:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "copy_file_range", cannot)
    (tmp_path / "a").write_bytes(b"0123456789")
    with (tmp_path / "a").open("rb") as source, (tmp_path / "b").open("w+b") as target:
        copy_range(source.fileno(), 2, target.fileno(), 0, 5)
        assert target.read() == b"23456"
        with pytest.raises(StateError, match="ends early"):
            copy_range(source.fileno(), 8, target.fileno(), 0, 5)
