"""The file of bearer tokens: who may ask a scoring server without a certificate of their own.

Guarantee: a token is 256 random bits, exists in the clear once, when `add` returns it, and stands in the file as a hash
keyed by the file's own salt (BLAKE2b, RFC 7693): whoever reads the file can ask nobody with it. The file has mode 0600
and is refused when others may touch it. Every token expires. A token is compared with every entry in constant time, and
all that is wrong with one gets one and the same answer. A server notices a changed file at the next call; a file that
cannot be read any more admits nobody.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from veil.errors import ConfigError, IdentityError, VeilError
from veil.files import read_bounded, write_atomic
from veil.identity.names import check_name
from veil.wire.admission import no_token

MOST_TOKENS = 1024
LONGEST_DAYS = 3650
_FILE_LIMIT_BYTES = 1 << 20
_VERSION = 1
_PREFIX = "veil_"
_TOKEN = re.compile(r"veil_[A-Za-z0-9_-]{43}")
_ID = re.compile(r"[0-9a-f]{8}")
_PERSON = b"veil-token-v1"
_log = logging.getLogger("veil.he_inference.service.access")


@dataclass(frozen=True, slots=True)
class TokenEntry:
    """What is kept of a token: nothing that opens anything. Times are UTC, in ISO 8601."""

    id: str
    name: str
    created: str
    expires: str
    revoked: str | None
    hash: str

    def valid(self, now: datetime) -> bool:
        """Neither revoked nor expired."""
        return self.revoked is None and now < datetime.fromisoformat(self.expires)

    def __repr__(self) -> str:
        return f"TokenEntry({self.id})"


@dataclass(frozen=True, slots=True)
class _Content:
    salt: bytes
    entries: tuple[TokenEntry, ...]
    hashes: tuple[bytes, ...] = ()

    def __repr__(self) -> str:
        return f"_Content({len(self.entries)} tokens)"


class TokenFile:
    """A server's view of the file; threads may share it. Raises `ConfigError` when it cannot be used at first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._stamp = _stamp(path)
        self._content: _Content | None = _read(path)

    def name_of(self, token: str, now: datetime | None = None) -> str:
        """The client that holds this token; raises `IdentityError`, the same for every token that is not valid."""
        content = self._current()
        well_formed = _TOKEN.fullmatch(token) is not None
        found: TokenEntry | None = None
        if content is not None and well_formed:
            digest = _hash(content.salt, token)
            for entry, known in zip(content.entries, content.hashes, strict=True):
                # every entry is looked at, whichever it is
                if hmac.compare_digest(known, digest):
                    found = entry
        if found is None or not found.valid(now or _now()):
            raise no_token()
        return found.name

    def __repr__(self) -> str:
        return "TokenFile()"

    def _current(self) -> _Content | None:
        with self._lock:
            stamp = _stamp(self._path)
            if stamp != self._stamp:
                self._stamp = stamp
                try:
                    self._content = _read(self._path)
                    _log.info("the file of tokens has changed and is read again")
                except VeilError as error:
                    self._content = None
                    _log.error("the file of tokens cannot be used, nobody is admitted by token: %s", error)
            return self._content


def add(path: Path, name: str, days: int, now: datetime | None = None) -> tuple[str, TokenEntry]:
    """A new token for the client `name`, and what the file keeps of it; makes the file when there is none.

    Several tokens may have one name: they are one client, so that a new one can replace an old one without a gap.
    Show the token once and keep it nowhere. Raises `ConfigError` for a malformed name, days or a full file.
    """
    try:
        check_name(name, "the name of a client")
    except IdentityError as error:
        raise ConfigError(error.message) from None
    if not 1 <= days <= LONGEST_DAYS:
        raise ConfigError(f"got {days} days, expected 1 to {LONGEST_DAYS}")
    moment = now or _now()
    with _locked(path):
        content = _read(path) if path.exists() else _Content(secrets.token_bytes(32), ())
        kept = list(content.entries)
        if len(kept) >= MOST_TOKENS:
            # those that open nothing any more give way
            kept = [entry for entry in kept if entry.valid(moment)]
        if len(kept) >= MOST_TOKENS:
            raise ConfigError(f"got {len(kept)} valid tokens already, expected at most {MOST_TOKENS}")
        token = _PREFIX + secrets.token_urlsafe(32)
        taken = {entry.id for entry in kept}
        number = next(value for value in iter(lambda: secrets.token_hex(4), "") if value not in taken)
        expires = moment + timedelta(days=days)
        entry = TokenEntry(
            number,
            name,
            moment.isoformat(timespec="seconds"),
            expires.isoformat(timespec="seconds"),
            None,
            _hash(content.salt, token).hex(),
        )
        _write(path, _Content(content.salt, (*kept, entry)))
    return token, entry


def entries(path: Path) -> tuple[TokenEntry, ...]:
    """All tokens of the file, in order of their making. Raises `ConfigError`."""
    return _read(path).entries


def revoke(path: Path, which: str, now: datetime | None = None) -> int:
    """Ends the token with that id, or all of the client with that name; how many valid ones there were.

    Raises `ConfigError` when there is none of either kind.
    """
    moment = now or _now()
    with _locked(path):
        content = _read(path)
        chosen = {entry.id for entry in content.entries if which in (entry.id, entry.name)}
        if not chosen:
            raise ConfigError(
                f"got {which[:64]!r}, expected the id of a token or the name of a client in {path.name}",
                hint="see: veil tokens list",
            )
        ended = {entry.id for entry in content.entries if entry.id in chosen and entry.valid(moment)}
        stamp = moment.isoformat(timespec="seconds")
        changed = tuple(replace(entry, revoked=stamp) if entry.id in ended else entry for entry in content.entries)
        _write(path, _Content(content.salt, changed))
    return len(ended)


def _hash(salt: bytes, token: str) -> bytes:
    return hashlib.blake2b(token.encode("ascii"), digest_size=32, key=salt, person=_PERSON).digest()


def _now() -> datetime:
    return datetime.now(UTC)


def _stamp(path: Path) -> tuple[int, int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size, status.st_mode


def _read(path: Path) -> _Content:
    try:
        mode = path.stat().st_mode & 0o777
    except OSError as error:
        raise ConfigError(
            f"got no file of tokens at {path}: {error.strerror}", hint="make one with `veil tokens add`"
        ) from None
    if mode & 0o077:
        raise ConfigError(f"got mode {mode:04o} of {path.name}, expected 0600", hint=f"chmod 600 {path.name}")
    try:
        document = json.loads(read_bounded(path, _FILE_LIMIT_BYTES))
        if set(document) != {"version", "salt", "tokens"} or document["version"] != _VERSION:
            raise ValueError
        salt = bytes.fromhex(document["salt"])
        found = tuple(_entry(row) for row in document["tokens"])
        if len(salt) != 32 or len(found) > MOST_TOKENS or len({entry.id for entry in found}) != len(found):
            raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError):
        # the text itself is not repeated: it may be a token that somebody pasted
        raise ConfigError(f"got a damaged file of tokens {path.name}, expected one of `veil tokens add`") from None
    return _Content(salt, found, tuple(bytes.fromhex(entry.hash) for entry in found))


def _entry(row: dict[str, str | None]) -> TokenEntry:
    entry = TokenEntry(**row)  # type: ignore[arg-type]
    check = [entry.created, entry.expires] + ([entry.revoked] if entry.revoked is not None else [])
    if not _ID.fullmatch(entry.id) or len(bytes.fromhex(entry.hash)) != 32:
        raise ValueError
    if any(datetime.fromisoformat(text).tzinfo is None for text in check):
        raise ValueError
    try:
        check_name(entry.name, "the name of a client")
    except IdentityError:
        raise ValueError from None
    return entry


def _write(path: Path, content: _Content) -> None:
    document = {
        "version": _VERSION,
        "salt": content.salt.hex(),
        "tokens": [asdict(entry) for entry in content.entries],
    }
    write_atomic(path, json.dumps(document, indent=1).encode() + b"\n", mode=0o600)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One change at a time, also from several processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
