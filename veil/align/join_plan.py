"""What a job says of a join (`veil.align.join`): public, and the same at every party."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from veil.align.cuckoo import CHOICES, bins
from veil.align.exchange import batches
from veil.align.plan import MAX_IDS, MAX_PARTIES
from veil.errors import ConfigError

MAX_COLUMNS = 256
MAX_WORDS = 2**27
"""Most rows times columns of one party: 1 GiB."""


@dataclass(frozen=True)
class JoinPlan:
    """The declared part of a join.

    lead: rank of the party whose rows stay. sizes: the most ids of each party, in rank order. columns: how many
    columns each brings, 0 to `MAX_COLUMNS`; 0 for the lead, whose columns do not travel.
    """

    lead: int
    sizes: tuple[int, ...]
    columns: tuple[int, ...]

    def __post_init__(self) -> None:
        """Raises `ConfigError` for a plan that cannot be carried out."""
        if not 2 <= len(self.sizes) <= MAX_PARTIES or len(self.columns) != len(self.sizes):
            raise ConfigError(f"got {len(self.sizes)} sizes, {len(self.columns)} columns, expected 2 to {MAX_PARTIES}")
        if any(type(size) is not int or not 1 <= size <= MAX_IDS // CHOICES for size in self.sizes):
            raise ConfigError(f"got sizes {self.sizes}, expected 1 to {MAX_IDS // CHOICES} each")
        if any(type(count) is not int or not 0 <= count <= MAX_COLUMNS for count in self.columns):
            raise ConfigError(f"got columns {self.columns}, expected 0 to {MAX_COLUMNS} each")
        if not 0 <= self.lead < len(self.sizes) or self.columns[self.lead]:
            raise ConfigError(f"got lead {self.lead} with columns {self.columns}, expected a rank whose columns are 0")
        if self.rows * (1 + max(self.columns)) > MAX_WORDS:
            raise ConfigError(
                f"got {self.rows} rows of {max(self.columns)} columns, expected at most {MAX_WORDS} words",
                hint="join fewer columns at a time",
            )

    @property
    def rows(self) -> int:
        """Rows of the result: more than the lead's ids, some of which stand for nobody."""
        return bins(self.sizes[self.lead])

    @property
    def others(self) -> tuple[int, ...]:
        """Ranks of all but the lead."""
        return tuple(rank for rank in range(len(self.sizes)) if rank != self.lead)

    @property
    def names(self) -> tuple[int, ...]:
        """How many names each of the others evaluates for itself, by rank; 0 for the lead."""
        return tuple(0 if rank == self.lead else CHOICES * size for rank, size in enumerate(self.sizes))

    @property
    def steps(self) -> int:
        """Exchanges of batches, the same at all parties, so that nobody waits longer than one takes."""
        return max(len(batches(count)) for count in (self.rows, *self.names))

    def text(self) -> bytes:
        """Canonical JSON, for agreement and for keys."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":")).encode("ascii")
