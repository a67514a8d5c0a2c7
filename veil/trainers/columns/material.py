"""One party's rows as its part of the joint matrix: standardised, clipped to its share, placed in the shared order.

Guarantee: what comes out keeps the bounds that the job states (`OwnColumns.check`); a slot without a row of this party
is zero, and at the label's party it weighs 0. Standardisations are made from opened, noised sums alone, the same at
every party.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from veil.tabular.grid import arrange, encode_rows
from veil.tabular.reading import PartyTable
from veil.tabular.statistics import Standardisation, standardise
from veil.trainers.columns.layout import WEIGHT_BITS, OwnColumns
from veil.trainers.columns.terms import ColumnsTerms

Int64 = npt.NDArray[np.int64]


def standardisations(terms: ColumnsTerms, opened: Mapping[str, Int64]) -> dict[str, Standardisation]:
    """Every party's, from the opened sums of its statistics."""
    trainer = terms.trainer
    return {
        one.party: standardise(
            terms.schema, one.party, opened[one.party], fill=trainer.fill, least_users=trainer.least_users
        )
        for one in terms.schema.parties
    }


def base_rate(found: Mapping[str, Standardisation], label_party: str) -> float:
    """Noised share of positive labels."""
    rate = found[label_party].rate
    return 0.5 if rate is None else rate


def statement(found: Mapping[str, Standardisation], offset: int) -> bytes:
    """What all parties must have made of the opened sums, as 32 bytes."""
    digest = hashlib.sha256(b"veil/columns-standardisation/v1\x00" + str(offset).encode())
    for party in sorted(found):
        for array in (found[party].offset, found[party].scale):
            digest.update(array.astype("<f8").tobytes())
    return digest.digest()


def own_columns(
    terms: ColumnsTerms, table: PartyTable, standardisation: Standardisation, positions: Int64
) -> OwnColumns:
    """What this party brings to the descent.

    positions: for each aligned row the number of the own row there, or -1; no longer than the slots. Raises
    `InputError` when anything exceeds its bound.
    """
    slots = terms.layout.rows
    placed = np.full(slots, -1, dtype=np.int64)
    placed[: len(positions)] = positions
    grid = arrange(encode_rows(terms.schema, table, standardisation), placed, slots)
    labels = weights = None
    if table.labels is not None:
        by_slot = np.where(placed >= 0, table.labels[np.maximum(placed, 0)], -1)
        labels = _column((by_slot == 1).astype(np.int64))
        if terms.layout.most_weight:
            weights = _column(_weights(terms, by_slot))
    own = OwnColumns(torch.from_numpy(grid), labels, weights)
    own.check(terms.layout, [one.party for one in terms.schema.parties].index(table.party.party))
    return own


def _weights(terms: ColumnsTerms, by_slot: npt.NDArray[np.int8] | Int64) -> Int64:
    label = terms.schema.label
    steps = [int(weight * (1 << WEIGHT_BITS)) for weight in (label.negative_weight, label.positive_weight)]
    return np.select([by_slot == 0, by_slot == 1], steps, 0).astype(np.int64)


def _column(values: Int64) -> torch.Tensor:
    return torch.from_numpy(values.reshape(-1, 1))
