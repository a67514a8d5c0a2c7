"""A second name for an index file in use, so that a process that starts later finds it after it was replaced.

A shard that comes back opens the file by name, perhaps on another machine, while queries for a former generation are
still answered. A hard link `.NAME.<digest>.pin` beside the file keeps that generation there; it costs no space while
the file has its own name too.

Guarantee: a pin names one index by digest, and is made only of that index. Pins of indexes that are wanted no more are
removed by the next `pin`. Where no link can be made (another's folder, a file system without them), the file's own name
is used, and a former generation can only be reached by who has it open.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from he_inference.engine.shard import index_digest
from he_inference.index.store import Index
from veil.errors import ArtifactError

_DIGITS = 32
_log = logging.getLogger("veil.he_inference.pinned")


def pin(indexes: Sequence[tuple[Index, Path]]) -> list[Path]:
    """A name for each open index that stays; the paths are those they were opened by. Removes pins of no index here."""
    pins = [_pinned(index, path) for index, path in indexes]
    for folder, name in {(path.parent, path.name) for _, path in indexes}:
        pattern = re.compile(rf"\.{re.escape(name)}\.[0-9a-f]{{{_DIGITS}}}\.pin")
        for entry in folder.iterdir():
            if pattern.fullmatch(entry.name) and entry not in pins:
                _remove(entry)
    return pins


def _pinned(index: Index, path: Path) -> Path:
    digest = index_digest(index.front)
    found = path.with_name(f".{path.name}.{digest.hex()[:_DIGITS]}.pin")
    if not _is(found, digest):
        _remove(found)
        try:
            os.link(path, found)
        except OSError as error:
            _log.warning("index %s has no second name: %s", path.name, error.strerror)
            return path
        if not _is(found, digest):
            # The file was replaced between being opened and here.
            _remove(found)
            return path
    return found


def _is(path: Path, digest: bytes) -> bool:
    try:
        with Index.open(path, verify=False) as index:
            return index_digest(index.front) == digest
    except ArtifactError:
        return False


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("%s stays: %s", path.name, error.strerror)
