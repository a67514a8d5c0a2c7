"""How kernels of the scoring engine are compiled (`veil.jit`) and run: on how many threads, one parallel one at a time.

Guarantee: one parallel kernel runs at a time, whatever threads call them: Numba's own pool of threads ("workqueue",
which every platform has and whose threads sleep while they wait) ends the process otherwise.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

from veil.jit import compiler, small

__all__ = ["kernel", "parallel_kernel", "small", "threads", "use_threads"]

Function = TypeVar("Function", bound=Callable[..., object])

_config: Any = numba.config
_config.THREADING_LAYER = "workqueue"
_MOST_THREADS: int = _config.NUMBA_NUM_THREADS
_PACKAGE = Path(__file__).resolve().parents[1]
_COMPILER = compiler(_PACKAGE, "kernels", [*(_PACKAGE / "ring").glob("*.py"), *(_PACKAGE / "engine").glob("*.py")])

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
    return _COMPILER.kernel(function)


def parallel_kernel(function: Function) -> Function:
    """A kernel whose `prange` loops run on all threads of the process; calls wait for each other."""
    compiled = _COMPILER.kernel(function, parallel=True)

    @functools.wraps(function)
    def run(*arguments: object) -> object:
        with _one_at_a_time:
            if numba.get_num_threads() != _threads[0]:  # a setting of the calling thread
                numba.set_num_threads(_threads[0])
            return compiled(*arguments)

    return cast(Function, run)
