"""Payments for the steps of a descent: asked for some steps ahead, a group in one durable commit, and waited for late.

Guarantee: `settle` returns for each step once, in order, and only after the ledger has that step on disk. A ledger is
some steps ahead of what has been made, `PAID_TOGETHER` at most beyond the step at work: a job that stops midway has
paid for these too, over-counted, never under-counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from veil.errors import RevealError
from veil.jobs.spec import Release
from veil.trainers.columns.terms import PAID_TOGETHER

Pay = Callable[[Sequence[Release]], Callable[[], None]]
"""Asks for releases to be put on record, all or none; what it returns waits until they are, or raises what refused,
as often as it is called."""


class Payments:
    """Of one job. releases: those of the steps, in their order."""

    def __init__(self, pay: Pay, releases: Sequence[Release]) -> None:
        self._pay = pay
        self._releases = tuple(releases)
        self._asked = self._paid = self._settled = 0
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()

    def __repr__(self) -> str:
        return f"Payments(settled={self._settled}, asked={self._asked}, planned={len(self._releases)})"

    def begin(self, step: int) -> None:
        """A step's rounds begin: what it needs is asked for, and what the next one does; nothing is waited for."""
        while self._asked < len(self._releases) and self._asked <= step + 1:
            group = self._releases[self._asked : self._asked + PAID_TOGETHER]
            wait = self._pay(group)
            self._asked += len(group)
            self._waiting.append((self._asked, wait))

    def settle(self, step: int) -> None:
        """Returns when the step is paid for: its noised sum may come to be. Raises `BudgetError` and its like.

        Raises `RevealError` for any step but the next one.
        """
        if step != self._settled or step >= self._asked:
            raise RevealError(f"got step {step}, expected step {self._settled}, begun before: each is paid for once")
        while self._paid <= step:
            paid, wait = self._waiting[0]
            wait()
            # Only now: a group that was refused stands before all later ones, whoever asks again.
            self._waiting.popleft()
            self._paid = paid
        self._settled += 1
