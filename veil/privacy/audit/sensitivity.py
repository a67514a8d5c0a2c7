"""Does one user move an integer sum by no more than the release says? Exact, no statistics.

Guarantee: norms are compared as integers of any size; a finding of this module never fails for rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from veil.errors import InputError
from veil.jobs.spec import Release
from veil.privacy.audit.finding import Finding

Int64 = npt.NDArray[np.int64]

_LIMB_BITS = 21
_CHUNK = 1 << 20


def squared_norm(values: Int64) -> int:
    """Exact sum of squares of int64 entries, as a Python integer."""
    if values.dtype != np.int64:
        raise InputError(f"got {values.dtype}, expected int64")
    flat = values.reshape(-1)
    total = 0
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        # The least int64 has no magnitude of its own type; as unsigned it is 2^63, which is right.
        magnitude = np.abs(part).view(np.uint64)
        limbs = [(magnitude >> np.uint64(_LIMB_BITS * k)) & np.uint64((1 << _LIMB_BITS) - 1) for k in range(3)]
        for i, left in enumerate(limbs):
            for j, right in enumerate(limbs):
                # Products below 2^42, at most 2^20 of them: the sum stays below 2^62.
                total += int((left * right).sum(dtype=np.uint64)) << (_LIMB_BITS * (i + j))
        top = magnitude >> np.uint64(63)
        if top.any():
            # The bit that three limbs leave out: only the least int64 has it, and nothing else set.
            total += int(top.sum()) << 126
    return total


def norm_finding(release: Release, contributions: Iterable[tuple[str, Int64]]) -> Finding:
    """The largest norm among named contributions of single users, against the release's sensitivity (L2, or L1)."""
    worst, name, longest = -1, "nobody", False
    laplace = release.mechanism == "discrete-laplace"
    limit = release.sensitivity if laplace else release.sensitivity**2
    for who, values in contributions:
        size = sum(abs(int(v)) for v in values[values != 0]) if laplace else squared_norm(values)
        if size > worst:
            worst, name = size, who
    longest = worst > limit
    ratio = worst / limit if laplace else math.sqrt(max(worst, 0) / limit)
    if longest:
        ratio = max(ratio, math.nextafter(1.0, 2.0))  # decided in integers, whatever the quotient rounds to
    elif worst >= 0:
        ratio = min(ratio, 1.0)
    return Finding(
        "sensitivity",
        release.name,
        ratio,
        (-1.0, 1.0),
        0.0,
        f"largest norm of one user / sensitivity (reached by: {name})",
    )


def equality_finding(subject: str, got: Int64, expected: Int64, what: str) -> Finding:
    """Whether two integer sums are equal, entry by entry; the statistic is the number of entries that differ."""
    differ = float(np.count_nonzero(got != expected)) if got.shape == expected.shape else float("inf")
    return Finding("users apart", subject, differ, (0.0, 0.0), 0.0, what)
