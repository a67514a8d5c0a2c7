"""Features as ring integers: standardised, clipped to the party's share of the norm, placed in the job's slots.

Guarantee: the squared integer norm of every row is at most B_i^2, B_i = floor(share_i 2^bits), exactly, and a slot
without a user is all zeros. B_i is public and the squares sum to at most 4^bits (`TabularSchema`), so a joint row has
an integer norm of at most 2^bits: nobody has to clip anything inside the secret-shared computation.

Adding or removing a user. The number of slots is public and does not change; which slots hold users, and how many, is
not. A user who is absent is a row of zeros, with label and weight 0, at every party. Everything that is later summed
over slots is residual times row, hence exactly 0 there, whatever the model says of a row of zeros. So "add one user" is
"turn one row of zeros into a row of norm at most 2^bits", which is what the sensitivity says; "replace one user" would
cost twice that. Alignment orders the slots by a secret shuffle or by a keyed pseudonym, so that one user more moves
others to other slots at most, which no sum over slots notices. What does NOT hide presence: opening the size of the
intersection. A job that declares `slots` larger than any intersection, and pads, does not open it.

A user known to one party only, in a slot kept to hide membership, has features there and a weight of 0, so it counts
for nothing either.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from veil.errors import InputError
from veil.privacy.mechanism import to_grid
from veil.tabular.encoding import encode_features
from veil.tabular.reading import PartyTable
from veil.tabular.schema import ColumnsSchema, Label
from veil.tabular.statistics import Standardisation

ABSENT = -1
"""In `positions`: a slot that holds no row of this party."""

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False, repr=False)
class Outcomes:
    """Labels by slot, int64[slots] each, 0 where there is no label.

    Attributes:
        labels: 0 or 1.
        weights: the class weight of a labelled row in steps of 2^-bits, truncated; 0 for any other slot.
    """

    labels: Int64
    weights: Int64

    def __repr__(self) -> str:
        return f"Outcomes(slots={len(self.labels)})"


def encode_rows(schema: ColumnsSchema, table: PartyTable, standardisation: Standardisation) -> Int64:
    """A party's rows, int64[rows, width], in steps of 2^-bits; integer norm at most floor(norm_share 2^bits).

    Raises `InputError` when the standardisation is of another width.
    """
    width = table.party.width
    if standardisation.offset.shape != (width,) or standardisation.scale.shape != (width,):
        raise InputError(f"got a standardisation of {standardisation.offset.shape}, expected {width} features")
    out = np.empty((table.rows, width), dtype=np.int64)
    start = 0
    for block in table.blocks():
        rows = (encode_features(block) - standardisation.offset) * standardisation.scale
        # Sensitivity: `to_grid` truncates toward zero and checks the integer norm of every row against the share.
        out[start : start + block.rows] = to_grid(rows, table.party.norm_share, schema.bits)
        start += block.rows
    return out


def arrange(grid: Int64, positions: Int64, slots: int) -> Int64:
    """Rows in the order of the slots; int64[slots, width], zeros where a slot has none.

    positions: int64[slots], for each slot the row's number, or -1. Raises `InputError` unless each row is used at most
    once: a user in two slots would have twice the sensitivity.
    """
    _check_positions(positions, len(grid), slots)
    out = np.zeros((slots, grid.shape[1]), dtype=np.int64)
    filled = positions >= 0
    out[filled] = grid[positions[filled]]
    return out


def arrange_labels(label: Label, bits: int, labels: npt.NDArray[np.int8], positions: Int64, slots: int) -> Outcomes:
    """Labels and class weights in the order of the slots. labels: int8[rows], 1, 0, or -1 for none."""
    _check_positions(positions, len(labels), slots)
    by_slot = np.full(slots, -1, dtype=np.int8)
    filled = positions >= 0
    by_slot[filled] = labels[positions[filled]]
    steps = [int(weight * (1 << bits)) for weight in (label.negative_weight, label.positive_weight)]
    weights = np.select([by_slot == 0, by_slot == 1], steps, 0).astype(np.int64)
    return Outcomes((by_slot == 1).astype(np.int64), weights)


def first_slots(rows: int, slots: int) -> Int64:
    """Positions for rows that are aligned already: row k in slot k, the rest empty."""
    if not 0 <= rows <= slots:
        raise InputError(f"got {rows} rows for {slots} slots, expected at most as many rows")
    positions = np.full(slots, ABSENT, dtype=np.int64)
    positions[:rows] = np.arange(rows)
    return positions


def _check_positions(positions: Int64, rows: int, slots: int) -> None:
    if positions.shape != (slots,) or positions.dtype != np.int64:
        raise InputError(
            f"got positions of {positions.dtype} and shape {positions.shape}, expected int64 and ({slots},)"
        )
    used = positions[positions != ABSENT]
    if used.size and (int(used.min()) < 0 or int(used.max()) >= rows):
        raise InputError(f"got a position outside of the {rows} rows, expected a row number or -1")
    if np.unique(used).size != used.size:
        raise InputError("got a row in two slots, expected each row once")
