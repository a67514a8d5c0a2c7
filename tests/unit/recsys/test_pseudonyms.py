from __future__ import annotations

import hashlib
import hmac
import pickle
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veil.errors import ConfigError
from veil.recsys.pseudonyms import PseudonymKey


def test_a_key_is_made_once_and_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "pseudonyms.key"
    first = PseudonymKey.load_or_create(path)
    assert len(path.read_bytes()) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert first.pseudonym("u") == PseudonymKey.load_or_create(path).pseudonym("u")
    assert [entry.name for entry in path.parent.iterdir()] == ["pseudonyms.key"]


def test_many_at_once_get_the_same_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        keys = list(pool.map(lambda _: PseudonymKey.load_or_create(tmp_path / "key"), range(64)))
    assert len({key.pseudonym("u") for key in keys}) == 1


@given(st.text())
def test_a_pseudonym_is_the_domain_separated_hmac(user_id: str) -> None:
    key = bytes(range(32))
    message = b"veil/user-pseudonym/v1\x00" + user_id.encode("utf-8", "surrogatepass")
    expected = hmac.new(key, message, hashlib.sha256).hexdigest()[:32]
    assert PseudonymKey(key).pseudonym(user_id) == expected
    assert PseudonymKey(bytes(32)).pseudonym(user_id) != expected


def test_keys_neither_print_nor_travel() -> None:
    key = PseudonymKey(b"k" * 32)
    assert "kkk" not in repr(key)
    with pytest.raises(TypeError, match="serialised"):
        pickle.dumps(key)


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        (b"x" * 32, 0o640, "mode"),
        (b"x" * 31, 0o600, "bytes"),
        (b"x" * 33, 0o600, "bytes"),
        (b"", 0o600, "bytes"),
    ],
)
def test_unfit_key_files_are_refused(tmp_path: Path, content: bytes, mode: int, message: str) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=message) as caught:
        PseudonymKey.load_or_create(path)
    assert "xxx" not in str(caught.value)


def test_a_directory_is_no_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        PseudonymKey.load_or_create(tmp_path)
