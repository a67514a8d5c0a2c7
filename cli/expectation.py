"""What utility to expect of a plan, read off figures that were measured on public data.

Guarantee: every number is an interpolation between figures of `reference_points.json`, which are figures of
docs/benchmarks.md; where a plan lies outside of what was measured, `Expected.measured` says so and the nearest figure
stands. It is no promise: other data have other users, items and histories.

What is compared: the share of the plaintext model's gain over best-sellers that the private model keeps,
(private - popularity) / (plaintext - popularity) in HR@10, against the noise of the whole job relative to the number of
users: noise multiplier times the square root of the number of draws, over users. That ratio, not epsilon, decides how
much of the users' sum is left. Between figures the share is linear in the ratio's logarithm.

The file has the form of `veil bench privacy-all` (out/bench-privacy/utility.json): to refresh it, copy the newer file
over it; figures for own public data are read the same way (`veil privacy plan --measured FILE`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from veil.errors import ConfigError
from veil.files import read_bounded
from veil.privacy.accountant import noise_multiplier

_BUILT_IN = Path(__file__).with_name("reference_points.json")
_MAX_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Reference:
    """Figures of one data set. `points`: (noise relative to users, HR@10 of the private model), rising noise."""

    data: str
    trainer: str
    users: int
    items: int
    plaintext: float
    popularity: float
    points: tuple[tuple[float, float], ...]

    def hr_at_10(self, ratio: float) -> float:
        """The private model's HR@10 here at that much noise relative to users; constant beyond the ends."""
        if ratio <= self.points[0][0]:
            return self.points[0][1]
        for (low, at_low), (high, at_high) in pairwise(self.points):
            if ratio <= high:
                return at_low + (at_high - at_low) * math.log(ratio / low) / math.log(high / low)
        return self.points[-1][1]

    def share(self, ratio: float) -> float:
        """Share of the plaintext model's gain over best-sellers; negative below best-sellers."""
        return (self.hr_at_10(ratio) - self.popularity) / (self.plaintext - self.popularity)

    def measured(self, ratio: float) -> bool:
        """Whether the ratio lies between figures, with a tenth to spare."""
        return self.points[0][0] / 1.1 <= ratio <= self.points[-1][0] * 1.1


@dataclass(frozen=True)
class Expected:
    """What a reference says of a plan."""

    reference: Reference
    share: float
    hr_at_10: float
    measured: bool


def references(path: Path | None = None) -> tuple[Reference, ...]:
    """The built-in figures, or those of a file that `veil bench privacy` or `privacy-all` wrote.

    Cases without a plaintext figure, and those without item texts, are left out. Raises `ConfigError`.
    """
    source = path or _BUILT_IN
    try:
        document = json.loads(read_bounded(source, _MAX_BYTES))
        cases = document.get("cases", [document])
        found = tuple(_gathered(cases))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ConfigError(
            f"got {source.name}, which is not what `veil bench privacy` writes", hint="pass its --json file"
        ) from None
    if not found:
        raise ConfigError(f"got {source.name} without a case that has plaintext and popularity figures, expected some")
    return found


def expected(known: Sequence[Reference], ratio: float, trainer: str) -> list[Expected]:
    """What figures of that trainer say; of all trainers, when there are none of it."""
    fitting = [one for one in known if one.trainer == trainer] or list(known)
    return [Expected(one, one.share(ratio), one.hr_at_10(ratio), one.measured(ratio)) for one in fitting]


def ratio(multiplier: float, draws: float, users: int) -> float:
    """Noise of the whole job relative to the users: `draws` draws of that multiplier on every opened total."""
    return multiplier * math.sqrt(draws) / users


def _gathered(cases: Iterable[dict[str, Any]]) -> Iterable[Reference]:
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for case in cases:
        if case.get("plaintext") and case.get("popularity") and case.get("text", True):
            groups.setdefault((str(case["data"]), str(case["trainer"]), int(case["users"])), []).append(case)
    for (data, trainer, users), own in groups.items():
        points = sorted(
            (
                ratio(noise_multiplier(float(case["epsilon"]), float(case["delta"])), _draws(case), users),
                float(case["hr_at_10"]),
            )
            for case in own
        )
        plaintext, popularity = float(own[0]["plaintext"]["hr_at_10"]), float(own[0]["popularity"]["hr_at_10"])
        if users < 1 or not plaintext > popularity:
            continue
        yield Reference(data, trainer, users, int(own[0]["items"]), plaintext, popularity, tuple(points))


def _draws(case: dict[str, Any], parties: int = 3) -> float:
    """Variance on the total over that of one full draw (`veil.privacy.sources`); figures are for three parties."""
    if case.get("noise_source", "dealer") == "dealer":
        return 1.0
    colluding = case.get("colluding")
    return parties / (parties - (parties - 1 if colluding is None else int(colluding)))
