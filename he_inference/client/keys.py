"""The client's keys: made, stored, loaded, rotated and counted on the client's machine. No server imports this file.

A directory of mode 0700 holds, for each parameter set,

    <set>.secret                    the secret key, mode 0600
    <set>.releases                  how often decryptions under it were released (`he_inference.client.release`)
    <set>.<elements>.evaluation     evaluation keys made from it (public; stored so that their digest stays the same,
                                    and the server need not be sent them again)

each as: magic | u32 length of header | JSON header | body.

Guarantee: the secret key leaves this file as a `SecretKey` only. With a passphrase it is encrypted at rest: AES-256-GCM
under scrypt (N = 2^15, r = 8, p = 1; RFC 7914), the header authenticated. Without one, only the file mode protects it;
`KeyRing.encrypted` says which. A damaged file, a wrong passphrase or a mode that others can read is an error, never
another key. A count of releases is on disk before what it counts is handed out; one that is missing forbids releases.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import secrets
import stat
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from he_inference import messages
from he_inference.parameters import Parameters
from he_inference.scheme import SecretKey
from veil.errors import CiphertextError, ConfigError, IdentityError, InputError, StateError
from veil.files import read_bounded, write_atomic

_MAGIC = b"VEIL-HE-KEY/2\n"
_MAX_HEADER_BYTES = 4096
_MAX_SECRET_BYTES = 1 << 20
_SCRYPT = {"n": 1 << 15, "r": 8, "p": 1}


@dataclass(frozen=True, eq=False)
class Keys:
    """A secret key and the evaluation keys that were made from it. key_id: names the pair; random, says nothing."""

    key_id: str
    secret: SecretKey
    evaluation: bytes = field(repr=False)


class Ring(Protocol):
    """Where keys come from: a directory (`KeyRing`) or the memory of one process (`MemoryRing`)."""

    def open(self, parameters: Parameters, elements: tuple[int, ...]) -> Keys:
        """The present keys of that set, evaluation keys for those Galois elements; made when there are none yet."""

    def rotate(self, parameters: Parameters) -> None:
        """Replaces the secret key of that set by a new one; what was encrypted under the old one is lost."""

    def count_release(self, parameters: Parameters, key_id: str, limit: int) -> int:
        """Counts one release of decryptions under that key and returns how many there were, this one included.

        Raises `StateError`, and counts nothing, when there were `limit` already, when the first one under this key had
        another limit (its noise was made for that), or when the key is not the present one.
        """


class MemoryRing:
    """Keys that live and end with this object; nothing is written. For clients that ask once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._secrets: dict[str, tuple[str, SecretKey]] = {}
        self._releases: dict[str, tuple[int, int]] = {}

    def __repr__(self) -> str:
        return f"MemoryRing({len(self._secrets)} keys)"

    def open(self, parameters: Parameters, elements: tuple[int, ...]) -> Keys:
        """See `Ring.open`."""
        with self._lock:
            if parameters.name not in self._secrets:
                self._secrets[parameters.name] = (secrets.token_hex(16), SecretKey(parameters))
            key_id, secret = self._secrets[parameters.name]
        return Keys(key_id, secret, secret.evaluation_keys(elements) if elements else b"")

    def rotate(self, parameters: Parameters) -> None:
        """See `Ring.rotate`."""
        with self._lock:
            self._secrets.pop(parameters.name, None)

    def count_release(self, parameters: Parameters, key_id: str, limit: int) -> int:
        """See `Ring.count_release`."""
        with self._lock:
            present = self._secrets.get(parameters.name)
            if present is None or present[0] != key_id:
                raise _rotated()
            count, first_limit = self._releases.get(key_id, (0, limit))
            _check_limit(count, first_limit, limit)
            self._releases[key_id] = (count + 1, limit)
            return count + 1


class KeyRing:
    """The keys in one directory. Not shared between users; safe to share between processes of one user."""

    def __init__(self, directory: Path, passphrase: bytes | None = None) -> None:
        """Makes the directory when it is absent; raises `IdentityError` when others may read it."""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if stat.S_IMODE(directory.stat().st_mode) & 0o077:
            raise IdentityError(
                f"got key directory {directory} that others may enter, expected mode 0700",
                hint=f"chmod 700 {directory}",
            )
        if passphrase is not None and not passphrase:
            raise ConfigError("got an empty passphrase, expected one or more characters, or none at all")
        self._directory = directory
        self._passphrase = passphrase

    def __repr__(self) -> str:
        return f"KeyRing({self._directory.name}, {'encrypted' if self.encrypted else 'file mode only'})"

    @property
    def encrypted(self) -> bool:
        """Whether keys are stored under a passphrase."""
        return self._passphrase is not None

    def open(self, parameters: Parameters, elements: tuple[int, ...]) -> Keys:
        """See `Ring.open`. Raises `ConfigError`, `IdentityError` or `InputError` for files that cannot be trusted."""
        path = self._path(parameters, "secret")
        with self._locked():
            key_id, secret = self._load(path, parameters) if path.exists() else self._make(parameters)
            return Keys(key_id, secret, self._evaluation(parameters, elements, key_id, secret) if elements else b"")

    def rotate(self, parameters: Parameters) -> None:
        """See `Ring.rotate`."""
        with self._locked():
            for stale in self._directory.glob(f"{parameters.name}.*.evaluation"):
                stale.unlink()
            self._make(parameters)

    def count_release(self, parameters: Parameters, key_id: str, limit: int) -> int:
        """See `Ring.count_release`. The new count is durable when this returns."""
        path = self._path(parameters, "releases")
        with self._locked():
            header, _ = _read(self._path(parameters, "secret"), _MAX_SECRET_BYTES)
            if header.get("key_id") != key_id:
                raise _rotated()
            counted = _read(path, 2 * _MAX_HEADER_BYTES)[0] if path.exists() else {}
            count = counted.get("releases")
            if counted.get("key_id") != key_id or not isinstance(count, int) or isinstance(count, bool) or count < 0:
                # A count that cannot be read is not taken for zero.
                raise StateError(
                    f"got no count of the releases under the present key of {parameters.name}, expected {path.name}",
                    hint="rotate the keys",
                )
            _check_limit(count, counted.get("limit", limit), limit)
            _write(path, {"key_id": key_id, "releases": count + 1, "limit": limit}, b"")
            return count + 1

    def _evaluation(self, parameters: Parameters, elements: tuple[int, ...], key_id: str, secret: SecretKey) -> bytes:
        path = self._path(parameters, f"{_short(elements)}.evaluation")
        size_bytes = messages.key_bytes(parameters, len(elements))
        if path.exists():
            header, body = _read(path, size_bytes + 2 * _MAX_HEADER_BYTES)
            if (header.get("key_id"), header.get("elements"), len(body)) == (key_id, list(elements), size_bytes):
                return body
        body = secret.evaluation_keys(elements)
        _write(path, {"key_id": key_id, "elements": list(elements)}, body)
        return body

    def _path(self, parameters: Parameters, kind: str) -> Path:
        return self._directory / f"{parameters.name}.{kind}"

    def _make(self, parameters: Parameters) -> tuple[str, SecretKey]:
        secret = SecretKey(parameters)
        header: dict[str, Any] = {
            "parameters": parameters.name,
            "parameters_digest": parameters.digest.hex(),
            "key_id": secrets.token_hex(16),
            "created_s": int(time.time()),
            "encryption": None,
        }
        body = secret.secret_bytes()
        if self._passphrase is not None:
            salt, nonce = os.urandom(16), os.urandom(12)
            header["encryption"] = {"salt": _text(salt), "nonce": _text(nonce), **_SCRYPT}
            body = AESGCM(_derive(self._passphrase, salt)).encrypt(nonce, body, _encode(header))
        _write(self._path(parameters, "secret"), header, body)
        _write(self._path(parameters, "releases"), {"key_id": header["key_id"], "releases": 0}, b"")
        return str(header["key_id"]), secret

    def _load(self, path: Path, parameters: Parameters) -> tuple[str, SecretKey]:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise IdentityError(f"got {path} that others may read, expected mode 0600", hint=f"chmod 600 {path}")
        header, body = _read(path, _MAX_SECRET_BYTES)
        if header.get("parameters_digest") != parameters.digest.hex():
            raise ConfigError(
                f"got {path.name} made for other numbers than {parameters.name} has now, expected the same",
                hint="move the file away; a new key is made",
            )
        encryption = header.get("encryption")
        if (encryption is None) != (self._passphrase is None):
            raise ConfigError(
                f"got {path.name} stored {'without' if encryption is None else 'under'} a passphrase, expected it "
                f"{'under the one given' if encryption is None else 'without, as none was given'}",
                hint="give the passphrase, or none, as when the key was made; or move the file away",
            )
        if self._passphrase is not None:
            body = _decrypt(body, header, self._passphrase, path)
        try:
            return str(header.get("key_id")), SecretKey(parameters, body)
        except CiphertextError:
            raise _damaged(path) from None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time makes, replaces or counts."""
        descriptor = os.open(self._directory / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _write(path: Path, header: dict[str, Any], body: bytes) -> None:
    text = _encode(header)
    write_atomic(path, _MAGIC + struct.pack(">I", len(text)) + text + body, mode=0o600)


def _read(path: Path, limit_bytes: int) -> tuple[dict[str, Any], bytes]:
    data = read_bounded(path, limit_bytes)
    start = len(_MAGIC) + 4
    if not data.startswith(_MAGIC) or len(data) < start:
        raise _damaged(path)
    (size,) = struct.unpack(">I", data[len(_MAGIC) : start])
    try:
        header = json.loads(data[start : start + size]) if size <= _MAX_HEADER_BYTES else None
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict):
        raise _damaged(path)
    return header, data[start + size :]


def _decrypt(body: bytes, header: dict[str, Any], passphrase: bytes, path: Path) -> bytes:
    encryption = header["encryption"]
    # Costs other than these are refused, not obeyed: a forged header must not choose them.
    if not isinstance(encryption, dict) or {name: encryption.get(name) for name in _SCRYPT} != _SCRYPT:
        raise _damaged(path)
    try:
        salt = base64.b64decode(str(encryption.get("salt")), validate=True)
        nonce = base64.b64decode(str(encryption.get("nonce")), validate=True)
        return AESGCM(_derive(passphrase, salt)).decrypt(nonce, body, _encode(header))
    except (InvalidTag, ValueError):
        raise ConfigError(
            f"got a passphrase that does not open {path.name}, or the file is damaged", hint="check the passphrase"
        ) from None


def _derive(passphrase: bytes, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=32, **_SCRYPT).derive(passphrase)


def _encode(header: dict[str, Any]) -> bytes:
    return json.dumps(header, sort_keys=True, separators=(",", ":")).encode()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _short(elements: tuple[int, ...]) -> str:
    return hashlib.sha256(",".join(map(str, elements)).encode()).hexdigest()[:12]


def _damaged(path: Path) -> InputError:
    return InputError(f"got {path.name} that is not a key file, or is damaged", hint="move it away; a new key is made")


def _rotated() -> StateError:
    return StateError("got scores under a key that was rotated since, expected the present one", hint="ask again")


def _check_limit(count: int, first_limit: object, limit: int) -> None:
    if first_limit != limit:
        raise StateError(
            f"got a limit of {limit} releases, expected that of the first one under this key", hint="rotate the keys"
        )
    if count >= limit:
        raise StateError(f"got {limit} releases under one key, expected no more", hint="rotate the keys, ask again")
