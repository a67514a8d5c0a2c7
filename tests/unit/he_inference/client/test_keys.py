"""The client's key files: modes, encryption at rest, damage, rotation."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from he_inference.client.keys import KeyRing, MemoryRing
from he_inference.parameters import FAST, KEYLESS
from veil.errors import ConfigError, IdentityError, InputError, StateError

ROOT = Path(__file__).parents[4]
ELEMENTS = (3, FAST.element(8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def secret_of(ring: KeyRing) -> bytes:
    # SEAL compresses what it saves; the key itself is what must stay the same
    return ring.open(FAST, ()).secret._s.tobytes()


def test_keys_are_made_once_and_private(folder: Path) -> None:
    secret = secret_of(KeyRing(folder))
    again = KeyRing(folder)
    assert secret_of(again) == secret
    first, second = again.open(FAST, ELEMENTS), KeyRing(folder).open(FAST, ELEMENTS)
    assert (first.key_id, first.evaluation) == (second.key_id, second.evaluation) and first.evaluation
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}
    assert not again.encrypted and "file mode only" in repr(again)
    assert KeyRing(folder).open(KEYLESS, ()).evaluation == b"" and (folder / "keyless.secret").exists()


def test_a_passphrase_encrypts_and_is_needed(folder: Path) -> None:
    ring = KeyRing(folder, b"correct horse")
    keys = ring.open(FAST, ())
    saved = keys.secret.secret_bytes()
    stored = (folder / "fast.secret").read_bytes()
    assert not any(saved[start : start + 16] in stored for start in range(16, len(saved) - 16, 997))
    assert secret_of(KeyRing(folder, b"correct horse")) == keys.secret._s.tobytes()
    with pytest.raises(ConfigError, match="does not open"):
        KeyRing(folder, b"wrong").open(FAST, ())
    with pytest.raises(ConfigError, match="under a passphrase"):
        KeyRing(folder).open(FAST, ())
    with pytest.raises(ConfigError, match="empty"):
        KeyRing(folder, b"")
    assert "horse" not in repr(ring) and "SecretKey(fast)" in repr(keys) and "evaluation" not in repr(keys)


def test_a_passphrase_for_a_key_without_one_is_an_error(folder: Path) -> None:
    KeyRing(folder).open(FAST, ())
    with pytest.raises(ConfigError, match="without a passphrase"):
        KeyRing(folder, b"late").open(FAST, ())


def test_every_changed_byte_of_an_encrypted_key_is_noticed(folder: Path) -> None:
    KeyRing(folder, b"word").open(FAST, ())
    path = folder / "fast.secret"
    good = path.read_bytes()
    start = good.index(b"{")
    end = start + int.from_bytes(good[start - 4 : start], "big")
    for position in (0, start - 1, start + 30, end - 3, end + 40, len(good) - 1):
        changed = bytearray(good)
        changed[position] ^= 1
        path.write_bytes(bytes(changed))
        with pytest.raises((ConfigError, InputError)):
            KeyRing(folder, b"word").open(FAST, ())


def test_a_forged_header_cannot_choose_the_cost(folder: Path) -> None:
    KeyRing(folder, b"word").open(FAST, ())
    path = folder / "fast.secret"
    good = path.read_bytes()
    start = good.index(b"{")
    size = int.from_bytes(good[start - 4 : start], "big")
    header = json.loads(good[start : start + size])
    header["encryption"]["n"] = 1 << 30
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    path.write_bytes(good[: start - 4] + len(text).to_bytes(4, "big") + text + good[start + size :])
    with pytest.raises(InputError, match="damaged"):
        KeyRing(folder, b"word").open(FAST, ())


@pytest.mark.parametrize("data", [b"", b"VEIL-HE-KEY/2\n", b"VEIL-HE-KEY/2\n\xff\xff\xff\xff{}", b"x" * 1000])
def test_files_that_are_no_keys_are_refused(folder: Path, data: bytes) -> None:
    KeyRing(folder).open(FAST, ())
    (folder / "fast.secret").write_bytes(data)
    with pytest.raises(InputError, match="not a key file"):
        KeyRing(folder).open(FAST, ())


def test_keys_that_others_can_read_are_refused(folder: Path) -> None:
    KeyRing(folder).open(FAST, ())
    (folder / "fast.secret").chmod(0o640)
    with pytest.raises(IdentityError, match="0600"):
        KeyRing(folder).open(FAST, ())
    folder.chmod(0o755)
    with pytest.raises(IdentityError, match="0700"):
        KeyRing(folder)


def test_rotation_replaces_the_secret_and_what_was_made_from_it(folder: Path) -> None:
    ring = KeyRing(folder, b"word")
    before = ring.open(FAST, ELEMENTS)
    other = ring.open(KEYLESS, ())
    ring.rotate(FAST)
    after = ring.open(FAST, ELEMENTS)
    assert after.key_id != before.key_id and after.evaluation != before.evaluation
    assert (after.secret._s != before.secret._s).any()
    assert ring.open(KEYLESS, ()).key_id == other.key_id


def test_evaluation_keys_of_another_secret_are_not_reused(folder: Path) -> None:
    """A crash between the two files of a rotation, or a restored backup."""
    ring = KeyRing(folder)
    public = ring.open(FAST, ELEMENTS).evaluation
    (folder / "fast.secret").unlink()
    assert ring.open(FAST, ELEMENTS).evaluation != public


def test_two_processes_count_every_release(folder: Path) -> None:
    key_id = KeyRing(folder).open(FAST, ()).key_id
    code = (
        "import sys; from pathlib import Path; from he_inference.client.keys import KeyRing;"
        "from he_inference.parameters import FAST;"
        "[KeyRing(Path(sys.argv[1])).count_release(FAST, sys.argv[2], 1000) for _ in range(20)]"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(folder), key_id], cwd=ROOT) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert KeyRing(folder).count_release(FAST, key_id, 1000) == 41


def test_keys_in_memory_end_with_their_ring() -> None:
    ring = MemoryRing()
    keys = ring.open(FAST, ELEMENTS)
    assert ring.open(FAST, ()).key_id == keys.key_id
    assert [ring.count_release(FAST, keys.key_id, 2) for _ in range(2)] == [1, 2]
    with pytest.raises(StateError, match="2 releases"):
        ring.count_release(FAST, keys.key_id, 2)
    with pytest.raises(StateError, match="that of the first one"):
        ring.count_release(FAST, keys.key_id, 3)
    ring.rotate(FAST)
    assert ring.open(FAST, ()).key_id != keys.key_id
    with pytest.raises(StateError, match="rotated"):
        ring.count_release(FAST, keys.key_id, 9)
