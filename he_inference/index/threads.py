"""Work on the blocks of an index by several threads; hashing, encoding and writing release the interpreter's lock.

Guarantee: results come in order, the first error ends the rest, and no thread outlives the call.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

Progress = Callable[[int, int], None]
"""(done, of how many)."""

_Result = TypeVar("_Result")


def in_threads(
    work: Callable[[int], _Result], numbers: Iterable[int], threads: int, progress: Progress | None = None
) -> list[_Result]:
    """Results of `work` on each number, in order. The first error ends the rest; `progress` is called by the caller's
    thread."""
    with ThreadPoolExecutor(threads, "veil-index") as pool:
        try:
            futures = [pool.submit(work, number) for number in numbers]
            for done, future in enumerate(as_completed(futures), 1):
                future.result()
                if progress is not None:
                    progress(done, len(futures))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return [future.result() for future in futures]


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))
