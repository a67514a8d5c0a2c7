"""A sample, read and encoded as the parties of a joint job would, with all of them in one place.

Guarantee: rows go through `veil.tabular` from files on disk to ring integers, each party's by itself; the noise of the
statistics is drawn as a job draws it. Dev and test rows use the training rows' public standardisation.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from baseline.tabular.ctr import SPLITS, DatasetName, load_frames, write_party_files
from veil.errors import InputError
from veil.jobs.spec import Release
from veil.tabular.grid import encode_rows
from veil.tabular.reading import PartyTable, read_party
from veil.tabular.schema import TabularSchema
from veil.tabular.statistics import Standardisation, contribution, standardise

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
Draw = Callable[[Release], Int64]


@dataclass(frozen=True, eq=False)
class Tables:
    """Each party's table by split, in rank order, and labels (0 or 1) by split."""

    schema: TabularSchema
    tables: dict[str, list[PartyTable]]
    labels: dict[str, Int64]


@dataclass(frozen=True, eq=False)
class Encoded:
    """Joint rows by split: int64[rows, width] in steps of 2^-bits, and float labels.

    rate: public base rate. users: public noised number of training rows.
    """

    schema: TabularSchema
    rows: dict[str, Int64]
    labels: dict[str, Float64]
    rate: float
    users: float

    def features(self, split: str) -> Float64:
        """The rows as numbers, float64[rows, width]."""
        return self.rows[split] / float(1 << self.schema.bits)


def read_tables(name: DatasetName, folder: Path, schema: TabularSchema) -> Tables:
    """Writes each party's files to a temporary folder and reads them as that party would. Raises `VeilError`."""
    frames = load_frames(name, folder)
    with tempfile.TemporaryDirectory() as temporary:
        paths = write_party_files(frames, schema, Path(temporary))
        tables = {
            split: [
                read_party(path, schema, party.party) for path, party in zip(paths[split], schema.parties, strict=True)
            ]
            for split in SPLITS
        }
    labels = {}
    for split, found in tables.items():
        held = next(table.labels for table in found if table.labels is not None)
        if any(table.identifiers != found[0].identifiers for table in found) or int(held.min()) < 0:
            raise InputError("got rows that are not aligned or not labelled, expected both")
        labels[split] = held.astype(np.int64)
    return Tables(schema, tables, labels)


def statistics_of(
    tables: Tables, releases: dict[str, Release] | None, draw: Draw | None, *, fill: float, least_users: float
) -> list[Standardisation]:
    """Each party's standardisation, in rank order. releases: by party, with `draw`; None for no noise at all."""
    found = []
    for table in tables.tables["train"]:
        sums = contribution(tables.schema, table)
        if releases is not None and draw is not None:
            sums = sums + draw(releases[table.party.party])
        found.append(standardise(tables.schema, table.party.party, sums, fill=fill, least_users=least_users))
    return found


def encode(tables: Tables, standardisations: list[Standardisation]) -> Encoded:
    """All splits under one standardisation."""
    rows = {
        split: np.concatenate(
            [
                encode_rows(tables.schema, table, standardisation)
                for table, standardisation in zip(tables.tables[split], standardisations, strict=True)
            ],
            axis=1,
        )
        for split in SPLITS
    }
    rate, users = next((one.rate, one.users) for one in standardisations if one.rate is not None)
    labels = {split: values.astype(np.float64) for split, values in tables.labels.items()}
    return Encoded(tables.schema, rows, labels, rate, users)
