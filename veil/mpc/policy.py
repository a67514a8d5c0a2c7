"""What a session may open, and a record of what it has opened.

A session refuses every opening that the job does not list by name and shape, and each name a second time.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from torch import Tensor

from veil.errors import PolicyError, RevealError
from veil.jobs.spec import Release

_log = logging.getLogger("veil.mpc")
_UNKNOWN = "not known here"


@dataclass(frozen=True)
class Opening:
    """One value that became known to every party, or to `recipient` alone.

    `digest` is the SHA-256 of its little-endian bytes, or "not known here" where another party alone learnt it.
    """

    name: str
    shape: tuple[int, ...]
    mechanism: str
    digest: str
    recipient: str | None = None


class RevealPolicy:
    """The openings that one job lists: noised releases, and other tensors by name and shape.

    recipients: of those that open to one party alone, that party's name.
    """

    def __init__(
        self,
        releases: Iterable[Release],
        openings: Mapping[str, tuple[int, ...]],
        recipients: Mapping[str, str] | None = None,
    ) -> None:
        self._releases = {release.name: release for release in releases}
        self._openings = {name: tuple(shape) for name, shape in openings.items()}
        self._recipients = dict(recipients or {})
        self._used: set[str] = set()
        self._log: list[Opening] = []

    @property
    def log(self) -> tuple[Opening, ...]:
        """Everything opened so far, in order."""
        return tuple(self._log)

    def admit_release(self, release: Release) -> None:
        """Raises `RevealError` unless the job lists exactly this release and it has not been opened."""
        if self._releases.get(release.name) != release:
            raise RevealError(
                f"got release {release.name!r}, expected one as the job lists it",
                hint="name, shape, sensitivity and sigma must be those of the signed text",
            )
        self._once(release.name)

    def admit_opening(self, name: str, shape: tuple[int, ...], recipient: str | None = None) -> None:
        """Raises `RevealError` unless the job lists this opening with this shape and it has not been made.

        recipient: the one party that it opens to; None: all. Another one than listed is refused.
        """
        if name not in self._openings:
            raise RevealError(f"got opening {name!r}, expected one that the job lists")
        if self._openings[name] != shape:
            raise RevealError(f"got shape {shape} for opening {name!r}, expected {self._openings[name]}")
        if self._recipients.get(name) != recipient:
            raise RevealError(
                f"got opening {name!r} to {recipient or 'all'}, expected it to {self._recipients.get(name) or 'all'}"
            )
        self._once(name)

    def _once(self, name: str) -> None:
        if name in self._used:
            raise RevealError(f"got {name!r} a second time, expected each opening once")
        self._used.add(name)

    def record(self, name: str, mechanism: str, opened: Tensor) -> Opening:
        """Notes and logs what was opened, by digest."""
        opening = Opening(name=name, shape=tuple(opened.shape), mechanism=mechanism, digest=_digest(opened))
        self._log.append(opening)
        _log.info("opened %s %s by %s: %s", opening.name, list(opening.shape), mechanism, opening.digest)
        return opening

    def record_directed(
        self, name: str, shape: tuple[int, ...], mechanism: str, recipient: str, opened: Tensor | None
    ) -> Opening:
        """Notes what was opened to one party alone; the log does not get its digest. opened: None at the others."""
        digest = _UNKNOWN if opened is None else _digest(opened)
        opening = Opening(name=name, shape=shape, mechanism=mechanism, digest=digest, recipient=recipient)
        self._log.append(opening)
        # A few exact numbers on a coarse grid can be found from their digest, and logs are read by others than rows.
        _log.info("opened %s %s to %s alone by %s", name, list(shape), recipient, mechanism)
        return opening


def _digest(opened: Tensor) -> str:
    return f"sha256:{hashlib.sha256(opened.detach().contiguous().numpy().tobytes()).hexdigest()}"


class Refused:
    """Stands in for a part of a library that must not be used: touching it raises `PolicyError`."""

    def __init__(self, what: str) -> None:
        object.__setattr__(self, "_what", what)

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__"):  # isinstance and the like
            return object.__getattribute__(self, name)
        _refuse(self)

    def __call__(self, *_: object, **__: object) -> NoReturn:
        _refuse(self)

    def __getitem__(self, name: object) -> NoReturn:
        _refuse(self)


def _refuse(stand_in: Refused) -> NoReturn:
    what = object.__getattribute__(stand_in, "_what")
    raise PolicyError(f"got a use of {what}, expected Session and the dealer's correlated randomness")
