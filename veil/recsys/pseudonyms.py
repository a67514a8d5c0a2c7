"""Keyed pseudonyms in place of user ids.

Guarantee: without the key a pseudonym says nothing about an id, not even to someone who can guess the id (a plain hash
would); the same key gives the same pseudonym for the same id; two organisations' pseudonyms for one id are unrelated,
since each makes its own key. The key never leaves its file and never prints.

A pseudonym is the first 128 bits of HMAC-SHA256(key, domain || id) in hex (RFC 2104; FIPS 198-1). Among 10^9 users two
share one with probability below 2^-68.
"""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path

from veil.errors import ConfigError
from veil.files import sync_directory

KEY_BYTES = 32
PSEUDONYM_CHARACTERS = 32
_DOMAIN = b"veil/user-pseudonym/v1\x00"


class PseudonymKey:
    """A 32-byte secret. Make one with `load_or_create`."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        """Takes exactly 32 bytes; raises `ConfigError` otherwise."""
        if len(key) != KEY_BYTES:
            raise ConfigError(f"got a pseudonym key of {len(key)} bytes, expected {KEY_BYTES}")
        self._key = bytes(key)

    @classmethod
    def load_or_create(cls, path: Path) -> PseudonymKey:
        """Reads the key file, or makes one (mode 0600) on first use; two processes at once get the same key.

        Raises `ConfigError` when the file is not a regular file of 32 bytes that its owner alone may read.
        """
        path = Path(path)
        if not path.exists():
            try:
                _create(path)
            except OSError as error:
                raise ConfigError(f"got no way to write a key at {path}: {error.strerror}") from None
        try:
            # Checks and reading go through one descriptor, so that the file checked is the file read.
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            with os.fdopen(descriptor, "rb") as file:
                state = os.fstat(file.fileno())
                if not stat.S_ISREG(state.st_mode):
                    raise ConfigError(f"got {path}, which is no regular file, expected a pseudonym key")
                if stat.S_IMODE(state.st_mode) & 0o077:
                    raise ConfigError(
                        f"got {path} with mode {stat.S_IMODE(state.st_mode):04o}, expected 0600",
                        hint=f"if nobody else has read it: chmod 600 {path}",
                    )
                return cls(file.read(KEY_BYTES + 1))
        except OSError as error:
            raise ConfigError(f"got no readable pseudonym key at {path}: {error.strerror}") from None

    def pseudonym(self, user_id: str) -> str:
        """32 hex characters."""
        message = _DOMAIN + user_id.encode("utf-8", "surrogatepass")
        return hmac.digest(self._key, message, "sha256").hex()[:PSEUDONYM_CHARACTERS]

    def pseudonyms(self, user_ids: Iterable[str]) -> list[str]:
        """One pseudonym for each id, about a microsecond each."""
        return [self.pseudonym(user_id) for user_id in user_ids]

    def __repr__(self) -> str:
        return f"PseudonymKey(<{KEY_BYTES} bytes>)"

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("a PseudonymKey cannot be serialised")


def _create(path: Path) -> None:
    """A new key file under `path`, unless another process makes one first. A link never replaces an existing file."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            pass
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)
