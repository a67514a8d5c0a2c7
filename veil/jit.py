"""How kernels are compiled: to machine code at first use, kept on disk, run without the interpreter lock.

Guarantee: no kernel checks bounds or changes what it is given beyond its documented outputs, so callers check shapes
and ranges first; no kernel reorders or fuses floating point, so answers do not depend on the processor; compiled code
never outlives the sources that it was made of.

Numba looks at the file of a kernel alone when it decides whether compiled code is up to date; a kernel that calls one
of another file would go on with the old one, and give wrong numbers without a word. So code of each version of the
sources lies in a folder of its own: below NUMBA_CACHE_DIR, where that is set, else beside the sources, else in the
user's own cache.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., object])

_config: Any = numba.config


class Compiler:
    """Compiles the kernels of one package. folder: where code is kept; None: nowhere."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def __repr__(self) -> str:
        return f"Compiler({self.folder})"

    def kernel(self, function: Function, *, parallel: bool = False) -> Function:
        """A kernel, which may be called by others. parallel: its `prange` loops run on several threads."""
        if self.folder is None:
            return _compiled(function, False, parallel)
        # The setting belongs to the process; other packages have theirs, so it is put back.
        before, _config.CACHE_DIR = _config.CACHE_DIR, str(self.folder)
        try:
            return _compiled(function, True, parallel)
        except RuntimeError:  # Numba can keep it nowhere
            return _compiled(function, False, parallel)
        finally:
            _config.CACHE_DIR = before


def _compiled(function: Function, cache: bool, parallel: bool) -> Function:
    made = numba.njit(cache=cache, nogil=True, parallel=parallel, error_model="numpy")(function)
    return cast(Function, made)


def small(function: Function) -> Function:
    """A few instructions that are written into their callers."""
    return cast(Function, numba.njit(inline="always", error_model="numpy")(function))


def compiler(package: Path, name: str, sources: Iterable[Path]) -> Compiler:
    """The compiler of kernels in a package's folder; `name` begins the names of its folders of compiled code.

    sources: every file that one of these kernels may be made of.
    """
    digest = hashlib.sha256()
    for path in sorted([Path(__file__), *sources]):
        digest.update(path.name.encode() + b"\x00" + path.read_bytes())
    places = (Path(given),) if (given := os.environ.get("NUMBA_CACHE_DIR")) else (package / "__pycache__", _own_cache())
    found = next((place for place in places if place is not None and _existing(place)), None)
    return Compiler(None if found is None else found / f"{name}-{digest.hexdigest()[:16]}")


def _own_cache() -> Path | None:
    """Of this user alone: whoever writes there runs what they like in this process.

    None where it, or what it would be made in, is another user's or open to all: HOME may be /tmp.
    """
    if given := os.environ.get("XDG_CACHE_HOME"):
        folder = Path(given) / "veil"
    elif given := os.environ.get("HOME"):
        folder = Path(given) / ".cache" / "veil"
    else:
        return None
    existing = _existing(folder)
    if existing is None:
        return None
    facts = existing.stat()
    return folder if facts.st_uid == os.geteuid() and not facts.st_mode & stat.S_IWOTH else None


def _existing(folder: Path) -> Path | None:
    """The folder, or what it can be made in where it is missing; None where that may not be written."""
    existing = next((place for place in (folder, *folder.parents) if place.exists()), None)
    return existing if existing is not None and existing.is_dir() and os.access(existing, os.W_OK) else None
