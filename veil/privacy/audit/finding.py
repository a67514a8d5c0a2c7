"""One verdict of an audit: what was measured, and where a mechanism that keeps its promise would lie.

Guarantee: a finding passes exactly when its statistic lies within its limits; both are finite, so that a report of
them is plain JSON.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

CEILING: Final = 1e9
"""What stands for infinity in figures."""


@dataclass(frozen=True)
class Finding:
    """A measured statistic against limits.

    Attributes:
        check: the kind of check, the same for all findings of that kind.
        subject: what was checked (a release, a pair of releases, a run).
        statistic: what was measured; `what` says in which unit.
        limits: (least, largest) accepted value.
        false_alarm: probability at most with which a correct mechanism leaves the limits; 0 for exact checks.
        what: one line for people.
    """

    check: str
    subject: str
    statistic: float
    limits: tuple[float, float]
    false_alarm: float
    what: str

    def __post_init__(self) -> None:
        """Replaces infinities by `CEILING`; a statistic that is not a number counts as the largest."""
        object.__setattr__(self, "statistic", finite(self.statistic))
        object.__setattr__(self, "limits", (finite(self.limits[0]), finite(self.limits[1])))

    @property
    def passed(self) -> bool:
        """Whether the statistic lies within the limits."""
        return self.limits[0] <= self.statistic <= self.limits[1]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "check": self.check,
            "subject": self.subject,
            "passed": self.passed,
            "statistic": self.statistic,
            "limits": list(self.limits),
            "false_alarm": self.false_alarm,
            "what": self.what,
        }


def finite(value: float) -> float:
    """The value within [-CEILING, CEILING]; NaN becomes CEILING."""
    return CEILING if math.isnan(value) else min(max(float(value), -CEILING), CEILING)
