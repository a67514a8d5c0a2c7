"""How long to wait before a peer is dialled again: not at all at first, longer and longer while its stream flaps.

Guarantee: a pause is at most `MOST_S`; while streams keep breaking soon, from the seventh dial on at least half of that
passes before each, whatever the peer does. The random part comes from the operating system, so that parties that lost
each other at once do not come back at once. A stream that stayed up for `STEADY_S` starts anew.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

FIRST_S = 0.05
MOST_S = 1.0
STEADY_S = 5.0
_STEPS = 1 << 16


class Pauses:
    """The pauses of one peer. draw: uniform below its argument; tests that need to know it give another."""

    def __init__(self, draw: Callable[[int], int] = secrets.randbelow) -> None:
        self._draw = draw
        self._next_s = 0.0

    def __repr__(self) -> str:
        return f"Pauses(next={self._next_s:g} s)"

    def next_s(self) -> float:
        """The pause before the next dial, in seconds: 0 first, then half to whole of 0.05, 0.1, 0.2 ... 1."""
        longest_s = self._next_s
        self._next_s = min(MOST_S, 2 * longest_s or FIRST_S)
        return longest_s * (0.5 + self._draw(_STEPS + 1) / (2 * _STEPS))

    def lasted(self, up_s: float) -> None:
        """A stream was up for so long."""
        if up_s >= STEADY_S:
            self._next_s = 0.0
