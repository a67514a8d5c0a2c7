"""The client's keys: made, stored, loaded and rotated on the client's machine. The server never imports this file.

A directory of mode 0700 holds, for each parameter set,

    <set>.secret                    the secret key, mode 0600
    <set>.<elements>.evaluation     evaluation keys made from it (public; stored so that their digest stays the same,
                                    and the server need not be sent them again)

each as: magic | u32 length of header | JSON header | body.

Guarantee: the secret key leaves this file as a `CkksSession` only. With a passphrase it is encrypted at rest:
AES-256-GCM under scrypt (N = 2^15, r = 8, p = 1; RFC 7914), the header authenticated. Without one, only the file mode
protects it; `KeyRing.encrypted` says which. A damaged file, a wrong passphrase or a mode that others can read is an
error, never another key.
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
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from he_inference.parameters import Parameters
from he_inference.scheme import CkksSession
from veil.errors import CiphertextError, ConfigError, IdentityError, InputError
from veil.files import read_bounded, write_atomic

_MAGIC = b"VEIL-HE-KEY/1\n"
_MAX_HEADER_BYTES = 4096
_MAX_SECRET_BYTES = 1 << 20
_SCRYPT = {"n": 1 << 15, "r": 8, "p": 1}


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

    def session(self, parameters: Parameters) -> CkksSession:
        """The secret key for that set; made and stored when there is none yet."""
        return self._session(parameters)[0]

    def evaluation_keys(self, parameters: Parameters, elements: tuple[int, ...]) -> bytes:
        """Evaluation keys of the present secret key for those Galois elements; made once, then read."""
        session, key_id = self._session(parameters)
        path = self._directory / f"{parameters.name}.{_short(elements)}.evaluation"
        with self._locked():
            if path.exists():
                header, body = _read(path, parameters.max_key_bytes(len(elements)) + 2 * _MAX_HEADER_BYTES)
                if (header.get("key_id"), header.get("elements")) == (key_id, list(elements)):
                    return body
            body = session.evaluation_keys(elements)
            _write(path, {"key_id": key_id, "elements": list(elements)}, body)
            return body

    def rotate(self, parameters: Parameters) -> CkksSession:
        """Replaces the secret key of that set by a new one; what was encrypted under the old one is lost."""
        with self._locked():
            for stale in self._directory.glob(f"{parameters.name}.*.evaluation"):
                stale.unlink()
            return self._make(parameters)[0]

    def _session(self, parameters: Parameters) -> tuple[CkksSession, str]:
        path = self._secret_path(parameters)
        with self._locked():
            return self._load(path, parameters) if path.exists() else self._make(parameters)

    def _secret_path(self, parameters: Parameters) -> Path:
        return self._directory / f"{parameters.name}.secret"

    def _make(self, parameters: Parameters) -> tuple[CkksSession, str]:
        session = CkksSession(parameters)
        header: dict[str, Any] = {
            "parameters": parameters.name,
            "parameters_digest": parameters.digest.hex(),
            "key_id": secrets.token_hex(16),
            "created_s": int(time.time()),
            "encryption": None,
        }
        body = session.secret_bytes()
        if self._passphrase is not None:
            salt, nonce = os.urandom(16), os.urandom(12)
            header["encryption"] = {"salt": _text(salt), "nonce": _text(nonce), **_SCRYPT}
            body = AESGCM(_derive(self._passphrase, salt)).encrypt(nonce, body, _encode(header))
        _write(self._secret_path(parameters), header, body)
        return session, str(header["key_id"])

    def _load(self, path: Path, parameters: Parameters) -> tuple[CkksSession, str]:
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
            return CkksSession(parameters, body), str(header.get("key_id"))
        except CiphertextError:
            raise _damaged(path) from None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time makes or replaces keys."""
        descriptor = os.open(self._directory / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
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
    except ValueError:
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
