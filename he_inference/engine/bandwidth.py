"""How fast this machine reads memory: the limit that the scoring kernel is measured against.

Guarantee: every byte is read, by all threads at once, in runs that prefetching likes; nothing is written. The same
reading pattern as STREAM's sums (McCalpin 1995), without its stores.
"""

from __future__ import annotations

import time

import numba
import numpy as np
from numpy.typing import NDArray

from he_inference.ring.jit import parallel_kernel

_RUN = 1 << 14


@parallel_kernel
def _sums(words, out) -> None:  # type: ignore[no-untyped-def]
    for run in numba.prange(out.size):
        part = words[run * _RUN : (run + 1) * _RUN]
        total = np.uint64(0)
        for place in range(part.size):
            total += part[place]
        out[run] = total


def read_seconds(buffer: NDArray[np.uint32]) -> float:
    """Seconds to read all of a contiguous buffer of at least 128 KiB once, whole runs of 128 KiB."""
    out = np.empty(buffer.nbytes // (8 * _RUN), np.uint64)
    if not len(out):
        raise ValueError(f"got a buffer of {buffer.nbytes} bytes, expected at least {8 * _RUN}")
    words = buffer.reshape(-1)[: 2 * _RUN * len(out)].view(np.uint64)
    _sums(words[:_RUN], out[:1])  # compiled before the clock runs
    started = time.perf_counter()
    _sums(words, out)
    return time.perf_counter() - started
