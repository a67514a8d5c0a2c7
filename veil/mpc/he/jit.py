"""How kernels are compiled: to machine code at first use, kept on disk, run by one thread without the interpreter lock.

Guarantee: no kernel checks bounds or changes what it is given beyond its documented outputs, so callers check shapes
and ranges first; compiled code never outlives the sources that it was made of.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., object])

_config: Any = numba.config
_PACKAGE = Path(__file__).resolve().parent


def _folder() -> str | None:
    """Where compiled code of these very sources lies; None where nothing may be written."""
    # Numba looks at the file of a kernel alone when it decides whether compiled code is up to date; a kernel that
    # calls one of another file would go on with the old one. So each version of the sources has a folder of its own.
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.glob("*.py")):
        source = path.read_bytes()
        if b"veil.mpc.he.jit" in source or path.name in ("jit.py", "ring.py"):
            digest.update(path.name.encode() + b"\x00" + source)
    parent = Path(os.environ["NUMBA_CACHE_DIR"]) if os.environ.get("NUMBA_CACHE_DIR") else _PACKAGE / "__pycache__"
    if not os.access(parent if parent.exists() else parent.parent, os.W_OK):
        return None
    return str(parent / f"he-kernels-{digest.hexdigest()[:16]}")


_FOLDER = _folder()


def kernel(function: Function) -> Function:
    """A kernel, which may be called by others."""
    if _FOLDER is None:
        return cast(Function, numba.njit(nogil=True, error_model="numpy")(function))
    # The setting belongs to the process; others set it for theirs, so it is put back.
    before, _config.CACHE_DIR = _config.CACHE_DIR, _FOLDER
    try:
        return cast(Function, numba.njit(cache=True, nogil=True, error_model="numpy")(function))
    finally:
        _config.CACHE_DIR = before


def small(function: Function) -> Function:
    """A few instructions that are written into their callers."""
    return cast(Function, numba.njit(inline="always", error_model="numpy")(function))
