"""Some rows of a party's table."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from veil.tabular.reading import PartyTable


def take_rows(whole: PartyTable, rows: npt.NDArray[np.int64]) -> PartyTable:
    """Rows of a table by number, in that order."""
    return PartyTable(
        party=whole.party,
        identifiers=tuple(whole.identifiers[row] for row in rows),
        columns=tuple(column.gather(rows) for column in whole.columns),
        labels=None if whole.labels is None else whole.labels[rows],
    )
