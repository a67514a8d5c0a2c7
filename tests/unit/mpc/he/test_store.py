"""Each record once: across crashes, processes, and files that were touched."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from veil.errors import ArtifactError, InputError, StateError
from veil.mpc.he import store
from veil.mpc.he.store import Store

BATCH = bytes(range(32))
LABELS = ["mask", "pair", "scalar"]


def _records() -> list[store.Record]:
    return [
        (np.arange(6).reshape(2, 3),),
        (np.array([-(2**63), 2**63 - 1]), np.zeros((1, 2, 1), np.int64)),
        (np.array(-1), np.empty(0, np.int64)),
    ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    store.create(tmp_path / "items", BATCH, LABELS, _records())
    return tmp_path / "items"


def test_records_come_back_in_order_once(path: Path) -> None:
    with Store(path) as opened:
        assert opened.batch == BATCH
        for number, (label, record) in enumerate(zip(LABELS, _records(), strict=True)):
            assert opened.position == number
            taken = opened.take(label)
            assert len(taken) == len(record)
            for got, expected in zip(taken, record, strict=True):
                assert got.dtype == np.int64
                assert got.shape == expected.shape
                assert np.array_equal(got, expected)
        with pytest.raises(StateError):
            opened.take("mask")
        assert repr(opened) == "Store(items, used=3, of=3)"


def test_another_label_spends_nothing(path: Path) -> None:
    with Store(path) as opened:
        with pytest.raises(StateError):
            opened.take("pair")
        assert opened.position == 0
        opened.take("mask")


def test_what_was_taken_stays_taken_and_is_erased(path: Path) -> None:
    before = path.read_bytes()
    with Store(path) as opened:
        opened.take("mask")
    with Store(path) as opened:
        assert opened.position == 1
        opened.take("pair")
    after = path.read_bytes()
    assert (2**63 - 1).to_bytes(8, "little") in before
    assert (2**63 - 1).to_bytes(8, "little") not in after
    assert len(after) == len(before)


def test_a_crash_between_mark_and_use_spends(path: Path) -> None:
    # A process that is killed inside of `_read`, after the mark is on the disk, before a byte was read.
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from veil.mpc.he.store import Store\n"
        "Store._read = lambda self, number: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Store(Path(sys.argv[1])).take('mask')\n"
    )
    ended = subprocess.run([sys.executable, "-c", script, str(path)], timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL
    with Store(path) as opened:
        assert opened.position == 1


def test_the_mark_is_on_the_disk_before_the_record_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, pread = os.fsync, os.pread

    def seen_fsync(descriptor: int) -> None:
        events.append("fsync")
        fsync(descriptor)

    def seen_pread(descriptor: int, size: int, place: int) -> bytes:
        events.append("read")
        return pread(descriptor, size, place)

    with Store(path) as opened:
        monkeypatch.setattr(os, "fsync", seen_fsync)
        monkeypatch.setattr(os, "pread", seen_pread)
        opened.take_many(["mask", "pair"])
    assert events == ["fsync", "read", "read"]


def test_one_process_at_a_time(path: Path) -> None:
    with Store(path), pytest.raises(StateError, match="another process"):
        Store(path)
    Store(path).close()


def test_modes_and_never_twice(path: Path) -> None:
    for file in (path, path.with_name("items.used")):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with pytest.raises(StateError):
        store.create(path, BATCH, LABELS, _records())
    path.unlink()
    with pytest.raises(StateError):  # its journal is still there
        store.create(path, BATCH, LABELS, _records())
    with pytest.raises(InputError):
        store.create(path.with_name("new"), BATCH[1:], LABELS, _records())


@pytest.mark.parametrize("damage", ["missing", "torn", "flipped", "beyond", "of another batch"])
def test_without_its_journal_a_store_gives_nothing(path: Path, damage: str) -> None:
    journal = path.with_name("items.used")
    if damage == "missing":
        journal.unlink()
    elif damage == "torn":
        journal.write_bytes(journal.read_bytes()[:9])
    elif damage == "flipped":
        journal.write_bytes(b"\x01" + journal.read_bytes()[1:])
    elif damage == "beyond":
        journal.write_bytes(store._entry(BATCH, 4))
    else:
        journal.write_bytes(store._entry(bytes(32), 0))
    with pytest.raises(StateError):
        Store(path)


def test_a_journal_that_is_behind_gives_nothing(path: Path) -> None:
    with Store(path) as opened:
        opened.take("mask")
    path.with_name("items.used").write_bytes(store._entry(BATCH, 0))
    with Store(path) as opened, pytest.raises(ArtifactError):
        opened.take("mask")


def test_damaged_files(path: Path) -> None:
    good = path.read_bytes()
    for wrong in (b"", good[:20], good[:-1], good + b"\x00", b"X" + good[1:], good[:40] + b"\xff" + good[41:]):
        path.write_bytes(wrong)
        with pytest.raises(ArtifactError):
            Store(path)
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with Store(path) as opened:
        opened.take_many(["mask", "pair"])
        with pytest.raises(ArtifactError):
            opened.take("scalar")
        # It was spent all the same.
        assert opened.position == 3


def test_a_link_or_an_open_mode_is_refused(path: Path) -> None:
    link = path.with_name("link")
    link.symlink_to(path)
    link.with_name("link.used").symlink_to(path.with_name("items.used"))
    with pytest.raises(StateError):
        Store(link)
    path.chmod(0o644)
    with pytest.raises(StateError, match="0600"):
        Store(path)


def test_skipping_never_goes_back(path: Path) -> None:
    with Store(path) as opened:
        opened.skip_to(2)
        for wrong in (1, 4):
            with pytest.raises(StateError):
                opened.skip_to(wrong)
        opened.take("scalar")


def test_a_forked_copy_gives_nothing(path: Path) -> None:
    with Store(path) as opened:
        child = os.fork()
        if child == 0:
            for spends in (lambda: opened.take("mask"), lambda: opened.skip_to(1)):
                try:
                    spends()
                except StateError:
                    continue
                os._exit(1)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert np.array_equal(opened.take("mask")[0], _records()[0][0])


def test_threads_do_not_get_the_same_record(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both, fsync, taken = threading.Barrier(2), os.fsync, []

    def late(descriptor: int) -> None:
        # Both threads are past reading the position, if anything lets them.
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.5)
        fsync(descriptor)

    def take() -> None:
        with contextlib.suppress(StateError):
            taken.append(opened.take("mask"))

    with Store(path) as opened:
        monkeypatch.setattr(os, "fsync", late)
        threads = [threading.Thread(target=take) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(taken) == 1


def test_a_closed_store_writes_nowhere(path: Path) -> None:
    opened = Store(path)
    opened.close()
    # The numbers of its files are those of another file now.
    others = [os.open(path.with_name(name), os.O_RDWR | os.O_CREAT) for name in ("first", "second")]
    with pytest.raises(StateError):
        opened.take("mask")
    opened.close()
    for other in others:
        assert os.fstat(other).st_size == 0
        os.close(other)


def test_a_full_disk_gives_nothing_and_says_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Store(path) as opened:
        for failing in ("fsync", "pwrite"):
            with monkeypatch.context() as patched:
                patched.setattr(os, failing, full)
                with pytest.raises(StateError, match="No space left"):
                    opened.take("mask")
            assert opened.position == 0
        opened.take("mask")
        with monkeypatch.context() as patched:
            patched.setattr(os, "pread", full)
            with pytest.raises(StateError, match="spent"):
                opened.take("pair")
        assert opened.position == 2
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StateError, match="No space left"):
            store.create(path.with_name("new"), BATCH, LABELS, _records())
    assert {file.name for file in path.parent.iterdir()} == {"items", "items.used"}


def test_what_is_written_can_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The waves of an item of four dimensions have five.
    record = (np.arange(16).reshape(2, 2, 2, 2), np.arange(64).reshape(4, 2, 2, 2, 2))
    store.create(tmp_path / "deep", BATCH, ["waves"], [record])
    with Store(tmp_path / "deep") as opened:
        assert [part.shape for part in opened.take("waves")] == [part.shape for part in record]
    with pytest.raises(InputError):
        store.create(tmp_path / "deeper", BATCH, ["waves"], [(np.zeros((1,) * 6, np.int64),)])
    monkeypatch.setattr(store, "_MOST_HEADER_BYTES", 100)
    with pytest.raises(InputError):
        store.create(tmp_path / "long", BATCH, LABELS, _records())
    assert not list(tmp_path.glob("*er*")) + list(tmp_path.glob("*long*"))
