"""Evaluation keys of clients, on the scoring server's disk: bounded, expiring, and each client's own.

Guarantee: keys are found only by the client that registered them, under the digest of their bytes; what is read is
hashed again, so a damaged file counts as unknown. The oldest of a client give way to its newer ones, and the least
recently used of all to keep within the bytes allowed. Evaluation keys are public; no secret key ever comes here.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from he_inference.exchange import DIGEST_BYTES, key_digest
from veil.errors import InputError, StateError, WireError
from veil.files import read_bounded, write_atomic

_SUFFIX = ".keys"
_log = logging.getLogger("veil.he_inference.keys")


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is kept: bytes in all, sets of keys of one client for one layout, seconds since they were last used."""

    max_bytes: int
    max_per_client: int
    lifetime_s: float


class KeyCache:
    """A directory of keys; survives a restart."""

    def __init__(self, directory: Path, limits: Limits) -> None:
        self._directory = directory
        self._limits = limits
        self._lock = threading.Lock()
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._sweep()

    def put(self, account: str, parameters_digest: bytes, keys: bytes) -> bytes:
        """Stores keys that have been checked; returns their digest. The same again is a no-op."""
        digest = key_digest(parameters_digest, keys)
        with self._lock:
            path = self._path(account, parameters_digest, digest)
            if path.exists():
                os.utime(path)
            else:
                path.parent.mkdir(exist_ok=True, mode=0o700)
                write_atomic(path, keys, mode=0o600)
                self._sweep()
        return digest

    def get(self, account: str, parameters_digest: bytes, digest: bytes) -> bytes:
        """The keys that this client registered under `digest`; raises `StateError` when there are none (any more)."""
        if len(digest) != DIGEST_BYTES:
            raise WireError(f"got a key digest of {len(digest)} bytes, expected {DIGEST_BYTES}")
        with self._lock:
            path = self._path(account, parameters_digest, digest)
            self._in_time(path)
            try:
                keys = read_bounded(path, self._limits.max_bytes)
            except InputError:
                raise _unknown() from None
            if key_digest(parameters_digest, keys) != digest:
                _log.warning("evaluation keys do not have their digest any more and are removed")
                path.unlink(missing_ok=True)
                raise _unknown()
            os.utime(path)
            return keys

    def known(self, account: str, parameters_digest: bytes, digest: bytes) -> None:
        """Raises `StateError` unless this client has keys under `digest`; marks them as used."""
        if len(digest) != DIGEST_BYTES:
            raise WireError(f"got a key digest of {len(digest)} bytes, expected {DIGEST_BYTES}")
        path = self._path(account, parameters_digest, digest)
        self._in_time(path)
        try:
            os.utime(path)
        except OSError:
            raise _unknown() from None

    def _in_time(self, path: Path) -> None:
        """Raises `StateError` unless the file is there and was used within its lifetime."""
        try:
            age_s = time.time() - path.stat().st_mtime
        except OSError:
            raise _unknown() from None
        if age_s > self._limits.lifetime_s:
            path.unlink(missing_ok=True)
            raise _unknown()

    def _path(self, account: str, parameters_digest: bytes, digest: bytes) -> Path:
        # The requirements stand in the name too: keys for another layout are not found, and expire by themselves.
        scope = hashlib.sha256(parameters_digest + account.encode()).hexdigest()[:32]
        return self._directory / scope / (digest.hex() + _SUFFIX)

    def _sweep(self) -> None:
        """Removes what is too old, too many or too large, least recently used first."""
        now = time.time()
        entries = []
        for folder in self._directory.iterdir():
            if not folder.is_dir():
                continue
            files = [(file.stat(), file) for file in folder.glob("*" + _SUFFIX)]
            files.sort(key=lambda entry: -entry[0].st_mtime)
            for place, (status, file) in enumerate(files):
                if place >= self._limits.max_per_client or now - status.st_mtime > self._limits.lifetime_s:
                    file.unlink(missing_ok=True)
                else:
                    entries.append((status.st_mtime, status.st_size, file))
        kept_bytes = 0
        for _, size_bytes, file in sorted(entries, key=lambda entry: -entry[0]):
            kept_bytes += size_bytes
            if kept_bytes > self._limits.max_bytes:
                file.unlink(missing_ok=True)


def _unknown() -> StateError:
    return StateError(
        "got a key digest that this server does not know for this client, expected one that it has registered",
        hint="register the evaluation keys (again), then repeat the query",
    )
