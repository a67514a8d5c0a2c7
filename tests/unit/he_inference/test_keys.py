"""The client's key files: modes, encryption at rest, damage, rotation."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from he_inference.keys import KeyRing
from he_inference.parameters import SESSION_4096
from veil.errors import ConfigError, IdentityError, InputError

ELEMENTS = (3, SESSION_4096.element(8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def test_keys_are_made_once_and_private(folder: Path) -> None:
    secret = KeyRing(folder).session(SESSION_4096).secret_bytes()
    again = KeyRing(folder)
    assert again.session(SESSION_4096).secret_bytes()[16:] == secret[16:]
    assert again.evaluation_keys(SESSION_4096, ELEMENTS) == KeyRing(folder).evaluation_keys(SESSION_4096, ELEMENTS)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}
    assert not again.encrypted and "file mode only" in repr(again)


def test_a_passphrase_encrypts_and_is_needed(folder: Path) -> None:
    ring = KeyRing(folder, b"correct horse")
    secret = ring.session(SESSION_4096).secret_bytes()
    stored = (folder / "session-4096.secret").read_bytes()
    assert secret[40:72] not in stored and secret[-64:-32] not in stored
    assert KeyRing(folder, b"correct horse").session(SESSION_4096).secret_bytes()[16:] == secret[16:]
    with pytest.raises(ConfigError, match="does not open"):
        KeyRing(folder, b"wrong").session(SESSION_4096)
    with pytest.raises(ConfigError, match="under a passphrase"):
        KeyRing(folder).session(SESSION_4096)
    with pytest.raises(ConfigError, match="empty"):
        KeyRing(folder, b"")
    assert "horse" not in repr(ring)


def test_a_passphrase_for_a_key_without_one_is_an_error(folder: Path) -> None:
    KeyRing(folder).session(SESSION_4096)
    with pytest.raises(ConfigError, match="without a passphrase"):
        KeyRing(folder, b"late").session(SESSION_4096)


def test_every_changed_byte_of_an_encrypted_key_is_noticed(folder: Path) -> None:
    KeyRing(folder, b"word").session(SESSION_4096)
    path = folder / "session-4096.secret"
    good = path.read_bytes()
    header_end = good.index(b"}}") + 1 if b"}}" in good[:600] else 200
    for position in (0, 15, header_end - 30, header_end + 40, len(good) - 1):
        changed = bytearray(good)
        changed[position] ^= 1
        path.write_bytes(bytes(changed))
        with pytest.raises((ConfigError, InputError)):
            KeyRing(folder, b"word").session(SESSION_4096)


def test_a_forged_header_cannot_choose_the_cost(folder: Path) -> None:
    KeyRing(folder, b"word").session(SESSION_4096)
    path = folder / "session-4096.secret"
    good = path.read_bytes()
    start = good.index(b"{")
    size = int.from_bytes(good[start - 4 : start], "big")
    header = json.loads(good[start : start + size])
    header["encryption"]["n"] = 1 << 30
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    path.write_bytes(good[: start - 4] + len(text).to_bytes(4, "big") + text + good[start + size :])
    with pytest.raises(InputError, match="damaged"):
        KeyRing(folder, b"word").session(SESSION_4096)


@pytest.mark.parametrize("data", [b"", b"VEIL-HE-KEY/1\n", b"VEIL-HE-KEY/1\n\xff\xff\xff\xff{}", b"x" * 1000])
def test_files_that_are_no_keys_are_refused(folder: Path, data: bytes) -> None:
    KeyRing(folder).session(SESSION_4096)
    (folder / "session-4096.secret").write_bytes(data)
    with pytest.raises(InputError, match="not a key file"):
        KeyRing(folder).session(SESSION_4096)


def test_keys_that_others_can_read_are_refused(folder: Path) -> None:
    KeyRing(folder).session(SESSION_4096)
    (folder / "session-4096.secret").chmod(0o640)
    with pytest.raises(IdentityError, match="0600"):
        KeyRing(folder).session(SESSION_4096)
    folder.chmod(0o755)
    with pytest.raises(IdentityError, match="0700"):
        KeyRing(folder)


def test_rotation_replaces_the_secret_and_what_was_made_from_it(folder: Path) -> None:
    ring = KeyRing(folder, b"word")
    secret, public = ring.session(SESSION_4096).secret_bytes(), ring.evaluation_keys(SESSION_4096, ELEMENTS)
    ring.rotate(SESSION_4096)
    assert ring.session(SESSION_4096).secret_bytes()[16:] != secret[16:]
    assert ring.evaluation_keys(SESSION_4096, ELEMENTS) != public


def test_evaluation_keys_of_another_secret_are_not_reused(folder: Path) -> None:
    """A crash between the two files of a rotation, or a restored backup."""
    ring = KeyRing(folder)
    public = ring.evaluation_keys(SESSION_4096, ELEMENTS)
    (folder / "session-4096.secret").unlink()
    assert ring.evaluation_keys(SESSION_4096, ELEMENTS) != public
