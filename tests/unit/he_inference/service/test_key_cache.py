"""The server's store of evaluation keys: whose they are, how many, how long."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from he_inference.exchange import key_digest
from he_inference.service.key_cache import KeyCache, Limits
from veil.errors import StateError, WireError

PARAMETERS = b"p" * 32
ANNA, EVE = "certificate/anna", "certificate/eve"
ROOMY = Limits(max_bytes=1 << 20, max_per_client=3, lifetime_s=3600)


def cache(folder: Path, limits: Limits = ROOMY) -> KeyCache:
    return KeyCache(folder / "keys", limits)


def files(folder: Path) -> list[Path]:
    return list((folder / "keys").rglob("*.keys"))


def test_keys_survive_a_restart_and_the_same_again_is_a_no_op(tmp_path: Path) -> None:
    digest = cache(tmp_path).put(ANNA, PARAMETERS, b"keys of anna")
    assert digest == key_digest(PARAMETERS, b"keys of anna")
    assert cache(tmp_path).put(ANNA, PARAMETERS, b"keys of anna") == digest
    cache(tmp_path).known(ANNA, PARAMETERS, digest)
    assert cache(tmp_path).get(ANNA, PARAMETERS, digest) == b"keys of anna"
    assert len(files(tmp_path)) == 1


def test_nobody_else_finds_them(tmp_path: Path) -> None:
    held = cache(tmp_path)
    digest = held.put(ANNA, PARAMETERS, b"keys of anna")
    for wrong in (EVE, "token/anna"):
        with pytest.raises(StateError, match="register"):
            held.get(wrong, PARAMETERS, digest)
        with pytest.raises(StateError):
            held.known(wrong, PARAMETERS, digest)
    with pytest.raises(StateError):
        cache(tmp_path).get(ANNA, b"q" * 32, digest)


@pytest.mark.parametrize("digest", [b"", b"x" * 31, b"../" * 11, b"x" * 1000])
def test_a_digest_of_another_length_is_malformed(tmp_path: Path, digest: bytes) -> None:
    with pytest.raises(WireError, match="32"):
        cache(tmp_path).get(ANNA, PARAMETERS, digest)
    with pytest.raises(WireError, match="32"):
        cache(tmp_path).known(ANNA, PARAMETERS, digest)


def test_a_client_keeps_its_newest_and_leaves_others_alone(tmp_path: Path) -> None:
    held = cache(tmp_path)
    eves = held.put(EVE, PARAMETERS, b"keys of eve")
    digests = [held.put(ANNA, PARAMETERS, f"keys {number}".encode()) for number in range(4)]
    for age, digest in enumerate(reversed(digests)):
        path = next(file for file in files(tmp_path) if file.stem == digest.hex()) if age < 3 else None
        if path is not None:
            os.utime(path, (time.time() - age, time.time() - age))
    digests.append(held.put(ANNA, PARAMETERS, b"keys 4"))
    kept = {file.stem for file in files(tmp_path)}
    assert digests[4].hex() in kept and digests[3].hex() in kept
    assert len(kept) == 4 and eves.hex() in kept


def test_the_bytes_in_all_are_bounded(tmp_path: Path) -> None:
    held = cache(tmp_path, Limits(max_bytes=2500, max_per_client=10, lifetime_s=3600))
    for number in range(5):
        held.put(ANNA, PARAMETERS, bytes([number]) * 1000)
    assert sum(file.stat().st_size for file in files(tmp_path)) <= 2500


def test_keys_expire_when_unused(tmp_path: Path) -> None:
    digest = cache(tmp_path).put(ANNA, PARAMETERS, b"keys")
    (path,) = files(tmp_path)
    running = cache(tmp_path)
    for look in (running.get, running.known, cache(tmp_path).get):
        path.write_bytes(b"keys")
        os.utime(path, (time.time() - 7200, time.time() - 7200))
        with pytest.raises(StateError):
            look(ANNA, PARAMETERS, digest)
        assert not path.exists(), "use does not bring them back"


def test_a_damaged_file_counts_as_unknown(tmp_path: Path) -> None:
    held = cache(tmp_path)
    digest = held.put(ANNA, PARAMETERS, b"keys of anna")
    (path,) = files(tmp_path)
    path.write_bytes(b"keys of ANNA")
    with pytest.raises(StateError):
        held.get(ANNA, PARAMETERS, digest)
    assert files(tmp_path) == []
