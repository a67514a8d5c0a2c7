"""What a job says of an alignment, and what comes out of one.

The plan is public and the same at every party: it is part of what the parties agree on before anything else, so a
party with other sizes, another mode or another collector is named and nothing is sent.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from veil.errors import ConfigError, InputError

MAX_PARTIES = 16
MAX_IDS = 16 * 2**20
"""Most ids that one party may bring: 528 MiB as points of the curve."""
MAX_ROWS = 64 * 2**20

Mode = Literal["reveal", "hidden"]
Progress = Callable[[str, int, int], None]
"""Called with the stage ("mix", "unwrap", "convert", ...), rows done and rows of the stage, after every batch."""
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class AlignmentPlan:
    """The declared part of an alignment.

    mode: "reveal", where every party learns which of its rows all parties hold, or "hidden", where nobody learns
        whether any one of its rows is held by another (`veil.align.protocol` says who learns what).
    sizes: the most ids of each party, in rank order, 1 to `MAX_IDS` each.
    result: "reveal": the most rows of the result; a larger one is refused. "hidden": the number of rows, exactly;
        sum(sizes) always suffices.
    least: "reveal" only: the fewest rows of the result. Small intersections point at persons.
    padded: every list is filled with dummies up to its declared size, so that nobody learns how many ids there are.
        Without it the parties tell each other their true numbers, which costs less.
    collector: rank of the party that compares the blinded lists, and so learns the sizes of their overlaps.
    """

    mode: Mode
    sizes: tuple[int, ...]
    result: int
    least: int = 0
    padded: bool = True
    collector: int = 0

    def __post_init__(self) -> None:
        """Raises `ConfigError` for a plan that cannot be carried out."""
        if self.mode not in ("reveal", "hidden"):
            raise ConfigError(f"got mode {self.mode!r}, expected reveal or hidden")
        if not 2 <= len(self.sizes) <= MAX_PARTIES:
            raise ConfigError(f"got sizes of {len(self.sizes)} parties, expected 2 to {MAX_PARTIES}")
        if any(type(size) is not int or not 1 <= size <= MAX_IDS for size in self.sizes):
            raise ConfigError(f"got sizes {self.sizes}, expected 1 to {MAX_IDS} each")
        if not 0 <= self.collector < len(self.sizes):
            raise ConfigError(f"got collector {self.collector}, expected a rank from 0 to {len(self.sizes) - 1}")
        if self.mode == "hidden":
            if not max(self.sizes) <= self.result <= MAX_ROWS or self.least:
                raise ConfigError(
                    f"got {self.result} rows, at least {self.least}, expected {max(self.sizes)} to {MAX_ROWS} and 0",
                    hint="a hidden result has room for every party's list; sum(sizes) rows always suffice",
                )
        elif not 0 <= self.least <= self.result or not 1 <= self.result <= min(self.sizes):
            raise ConfigError(
                f"got a result of {self.least} to {self.result} rows, expected 0 to {min(self.sizes)}",
                hint="the intersection is no larger than the smallest list",
            )

    def text(self) -> bytes:
        """Canonical JSON, for agreement and for keys."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode("ascii")


@dataclass(frozen=True, repr=False)
class Alignment:
    """Row numbers of one party in the order that all parties share.

    rows: int64 of the result's length; position j holds the number of the own row that stands in aligned row j, or -1
    where this party has none (only in "hidden" mode).
    """

    rows: Rows

    def __repr__(self) -> str:
        return f"Alignment({len(self.rows)} rows)"

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def members(self) -> npt.NDArray[np.bool_]:
        """Whether this party has a row there. In "hidden" mode it is as private as the rows: share it, never send it.

        The product of all parties' shared bits marks the rows that all hold: a weight in the computation.
        """
        return self.rows >= 0

    def take(self, table: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """`table`'s rows (rows, ...) in the shared order, zeros where this party has none."""
        if len(table) <= int(self.rows.max(initial=-1)):
            raise InputError(f"got a table of {len(table)} rows, expected one for each id that was aligned")
        if len(table) == 0:
            return np.zeros((len(self.rows), *table.shape[1:]), dtype=table.dtype)
        taken = table[np.maximum(self.rows, 0)]
        taken[~self.members] = 0
        return taken
