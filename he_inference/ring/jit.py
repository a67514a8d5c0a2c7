"""How kernels are compiled and run: to machine code at first use, kept on disk, without the interpreter lock.

Guarantee: no kernel checks bounds or changes what it is given beyond its documented outputs, so callers check shapes
and ranges first; no kernel reorders or fuses floating point, so answers do not depend on the processor. One parallel
kernel runs at a time, whatever threads call them: Numba's own pool of threads ("workqueue", which every platform has
and whose threads sleep while they wait) ends the process otherwise.
"""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., object])

_config: Any = numba.config
_config.THREADING_LAYER = "workqueue"
_MOST_THREADS: int = _config.NUMBA_NUM_THREADS
_PACKAGE = Path(__file__).resolve().parents[1]


def _source_digest() -> str:
    """SHA-256 over every file that a kernel may be made of, 16 characters of it."""
    digest = hashlib.sha256()
    for path in sorted([*(_PACKAGE / "ring").glob("*.py"), *(_PACKAGE / "engine").glob("*.py")]):
        digest.update(path.name.encode() + b"\x00" + path.read_bytes())
    return digest.hexdigest()[:16]


# Numba looks at the file of a kernel alone when it decides whether compiled code is up to date; a kernel that calls
# one of another file would go on with the old one, and give wrong residues without a word. So code of each version
# of the sources lies in a folder of its own.
_folder = Path(os.environ["NUMBA_CACHE_DIR"]) if os.environ.get("NUMBA_CACHE_DIR") else _PACKAGE / "__pycache__"
if os.access(_folder if _folder.exists() else _folder.parent, os.W_OK):
    _config.CACHE_DIR = str(_folder / f"kernels-{_source_digest()}")

_one_at_a_time = threading.Lock()
_threads = [_MOST_THREADS]


def use_threads(count: int) -> int:
    """Runs parallel kernels on `count` threads from now on; returns how many it will be, at most NUMBA_NUM_THREADS."""
    _threads[0] = max(1, min(count, _MOST_THREADS))
    return _threads[0]


def threads() -> int:
    """Threads that parallel kernels run on."""
    return _threads[0]


def kernel(function: Function) -> Function:
    """A kernel of one thread, which may be called by others."""
    return cast(Function, numba.njit(cache=True, nogil=True, error_model="numpy")(function))


def small(function: Function) -> Function:
    """A few instructions that are written into their callers."""
    return cast(Function, numba.njit(inline="always", error_model="numpy")(function))


def parallel_kernel(function: Function) -> Function:
    """A kernel whose `prange` loops run on all threads of the process; calls wait for each other."""
    compiled = numba.njit(cache=True, nogil=True, parallel=True, error_model="numpy")(function)

    @functools.wraps(function)
    def run(*arguments: object) -> object:
        with _one_at_a_time:
            if numba.get_num_threads() != _threads[0]:  # a setting of the calling thread
                numba.set_num_threads(_threads[0])
            return compiled(*arguments)

    return cast(Function, run)
