"""Each record once: across crashes, processes, and files that were touched."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
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
